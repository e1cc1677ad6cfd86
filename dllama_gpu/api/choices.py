"""From the engine's events to what a client reads of one choice: text, calls, logprobs, and why it ended."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from dllama_gpu.api.errors import unavailable
from dllama_gpu.api.reasoning import ReasoningParser
from dllama_gpu.api.submission import Submission
from dllama_gpu.api.tool_parser import ParsedCall, Piece, ToolCallParser
from dllama_gpu.engine.events import FinishedEvent, FinishReason, TokenEvent, Usage


@dataclass(frozen=True)
class Delta:
    """What came of a choice; with a `finish_reason` it is the last of it."""

    text: str = ""
    reasoning: str = ""
    """What the model thought before it said anything."""
    calls: tuple[ParsedCall, ...] = ()
    tokens: tuple[TokenEvent, ...] = ()
    """The tokens with their logprobs, where these were asked for. Text may lag behind them."""
    finish_reason: str | None = None

    def __bool__(self) -> bool:
        return bool(self.text or self.reasoning or self.calls or self.tokens or self.finish_reason)


@dataclass(frozen=True)
class HiddenMark:
    """A token without a text for readers, at which calls or thoughts begin or end."""

    token: int
    text: str


class Choice:
    """One answer while it is made."""

    def __init__(
        self,
        *,
        wants_logprobs: bool = False,
        reasoning: ReasoningParser | None = None,
        parser: ToolCallParser | None = None,
        marks: Sequence[HiddenMark] = (),
        max_calls: int | None = None,
    ) -> None:
        self._wants_logprobs = wants_logprobs
        self._reasoning = reasoning
        self._parser = parser
        self._marks = {mark.token: mark.text for mark in marks}
        self._max_calls = max_calls
        self._n_calls = 0
        self._n_tokens = 0
        self.usage: Usage | None = None
        """Known at the end."""

    @property
    def n_reasoning_tokens(self) -> int | None:
        """How many tokens were thoughts so far; None where thoughts are not told apart."""
        return None if self._reasoning is None else self._reasoning.n_tokens

    def token(self, event: TokenEvent) -> Delta:
        """What the client may know now."""
        self._n_tokens += 1
        tokens = (event,) if self._wants_logprobs else ()
        thought, said = "", self._marks.get(event.token, "") + event.text
        if self._reasoning is not None:
            thought, said = self._reasoning.push(said)
        return self._delta(thought, [said] if self._parser is None else self._parser.push(said), tokens)

    def finished(self, event: FinishedEvent) -> Delta:
        """The rest, and the reason. Raises ApiError 503 when time was up before the first token."""
        self.usage = event.usage
        if event.reason is FinishReason.CANCELLED:
            raise unavailable("the request was ended by the server", code="cancelled")
        if event.reason is FinishReason.TIMED_OUT and self._n_tokens == 0:
            raise unavailable("no token came within the server's time limit for a request", code="timeout")
        thought, said = "", event.text
        if self._reasoning is not None:
            thought, said = self._reasoning.finish(said)
        pieces = [said] if self._parser is None else [*self._parser.push(said), *self._parser.finish()]
        return replace(self._delta(thought, pieces, ()), finish_reason=self._reason(event.reason))

    def _delta(self, reasoning: str, pieces: Sequence[Piece], tokens: tuple[TokenEvent, ...]) -> Delta:
        text = "".join(piece for piece in pieces if isinstance(piece, str))
        calls = [piece for piece in pieces if isinstance(piece, ParsedCall)]
        if self._max_calls is not None:
            calls = calls[: max(0, self._max_calls - self._n_calls)]
        self._n_calls += len(calls)
        return Delta(text, reasoning, tuple(calls), tokens)

    def _reason(self, reason: FinishReason) -> str:
        if reason is FinishReason.TIMED_OUT:
            return "length"
        name = reason.openai_name
        return "tool_calls" if name == "stop" and self._n_calls else name


async def deltas(submission: Submission, choices: Sequence[Choice]) -> AsyncGenerator[tuple[int, Delta], None]:
    """What comes of the choices, as it comes, until all have ended.

    Raises ApiError 503 when the engine fails or the server ends.
    """
    n_open = len(choices)
    while n_open:
        index, event = await submission.next()
        if isinstance(event, TokenEvent):
            delta = choices[index].token(event)
        elif isinstance(event, FinishedEvent):
            delta = choices[index].finished(event)
            n_open -= 1
        else:
            continue
        if delta:
            yield index, delta


def total_usage(choices: Sequence[Choice], n_per_prompt: int) -> dict[str, object]:
    """OpenAI's `usage`: the choices of one prompt share it, so it counts once."""
    usages = [choice.usage for choice in choices if choice.usage is not None]
    firsts = usages[::n_per_prompt]
    n_prompt = sum(usage.n_prompt_tokens for usage in firsts)
    n_generated = sum(usage.n_generated_tokens for usage in usages)
    total: dict[str, object] = {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_generated,
        "total_tokens": n_prompt + n_generated,
        "prompt_tokens_details": {"cached_tokens": sum(usage.n_cached_tokens for usage in firsts)},
    }
    n_thought = [choice.n_reasoning_tokens for choice in choices if choice.n_reasoning_tokens is not None]
    return {**total, "completion_tokens_details": {"reasoning_tokens": sum(n_thought)}} if n_thought else total
