"""Users of a server: each asks over HTTP, reads the stream, and notes when every piece came."""

from __future__ import annotations

import http.client
import json
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from dllama_gpu.errors import DllamaError

_PATIENCE_SECONDS = 600.0


@dataclass(frozen=True)
class Wish:
    """A prompt to continue greedily; `extra` are fields that only one server knows."""

    prompt: str
    max_tokens: int
    extra: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True)
class Answer:
    """What came: when asked, when each piece came (seconds of one clock), how many tokens, and the text."""

    asked: float
    pieces: tuple[float, ...]
    n_tokens: int
    text: str

    @property
    def first_token_seconds(self) -> float:
        """From the question to the first piece."""
        return self.pieces[0] - self.asked

    @property
    def decode_rate(self) -> float:
        """Tokens per second behind the first one."""
        return (self.n_tokens - 1) / max(self.pieces[-1] - self.pieces[0], 1e-9)


@dataclass(frozen=True)
class LoadResult:
    """All answers of a run, `seconds` long."""

    n_users: int
    seconds: float
    answers: tuple[Answer, ...]

    @property
    def tokens_per_second(self) -> float:
        """Of all users together, reading of prompts included."""
        return sum(answer.n_tokens for answer in self.answers) / self.seconds

    def first_token(self, percent: int) -> float:
        """A percentile of the seconds to the first token."""
        return percentile([answer.first_token_seconds for answer in self.answers], percent)

    def inter_token(self, percent: int) -> float:
        """A percentile of the seconds between two pieces of one answer."""
        gaps = [b - a for answer in self.answers for a, b in zip(answer.pieces, answer.pieces[1:], strict=False)]
        return percentile(gaps, percent)


def percentile(values: Sequence[float], percent: int) -> float:
    """The value below which `percent` of all lie, between neighbours in proportion."""
    if len(values) < 2:
        return values[0] if values else float("nan")
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def ask(port: int, wish: Wish) -> Answer:
    """One streamed completion of the server on loopback. Raises DllamaError when it does not answer as it should."""
    body = {
        "prompt": wish.prompt,
        "max_tokens": wish.max_tokens,
        "temperature": 0.0,
        "stream": True,
        **dict(wish.extra),
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_SECONDS)
    asked = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise DllamaError(f"the server answered {response.status}: {response.read()[:500].decode(errors='replace')}")
    pieces, texts, n_tokens = [], [], None
    for line in response:
        if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
            continue
        now, chunk = time.perf_counter(), json.loads(line[6:])
        if chunk.get("usage"):
            n_tokens = chunk["usage"]["completion_tokens"]
        for choice in chunk["choices"]:
            if choice["text"]:
                pieces.append(now)
                texts.append(choice["text"])
    connection.close()
    if not pieces:
        raise DllamaError("the server gave no text")
    return Answer(asked, tuple(pieces), len(pieces) if n_tokens is None else n_tokens, "".join(texts))


def load(port: int, wishes: Sequence[Wish], n_users: int) -> LoadResult:
    """`n_users` users ask for all wishes, each for the next one that nobody has asked for yet."""
    answers: list[Answer | None] = [None] * len(wishes)
    open_wishes = list(range(len(wishes)))
    problems: list[Exception] = []
    lock = threading.Lock()

    def user() -> None:
        while True:
            with lock:
                if not open_wishes or problems:
                    return
                number = open_wishes.pop(0)
            try:
                answers[number] = ask(port, wishes[number])
            except (DllamaError, OSError, ValueError) as error:
                problems.append(error)

    users = [threading.Thread(target=user) for _ in range(n_users)]
    started = time.perf_counter()
    for thread in users:
        thread.start()
    for thread in users:
        thread.join()
    if problems:
        raise DllamaError(f"a user got no answer: {problems[0]}")
    return LoadResult(n_users, time.perf_counter() - started, tuple(answer for answer in answers if answer is not None))
