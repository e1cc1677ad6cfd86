"""Generation of one text: prefill of the prompt in chunks, then one token a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from dllama_gpu.engine.drafting import DraftWish
from dllama_gpu.engine.events import FinishReason
from dllama_gpu.engine.prediction import read_predictions
from dllama_gpu.engine.sampler import Sampler
from dllama_gpu.engine.sampling import SamplingParams
from dllama_gpu.engine.speculation import Speculation
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.batch import Batch, Program, Row

EMPTY_PROMPT = "the prompt is empty, and this model begins texts with no token of its own; give it some text"

PrefillProgress = Callable[[int, int], None]
"""Told (prompt tokens done, prompt tokens in all) after each chunk."""


@dataclass(frozen=True)
class GenerationRequest:
    """What to continue and when to stop.

    At most `max_tokens` are generated. A token of `end_ids` ends the text and is no part of it. Ids from `n_known_ids`
    on are never chosen (None: all are known).
    """

    prompt: Sequence[int]
    max_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    end_ids: frozenset[int] = frozenset()
    n_known_ids: int | None = None


@dataclass(frozen=True)
class GenerationStatistics:
    """Work done so far. Seconds are those of the steps and of sampling; what the caller does in between is not in them.

    The prompt's steps give the first token, so `n_decoded_tokens` counts those after it, an end token included.
    """

    n_prompt_tokens: int
    prefill_seconds: float
    n_decoded_tokens: int
    decode_seconds: float
    time_to_first_token: float | None
    """Seconds from the start of the prefill until the first token is chosen, None if it was not."""


class Generation:
    """One text made in one KV slot of a program that does nothing else meanwhile.

    With `speculation` the text is the same and may come faster; `n_drafted` and `n_accepted` count its guesses and
    those that were right. For many texts at once see `Engine`.

    Raises DllamaError when the prompt is empty or too long for the program's `seq_len`, or `max_tokens` is below 1.
    """

    def __init__(
        self,
        program: Program,
        request: GenerationRequest,
        *,
        slot: int = 0,
        speculation: Speculation | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        check_prompt(len(request.prompt), program.graph.seq_len)
        if request.max_tokens < 1:
            raise DllamaError(f"the number of tokens to generate is {request.max_tokens}, but it must be at least 1")
        self._program = program
        self._request = request
        self._slot = slot
        self._clock = clock
        self._speculation = speculation
        self._most_guesses = min(program.graph.max_rows, program.graph.max_logit_rows or program.graph.max_rows) - 1
        if speculation is not None:
            speculation.start(slot)
        self.n_drafted = 0
        self.n_accepted = 0
        self._sampler = Sampler(request.sampling, request.prompt, request.n_known_ids)
        self._n_prompt_done = 0
        self._n_chosen = 0
        self._prefill_seconds = 0.0
        self._first_token_seconds: float | None = None
        self._decode_seconds = 0.0
        self.finish_reason: FinishReason | None = None

    @property
    def statistics(self) -> GenerationStatistics:
        """What was done until now; right also after an interruption."""
        return GenerationStatistics(
            n_prompt_tokens=self._n_prompt_done,
            prefill_seconds=self._prefill_seconds,
            n_decoded_tokens=max(0, self._n_chosen - 1),
            decode_seconds=self._decode_seconds,
            time_to_first_token=self._first_token_seconds,
        )

    def tokens(self, on_prefill: PrefillProgress | None = None) -> Iterator[int]:
        """Yields each token as soon as it is chosen; at the end `finish_reason` says why it is the end.

        Raises DllamaError when the logits are not finite numbers.
        """
        self._prefill(on_prefill)
        known = list(self._request.prompt)
        draft: Sequence[int] = ()
        predictions = read_predictions(self._program, 1)
        n_used = 0
        while True:
            started = self._clock()
            token = self._sampler.sample(predictions[n_used])
            self._count_token(self._clock() - started)
            position = len(known)
            known.append(token)
            self.finish_reason = self._reason_to_stop(token, position)
            if self.finish_reason is not FinishReason.END_TOKEN:
                yield token
            if self.finish_reason is not None:
                return
            if n_used < len(draft) and token == draft[n_used]:
                n_used += 1  # what follows was computed with the guess
                continue
            self._checked(len(draft), n_used)
            started = self._clock()
            draft = self._guess(known)
            rows = [self._row(each, position + i, wants_logits=True) for i, each in enumerate([token, *draft])]
            self._run_decode(rows)
            predictions, n_used = read_predictions(self._program, len(rows)), 0
            self._decode_seconds += self._clock() - started

    def _guess(self, known: Sequence[int]) -> Sequence[int]:
        """Guesses of the next tokens, as many as pay."""
        most = min(
            self._request.max_tokens - self._n_chosen - 1, self._program.graph.seq_len - len(known), self._most_guesses
        )
        if self._speculation is None or most < 1:
            return ()
        return self._speculation.draft([DraftWish(self._slot, known, most)], 1).get(self._slot, ())

    def _run_decode(self, rows: Sequence[Row]) -> None:
        started = self._clock() if self._speculation is not None else 0.0
        self._program.run(Batch.of(rows))
        if self._speculation is not None:
            self._speculation.measured(len(rows), self._clock() - started)

    def _checked(self, n_drafted: int, n_right: int) -> None:
        self.n_drafted += n_drafted
        self.n_accepted += n_right
        if self._speculation is not None:
            self._speculation.checked(self._slot, n_drafted, n_right)

    def _count_token(self, seconds: float) -> None:
        self._n_chosen += 1
        if self._first_token_seconds is None:
            self._first_token_seconds = self._prefill_seconds + seconds
        else:
            self._decode_seconds += seconds

    def _prefill(self, on_prefill: PrefillProgress | None) -> None:
        prompt = self._request.prompt
        for chunk in chunks(len(prompt), self._program.graph.max_rows):
            started = self._clock()
            rows = [self._row(prompt[i], i, wants_logits=i == len(prompt) - 1) for i in chunk]
            self._program.run(Batch.of(rows))
            self._prefill_seconds += self._clock() - started
            self._n_prompt_done = chunk.stop
            if on_prefill is not None:
                on_prefill(chunk.stop, len(prompt))

    def _row(self, token: int, position: int, *, wants_logits: bool) -> Row:
        return Row(token, self._slot, position, wants_logits, self._sampler.row_temperature)

    def _reason_to_stop(self, token: int, position: int) -> FinishReason | None:
        """Why `token`, which would stand at `position`, is the last one; None if it is not."""
        if token in self._request.end_ids:
            return FinishReason.END_TOKEN
        if self._n_chosen == self._request.max_tokens:
            return FinishReason.MAX_TOKENS
        return FinishReason.CONTEXT_FULL if position == self._program.graph.seq_len else None


def chunks(n_rows: int, max_rows: int) -> Iterator[range]:
    """Ranges of at most `max_rows` that cover 0 .. n_rows - 1 in order."""
    for begin in range(0, n_rows, max_rows):
        yield range(begin, min(begin + max_rows, n_rows))


def check_prompt(n_tokens: int, seq_len: int, remedy: str = "shorten it") -> None:
    """Raises DllamaError, with the `remedy`, for a prompt of no tokens or more than `seq_len`."""
    if n_tokens == 0:
        raise DllamaError(EMPTY_PROMPT)
    if n_tokens > seq_len:
        raise DllamaError(f"the prompt has {n_tokens} tokens, but the context holds {seq_len}; {remedy}")
