"""What the engine tells about a request while it works on it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dllama_gpu.errors import DllamaError


class FinishReason(Enum):
    """Why a text ended."""

    END_TOKEN = "end token"
    STOP_TEXT = "stop text"
    CONSTRAINT = "constraint complete"
    MAX_TOKENS = "max tokens"
    CONTEXT_FULL = "context full"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed out"

    @property
    def openai_name(self) -> str:
        """`stop` and `length` as OpenAI's API has them; `cancelled` and `timeout`, which it has not."""
        return _OPENAI_NAMES[self]


_OPENAI_NAMES = {
    FinishReason.END_TOKEN: "stop",
    FinishReason.STOP_TEXT: "stop",
    FinishReason.CONSTRAINT: "stop",
    FinishReason.MAX_TOKENS: "length",
    FinishReason.CONTEXT_FULL: "length",
    FinishReason.CANCELLED: "cancelled",
    FinishReason.TIMED_OUT: "timeout",
}


@dataclass(frozen=True)
class TokenLogprob:
    """A token and the natural logarithm of the probability that the model itself gave it.

    The model's own: temperature 1, and before penalties, bias and constraint.
    """

    token: int
    logprob: float


@dataclass(frozen=True)
class Usage:
    """Tokens of one request; `n_cached_tokens` of the prompt's were in a KV cache already.

    An end token counts as generated, as OpenAI counts it.
    """

    n_prompt_tokens: int
    n_generated_tokens: int
    n_cached_tokens: int
    n_drafted_tokens: int = 0
    n_accepted_tokens: int = 0
    """Generated tokens that a draft had guessed right, out of `n_drafted_tokens` guesses."""


@dataclass(frozen=True)
class Timings:
    """Seconds of one request on the wall clock.

    `first_token_seconds` counts from the submission and is None if there was no token; `queued_seconds` is the part
    of it before the request had a slot.
    """

    queued_seconds: float
    first_token_seconds: float | None
    total_seconds: float


@dataclass(frozen=True)
class StartedEvent:
    """The request has a slot; `n_cached_tokens` of its prompt need not be computed."""

    n_cached_tokens: int


@dataclass(frozen=True)
class TokenEvent:
    """One more token.

    `text` is what can be shown now. It never ends inside a character and never holds a part of a stop text, so it lags
    behind the tokens at times and may be empty. `logprob` and `top_logprobs` (likeliest first) are there if the request
    asked for them.
    """

    token: int
    text: str
    logprob: float | None = None
    top_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class FinishedEvent:
    """The last event of a request. `text` was held back until now and belongs to the answer; mostly it is empty."""

    reason: FinishReason
    text: str
    usage: Usage
    timings: Timings
    stop_text: str | None = None
    """The one of the request's stop texts that ended it."""


@dataclass(frozen=True)
class FailedEvent:
    """The last event of a request that could not be finished."""

    error: DllamaError
    usage: Usage
    timings: Timings


Event = StartedEvent | TokenEvent | FinishedEvent | FailedEvent
