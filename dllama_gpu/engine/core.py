"""Continuous batching without threads: a queue, requests in slots, and one step after the other."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy.typing as npt

from dllama_gpu.engine.active import ActiveRequest
from dllama_gpu.engine.drafting import DraftWish
from dllama_gpu.engine.events import Event, FinishReason, StartedEvent
from dllama_gpu.engine.meters import Meters
from dllama_gpu.engine.prediction import Prediction, read_predictions
from dllama_gpu.engine.scheduler import (
    Portion,
    Running,
    Slot,
    SlotChoice,
    StepLimits,
    choose_slot,
    is_worth_waiting,
    next_in_queue,
    plan_step,
    prompt_rows_within,
)
from dllama_gpu.engine.speculation import Speculation
from dllama_gpu.engine.step_cost import StepCost
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.batch import Batch, ExchangeHandler, PrefixCopier, Program, Row
from dllama_gpu.graph.graph import Graph

_log = logging.getLogger(__name__)
_COST_DECAY = 0.95  # the machine may have other work at any time


class ProgramFailedError(Exception):
    """The program cannot go on; `cause` is the reason as a sentence."""

    def __init__(self, cause: DllamaError) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass(frozen=True)
class CoreOptions:
    """How steps are made: beside running texts, prompts get about `step_seconds` a step."""

    step_seconds: float = 0.1


class EngineCore:
    """Queue, slots and steps. Everything happens in the calling thread; see `Engine` for many."""

    def __init__(
        self,
        program: Program,
        options: CoreOptions | None = None,
        speculation: Speculation | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options or CoreOptions()
        self._speculation = speculation
        self._clock = clock
        self.meters = Meters(clock)
        self.queue: list[ActiveRequest] = []
        self.running: dict[int, ActiveRequest] = {}
        self.slots: list[Slot] = []
        self._n_steps = 0
        self._n_admitted = 0
        self._program: _Guarded | None = None
        self._first_step = 0
        self._cost = StepCost(_COST_DECAY)
        self.use_program(program)

    def use_program(self, program: Program) -> None:
        """Goes on with another program, whose caches are empty; requests that were running are first in the queue."""
        self._program = _Guarded(program)
        graph = program.graph
        self.seq_len, self.vocab_size = graph.seq_len, graph.vocab_size
        self._cost = StepCost(_COST_DECAY)
        self._first_step = self._n_steps
        self.slots = [Slot([], True) for _ in range(graph.n_slots)]

    def drop_program(self) -> None:
        """Lets go of a program that failed, so that its memory is free; running requests go back into the queue.

        They keep their tokens and are computed from their start by the next program. `use_program` must come before
        another step.
        """
        self._program = None
        self.slots = [Slot([], True) for _ in self.slots]
        self.queue = [*self.running.values(), *self.queue]
        self.running = {}

    @property
    def has_work(self) -> bool:
        """Whether a step has something to do."""
        return bool(self.queue or self.running)

    def add(self, active: ActiveRequest) -> None:
        """Puts a request at the end of the queue."""
        self.queue.append(active)

    def step(self) -> None:
        """Ends what is to end, gives free slots to the queue, and computes one step.

        Raises ProgramFailedError when the program fails; `use_program` or `fail_all` must follow.
        """
        self.end_early()
        if self._program is None:
            return
        self._admit(self._program)
        if not self.running:
            return
        drafts = self._draft()
        portions = plan_step(
            [
                Running(slot, active.n_missing, len(drafts.get(slot, ())), active.last_step, active.order)
                for slot, active in self.running.items()
            ],
            self._limits(self._program.graph),
        )
        self._compute(self._program, portions, drafts)

    def fail_all(self, error: DllamaError) -> None:
        """Ends all requests with an error."""
        for active in [*self.running.values(), *self.queue]:
            self._fail(active, error)
        self.queue = []

    def end_early(self) -> None:
        """Ends requests that were cancelled or whose time is up."""
        now = self._clock()
        reasons = [(active, active.end_before_step(now)) for active in (*self.running.values(), *self.queue)]
        self.queue = [active for active, reason in reasons if reason is None and active in self.queue]
        for active, reason in reasons:
            if reason is not None:
                self._finish(active, reason)

    def _admit(self, program: _Guarded) -> None:
        """Gives free slots to the queue. Who shares a beginning that is just being computed waits for it."""
        waiting = list(self.queue)
        while waiting and any(slot.is_free for slot in self.slots):
            running = list(self.running.values())
            clients = [active.request.client for active in waiting]
            active = waiting.pop(next_in_queue(clients, [other.request.client for other in running]))
            slots = list(self.slots)
            for other in running:
                slots[other.slot] = Slot(other.tokens[: other.n_computed], False, self._n_steps)
            choice = choose_slot(active.tokens, slots, can_copy=program.can_copy)
            if choice is None:
                return
            if program.can_copy and is_worth_waiting(active.tokens, choice, [other.tokens for other in running]):
                continue
            if choice.source is not None:
                program.copy_prefix(choice.source, choice.slot, choice.n_reused)
            self.queue.remove(active)
            self._start(active, choice)

    def _start(self, active: ActiveRequest, choice: SlotChoice) -> None:
        now, is_new = self._clock(), not active.has_started
        active.start(choice.slot, choice.n_reused, now)
        active.order = self._n_admitted
        self._n_admitted += 1
        self.running[choice.slot] = active
        self.slots[choice.slot] = Slot([], False, self._n_steps)
        if self._speculation is not None:
            self._speculation.start(choice.slot)
        if is_new:
            self.meters.started(active, now)
            self._tell(active, StartedEvent(choice.n_reused))

    def _limits(self, graph: Graph) -> StepLimits:
        return StepLimits(
            graph.max_rows,
            graph.max_rows if graph.max_logit_rows is None else graph.max_logit_rows,
            prompt_rows_within(self._options.step_seconds, self._cost.line(), graph.max_rows),
        )

    def _draft(self) -> Mapping[int, Sequence[int]]:
        """Guesses of texts by slot; none in steps that compute prompts too."""
        texts = self.running.values()
        if self._speculation is None or any(active.n_missing > 1 for active in texts):
            return {}
        wishes = [
            DraftWish(active.slot, active.tokens, most)
            for active in texts
            if (most := min(active.n_left - 1, self.seq_len - len(active.tokens))) > 0
        ]
        try:
            return self._speculation.draft(wishes, len(texts)) if wishes else {}
        except Exception as error:
            _log.warning("no more guesses by %s: %s", self._speculation.drafter.name, error)
            self._speculation = None
            return {}

    def _compute(self, program: _Guarded, portions: Sequence[Portion], drafts: Mapping[int, Sequence[int]]) -> None:
        rows = [row for portion in portions for row in self._rows(portion, drafts)]
        started = self._clock()
        program.run(Batch.of(rows))
        n_logit_rows = sum(row.wants_logits for row in rows)
        predictions = read_predictions(program, n_logit_rows) if n_logit_rows else []
        n_prompt_rows = sum(portion.n_rows for portion in portions if portion.n_rows > 1)
        self._measure(self._clock() - started, len(rows), has_prompts=n_prompt_rows > 0)
        n_tokens = n_read = 0
        for portion in portions:
            active = self.running[portion.slot]
            active.n_computed += portion.n_rows
            active.last_step = self._n_steps
            if portion.wants_logits:
                own = predictions[n_read : n_read + 1 + portion.n_draft]
                n_tokens += self._advance(active, own, drafts.get(portion.slot, ()))
                n_read += len(own)
        self._n_steps += 1
        now = self._clock()
        self.meters.stepped(now, now - started, n_prompt_rows, n_tokens)

    def _rows(self, portion: Portion, drafts: Mapping[int, Sequence[int]]) -> list[Row]:
        active = self.running[portion.slot]
        begin, end = active.n_computed, active.n_computed + portion.n_rows
        rows = [active.row(i, wants_logits=portion.wants_logits and i == end - 1) for i in range(begin, end)]
        guesses = drafts[portion.slot][: portion.n_draft] if portion.n_draft else ()
        return rows + [active.draft_row(guess, end + i) for i, guess in enumerate(guesses)]

    def _advance(self, active: ActiveRequest, predictions: Sequence[Prediction], draft: Sequence[int]) -> int:
        """Chooses the next tokens of a request: one, and one more for each guess that was right; tells them.

        `predictions` are those of its last known token and of the guesses behind it. Returns how many tokens came.
        """
        n_tokens, now, n_before = 0, self._clock(), active.n_generated
        reason: FinishReason | None = None
        try:
            for n_tokens, prediction in enumerate(predictions, start=1):
                advance = active.advance(prediction, self.seq_len, now)
                if advance.event is not None:
                    self._tell(active, advance.event)
                reason = advance.reason
                is_last = reason is not None or n_tokens == len(predictions)
                if is_last or active.tokens[-1] != draft[n_tokens - 1]:
                    break
                active.n_computed += 1
        except ProgramFailedError:
            raise
        except Exception as error:
            self._fail(active, _as_sentence(error, "the choice of a token"))
            return active.n_generated - n_before
        self.meters.tokens(active, n_tokens, now)
        n_drafted = len(predictions) - 1
        if n_drafted and self._speculation is not None:
            active.n_drafted += n_drafted
            active.n_accepted += n_tokens - 1
            self.meters.n_drafted_tokens += n_drafted
            self.meters.n_accepted_tokens += n_tokens - 1
            self._speculation.checked(active.slot, n_drafted, n_tokens - 1)
        if reason is not None:
            self._finish(active, reason)
        return n_tokens

    def _measure(self, seconds: float, n_rows: int, *, has_prompts: bool) -> None:
        """Keeps in mind what steps cost, but for the first one after loading, which touches its memory first."""
        if self._n_steps > self._first_step:
            self._cost.add(n_rows, seconds)
            if self._speculation is not None and not has_prompts:
                self._speculation.measured(n_rows, seconds)

    def _finish(self, active: ActiveRequest, reason: FinishReason) -> None:
        self._release(active)
        self.meters.n_finished[reason] += 1
        self._tell(active, active.finished(reason, self._clock()))

    def _fail(self, active: ActiveRequest, error: DllamaError) -> None:
        self._release(active)
        self.meters.n_failed += 1
        self._tell(active, active.failed(error, self._clock()))

    def _release(self, active: ActiveRequest) -> None:
        if self.running.get(active.slot) is active:
            del self.running[active.slot]
            self.slots[active.slot] = Slot(active.tokens[: active.n_computed], True, self._n_steps)

    def _tell(self, active: ActiveRequest, event: Event) -> None:
        try:
            active.on_event(event)
        except Exception:
            _log.exception("request %s: its receiver failed, so it is cancelled", active.request.request_id)
            active.cancelled = True


class _Guarded:
    """A program whose every failure is a ProgramFailedError."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self.graph: Graph = program.graph
        self.can_copy = isinstance(program, PrefixCopier)

    def copy_prefix(self, source: int, target: int, n_positions: int) -> None:
        try:
            cast(PrefixCopier, self._program).copy_prefix(source, target, n_positions)
        except Exception as error:
            raise _failure(error) from error

    def run(self, batch: Batch, exchange: ExchangeHandler | None = None) -> None:
        try:
            self._program.run(batch)
        except Exception as error:
            raise _failure(error) from error

    def buffer(self, name: str, n_rows: int) -> npt.NDArray[Any]:
        try:
            return self._program.buffer(name, n_rows)
        except Exception as error:
            raise _failure(error) from error


def _failure(error: Exception) -> ProgramFailedError:
    return ProgramFailedError(_as_sentence(error, "a step of the model"))


def _as_sentence(error: Exception, what: str) -> DllamaError:
    """The error for its user; one that nobody foresaw is logged in full."""
    if isinstance(error, DllamaError):
        return error
    _log.error("%s failed", what, exc_info=error)
    return DllamaError(f"{what} failed ({type(error).__name__}: {error})")
