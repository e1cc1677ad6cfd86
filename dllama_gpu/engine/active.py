"""One request while the engine works on it: its tokens, its sampler, and the text that is made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dllama_gpu.engine.events import (
    Event,
    FailedEvent,
    FinishedEvent,
    FinishReason,
    Timings,
    TokenEvent,
    TokenLogprob,
    Usage,
)
from dllama_gpu.engine.logprobs import logprobs_of
from dllama_gpu.engine.prediction import Prediction
from dllama_gpu.engine.request import CompletionRequest
from dllama_gpu.engine.sampler import Sampler
from dllama_gpu.engine.stop_text import StopScanner
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.batch import Row
from dllama_gpu.tokenizer.tokenizer import Tokenizer

OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class Advance:
    """What one more token brought: an event if there is a token to tell of, and the reason if it was the last."""

    event: TokenEvent | None
    reason: FinishReason | None


class ActiveRequest:
    """The state of one request from its submission to its last event. Only `cancelled` is set by other threads."""

    def __init__(self, request: CompletionRequest, tokenizer: Tokenizer, on_event: OnEvent, now: float) -> None:
        self.request = request
        self.on_event = on_event
        self.cancelled = False
        self.tokens = list(request.prompt)
        """Prompt and generated tokens; of these the first `n_computed` are in the KV cache of `slot`."""
        self.n_computed = 0
        self.slot = -1
        self.last_step = -1
        self.order = -1
        self.n_cached = 0
        self.n_drafted = 0
        self.n_accepted = 0
        self.last_token_at: float | None = None
        self.n_generated = 0
        self._tokenizer = tokenizer
        self._sampler = Sampler(request.sampling, request.prompt, tokenizer.vocab_size)
        self._stream = tokenizer.stream()
        self._scanner = StopScanner(request.stop)
        self._submitted_at = now
        self._started_at: float | None = None
        self._first_token_at: float | None = None

    @property
    def n_missing(self) -> int:
        """Tokens that are known but not in the KV cache yet."""
        return len(self.tokens) - self.n_computed

    @property
    def n_left(self) -> int:
        """Tokens that may still be generated."""
        return self.request.max_tokens - self.n_generated

    @property
    def has_started(self) -> bool:
        """Whether it ever had a slot."""
        return self._started_at is not None

    def start(self, slot: int, n_reused: int, now: float) -> None:
        """It has a slot, which holds its first `n_reused` tokens."""
        self.slot, self.n_computed = slot, n_reused
        if self._started_at is None:
            self._started_at, self.n_cached = now, n_reused

    def row(self, index: int, *, wants_logits: bool) -> Row:
        """The row of its token number `index`."""
        return Row(self.tokens[index], self.slot, index, wants_logits, self._sampler.row_temperature)

    def draft_row(self, token: int, position: int) -> Row:
        """The row of a guess."""
        return Row(token, self.slot, position, True, self._sampler.row_temperature)

    def end_before_step(self, now: float) -> FinishReason | None:
        """Why it ends now, whatever the model would say."""
        if self.cancelled:
            return FinishReason.CANCELLED
        limit = self.request.timeout_seconds
        if limit is not None and now - self._submitted_at >= limit:
            return FinishReason.TIMED_OUT
        constraint = self.request.constraint
        return FinishReason.CONSTRAINT if constraint is not None and constraint.is_complete else None

    def advance(self, prediction: Prediction, seq_len: int, now: float) -> Advance:
        """Chooses the next token. Raises DllamaError when that is impossible."""
        request, constraint = self.request, self.request.constraint
        token = self._sampler.sample(prediction, None if constraint is None else constraint.allowed())
        logprob: float | None = None
        top: tuple[TokenLogprob, ...] = ()
        if request.n_logprobs is not None:
            logprob, top = logprobs_of(
                prediction, token, request.n_logprobs, self._sampler.row_temperature, self._tokenizer.vocab_size
            )
        self.n_generated += 1
        self._first_token_at = self._first_token_at or now
        if token in request.end_ids:
            return Advance(None, FinishReason.END_TOKEN)
        if constraint is not None:
            constraint.advance(token)
        self.tokens.append(token)
        text = self._scanner.push(self._stream.push(token))
        reason: FinishReason | None = None
        if self._scanner.found is not None:
            reason = FinishReason.STOP_TEXT
        elif constraint is not None and constraint.is_complete:
            reason = FinishReason.CONSTRAINT
        elif self.n_left == 0:
            reason = FinishReason.MAX_TOKENS
        elif len(self.tokens) > seq_len:
            reason = FinishReason.CONTEXT_FULL
        return Advance(TokenEvent(token, text, logprob, top), reason)

    def finished(self, reason: FinishReason, now: float) -> FinishedEvent:
        """Its last event. A half character or stop text that was held back is part of the text now."""
        rest = self._scanner.push(self._stream.flush()) + self._scanner.flush()
        return FinishedEvent(reason, rest, self.usage(), self.timings(now), self._scanner.found)

    def failed(self, error: DllamaError, now: float) -> FailedEvent:
        """Its last event after an error."""
        return FailedEvent(error, self.usage(), self.timings(now))

    def usage(self) -> Usage:
        """Tokens until now."""
        return Usage(len(self.request.prompt), self.n_generated, self.n_cached, self.n_drafted, self.n_accepted)

    def timings(self, now: float) -> Timings:
        """Seconds until now."""
        began, first = self._started_at, self._first_token_at
        return Timings(
            queued_seconds=(now if began is None else began) - self._submitted_at,
            first_token_seconds=None if first is None else first - self._submitted_at,
            total_seconds=now - self._submitted_at,
        )
