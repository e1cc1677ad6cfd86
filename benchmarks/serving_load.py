"""Many clients at once, some with bad manners, and each text compared with what its prompt gets alone.

`python -m benchmarks.serving_load --url http://127.0.0.1:9990 --clients 64 --seconds 120` against a running server;
tests/api runs a short one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

MAX_TOKENS = 24
_SUBJECTS = ("rivers", "bread", "the moon", "a small dog", "old trains", "winter", "chess", "the colour red")
_TASKS = ("Tell me about {}.", "Write a short poem about {}.", "Why do people like {}?")
_SYSTEM = "You are a careful assistant who answers in one or two plain sentences and never makes up facts. "
_POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
_GARBAGE = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03rubbish",
    b"GET /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    _POST + b"Content-Length: 5\r\n\r\n{{{{{",
    _POST + b"Content-Length: 500\r\n\r\n{",
    _POST + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
    _POST[:30],
)


@dataclass(frozen=True)
class Prompt:
    """A request whose greedy text is known."""

    messages: Sequence[dict[str, str]]
    text: str


@dataclass
class LoadReport:
    """What happened. `wrong` lists what must not."""

    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    n_tokens: int = 0
    first_token_seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        waits = sorted(self.first_token_seconds) or [0.0]
        return [
            f"{sum(self.kinds.values())} visits in {self.seconds:.0f} s: {dict(self.kinds)}",
            f"statuses {dict(self.statuses)}",
            f"{self.n_tokens} tokens, {self.n_tokens / max(self.seconds, 1e-9):.1f} tokens/s",
            f"first token after {waits[len(waits) // 2]:.2f} s (median), {waits[len(waits) * 95 // 100]:.2f} s (95 %)",
            f"{len(self.wrong)} wrong" + "".join(f"\n  {line}" for line in self.wrong[:20]),
        ]


def make_prompts(url: str) -> list[Prompt]:
    """Prompts, some with a common beginning, and the greedy text of each, made one after the other."""
    prompts = []
    with httpx.Client(base_url=url, timeout=120) as client:
        for index, subject in enumerate(_SUBJECTS):
            task = _TASKS[index % len(_TASKS)].format(subject)
            messages = [{"role": "user", "content": task}]
            if index % 2:
                messages.insert(0, {"role": "system", "content": _SYSTEM * 4})
            response = client.post("/v1/chat/completions", json=_body(messages))
            response.raise_for_status()
            prompts.append(Prompt(messages, response.json()["choices"][0]["message"]["content"]))
    return prompts


async def run_load(url: str, prompts: Sequence[Prompt], *, n_clients: int, seconds: float, seed: int = 0) -> LoadReport:
    """`n_clients` at once for about `seconds`; what has begun by then is waited for."""
    report = LoadReport()
    started = time.monotonic()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=n_clients)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        visitors = [
            _Visitor(client, url, prompts, report, random.Random(f"{seed} {number}")) for number in range(n_clients)
        ]
        await asyncio.gather(*(visitor.stay(started + seconds) for visitor in visitors))
    report.seconds = time.monotonic() - started
    return report


class _Visitor:
    """One client, which comes again and again in one mood or another."""

    def __init__(
        self, client: httpx.AsyncClient, url: str, prompts: Sequence[Prompt], report: LoadReport, rng: random.Random
    ) -> None:
        self._client = client
        self._url = urlsplit(url)
        self._prompts = prompts
        self._report = report
        self._rng = rng
        self._moods: list[tuple[str, float, Callable[[Prompt], Awaitable[None]]]] = [
            ("whole", 4, self._whole),
            ("stream", 4, self._stream),
            ("slow", 1, self._slow),
            ("leaves a stream", 3, self._leave_stream),
            ("leaves", 2, self._leave),
            ("garbage", 2, self._garbage),
            ("wrong field", 1, self._wrong_field),
        ]

    async def stay(self, until: float) -> None:
        """Visits until it is time to go."""
        weights = [weight for _, weight, _ in self._moods]
        while time.monotonic() < until:
            name, _, visit = self._rng.choices(self._moods, weights)[0]
            self._report.kinds[name] += 1
            try:
                await visit(self._rng.choice(self._prompts))
            except (httpx.HTTPError, OSError, ValueError) as error:
                self._report.wrong.append(f"{name}: {type(error).__name__}: {error}")

    async def _whole(self, prompt: Prompt) -> None:
        response = await self._client.post("/v1/chat/completions", json=_body(prompt.messages))
        if await self._is_served(response.status_code, response.headers):
            answer = response.json()
            self._report.n_tokens += answer["usage"]["completion_tokens"]
            self._compare("whole", answer["choices"][0]["message"]["content"], prompt.text)

    async def _stream(self, prompt: Prompt, pause: float = 0.0, leave_after: int | None = None) -> None:
        started = time.monotonic()
        text, n_chunks, done = "", 0, False
        body = _body(prompt.messages, stream=True)
        async with self._client.stream("POST", "/v1/chat/completions", json=body) as response:
            if not await self._is_served(response.status_code, response.headers):
                return
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    done = True
                    break
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    self._report.wrong.append(f"stream: {chunk['error']['message']}")
                    return
                piece = chunk["choices"][0]["delta"].get("content", "")
                if piece and not text:
                    self._report.first_token_seconds.append(time.monotonic() - started)
                text += piece
                n_chunks += bool(piece)
                if leave_after is not None and n_chunks >= leave_after:
                    break
                await asyncio.sleep(pause)
        self._report.n_tokens += n_chunks
        if done:
            self._compare("stream", text, prompt.text)
        elif leave_after is None:
            self._report.wrong.append("stream: ended without [DONE]")
        elif not prompt.text.startswith(text):
            self._report.wrong.append(f"stream left: {text!r} is no beginning of {prompt.text!r}")

    async def _slow(self, prompt: Prompt) -> None:
        await self._stream(prompt, pause=self._rng.uniform(0.02, 0.2))

    async def _leave_stream(self, prompt: Prompt) -> None:
        await self._stream(prompt, leave_after=self._rng.randint(0, 8))

    async def _leave(self, prompt: Prompt) -> None:
        with contextlib.suppress(httpx.TimeoutException):
            timeout = httpx.Timeout(60, read=self._rng.uniform(0.001, 0.3))
            response = await self._client.post("/v1/chat/completions", json=_body(prompt.messages), timeout=timeout)
            if await self._is_served(response.status_code, response.headers):
                self._compare("leave", response.json()["choices"][0]["message"]["content"], prompt.text)

    async def _garbage(self, _: Prompt) -> None:
        reader, writer = await asyncio.open_connection(self._url.hostname, self._url.port)
        try:
            writer.write(self._rng.choice(_GARBAGE))
            await writer.drain()
            with contextlib.suppress(asyncio.TimeoutError):
                answer = await asyncio.wait_for(reader.read(12), self._rng.uniform(0.01, 0.5))
                if answer and not answer.startswith(b"HTTP/1.1 4"):
                    self._report.wrong.append(f"garbage: {answer!r}")
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _wrong_field(self, prompt: Prompt) -> None:
        response = await self._client.post("/v1/chat/completions", json=_body(prompt.messages, temperature="warm"))
        self._report.statuses[response.status_code] += 1
        if response.status_code != 400 or response.json()["error"]["param"] != "temperature":
            self._report.wrong.append(f"wrong field: {response.status_code} {response.text[:200]}")

    async def _is_served(self, status: int, headers: httpx.Headers) -> bool:
        """Whether it was answered. A client that is told to wait does so, but not for long here."""
        self._report.statuses[status] += 1
        if status == 429 and "retry-after" in headers:
            await asyncio.sleep(self._rng.uniform(0.1, 0.5))
        elif status != 200:
            self._report.wrong.append(f"status {status}")
        return status == 200

    def _compare(self, kind: str, text: str, expected: str) -> None:
        if text != expected:
            self._report.wrong.append(f"{kind}: {text!r}, but alone it is {expected!r}")


def _body(messages: Sequence[dict[str, str]], **fields: Any) -> dict[str, Any]:
    return {"messages": list(messages), "temperature": 0, "max_tokens": MAX_TOKENS, **fields}


async def await_idle(url: str, seconds: float = 30.0) -> dict[str, Any]:
    """The state of the server when no slot is busy and nobody waits any more; the last state if that does not come."""
    deadline = time.monotonic() + seconds
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        while True:
            state: dict[str, Any] = (await client.get("/api/cluster")).json()
            if not state["slots"]["busy"] and not state["queue"]["waiting"]:
                return state
            if time.monotonic() > deadline:
                return state
            await asyncio.sleep(0.1)


def main() -> int:
    """Runs a load against a server; the exit status is 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:9990")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    prompts = make_prompts(options.url)
    report = asyncio.run(
        run_load(options.url, prompts, n_clients=options.clients, seconds=options.seconds, seed=options.seed)
    )
    state = asyncio.run(await_idle(options.url))
    print(*report.lines(), sep="\n")
    is_idle = not state["slots"]["busy"] and not state["queue"]["waiting"]
    print(f"afterwards: slots {state['slots']}, queue {state['queue']}, requests {state['requests']}")
    return 0 if is_idle and not report.wrong else 1


if __name__ == "__main__":
    sys.exit(main())
