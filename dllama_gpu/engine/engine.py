"""Many users at once on one program: requests come from any thread, one thread of the engine's own computes."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType

from dllama_gpu.engine.active import ActiveRequest, OnEvent
from dllama_gpu.engine.core import CoreOptions, EngineCore, ProgramFailedError
from dllama_gpu.engine.drafting import Drafter
from dllama_gpu.engine.errors import EngineUnavailableError, PromptTooLongError, QueueFullError
from dllama_gpu.engine.events import Event, FailedEvent, FinishedEvent
from dllama_gpu.engine.generation import EMPTY_PROMPT
from dllama_gpu.engine.recovery import Rebuild, Recovery
from dllama_gpu.engine.request import CompletionRequest
from dllama_gpu.engine.speculation import Speculation
from dllama_gpu.engine.statistics import EngineStatistics, SlotStatistics
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.batch import Program
from dllama_gpu.net.cluster_program import ClusterProgram
from dllama_gpu.net.messages import NodeStatistics
from dllama_gpu.tokenizer.tokenizer import Tokenizer

_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.05
_NODES_EVERY_SECONDS = 1.0
_NODES_WANTED_SECONDS = 5.0
_NODES_ALIVE_SECONDS = 10.0
_IDLE_SECONDS = 1.0
_MOST_FAILURES_IN_A_ROW = 3


@dataclass(frozen=True)
class EngineOptions:
    """Limits and habits of an engine.

    `max_queue` requests may wait beyond those that have slots. `step_seconds` is about how long prompts may hold up
    running texts in each step. After `recover_seconds` without a program that was lost, waiting requests fail; attempts
    to get one go on.
    """

    max_queue: int = 64
    step_seconds: float = 0.1
    recover_seconds: float = 60.0


class Ticket:
    """A submitted request."""

    def __init__(self, active: ActiveRequest, wake: Callable[[], None]) -> None:
        self._active = active
        self._wake = wake

    def cancel(self) -> None:
        """Ends the request with what it has, before the next step; its last event says CANCELLED. From any thread."""
        self._active.cancelled = True
        self._wake()


class Engine:
    """Runs requests on a program that nobody else uses. Use as a context manager, or `close` it.

    `rebuild` is called, in another thread, when the program failed; without it the program is expected to go on. It is
    called too when nothing runs and `is_better_possible`, asked once a second then, says yes. With a
    `drafter`, on the engine's thread, several tokens of a text are computed in one step where that pays.
    """

    def __init__(
        self,
        program: Program,
        tokenizer: Tokenizer,
        options: EngineOptions | None = None,
        *,
        rebuild: Rebuild | None = None,
        is_better_possible: Callable[[], bool] | None = None,
        drafter: Drafter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options = options or EngineOptions()
        self._tokenizer = tokenizer
        self._clock = clock
        self._rebuild = rebuild
        self._is_better_possible = is_better_possible
        self._cluster = program if isinstance(program, ClusterProgram) else None
        speculation = None if drafter is None else Speculation(drafter)
        self._core = EngineCore(program, CoreOptions(self.options.step_seconds), speculation, clock=clock)
        self._meters = self._core.meters
        self._wake = threading.Condition()
        self._inbox: list[ActiveRequest] = []
        self._n_open = 0
        self._n_submitted = 0
        self._n_refused = 0
        self._closing = False
        self._recovery: Recovery | None = None
        self._state = "ready"
        self._message: str | None = None
        self._lost_at = 0.0
        self._nodes: tuple[NodeStatistics, ...] = ()
        self._nodes_at = self._nodes_wanted_at = -_NODES_WANTED_SECONDS
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def seq_len(self) -> int:
        """Positions of a slot: a prompt and what is generated after it must fit."""
        return self._core.seq_len

    @property
    def n_slots(self) -> int:
        """Requests that run at the same time."""
        return len(self._core.slots)

    def submit(self, request: CompletionRequest, on_event: OnEvent) -> Ticket:
        """Puts a request in the queue. From any thread.

        `on_event` is called on the engine's thread with each event, the last being a FinishedEvent or a FailedEvent;
        it must return soon, as all users wait meanwhile. If it raises, the request is cancelled.

        Raises QueueFullError, EngineUnavailableError, PromptTooLongError, or DllamaError for an empty prompt or ids
        that the model does not have.
        """
        self._check(request)

        def told(event: Event) -> None:
            if isinstance(event, FinishedEvent | FailedEvent):
                with self._wake:
                    self._n_open -= 1
            on_event(event)

        active = ActiveRequest(request, self._tokenizer, told, self._clock())
        with self._wake:
            if self._closing or self._state == "down":
                self._n_refused += 1
                raise EngineUnavailableError(self._message or "the server is shutting down; try again later", 5.0)
            if self._n_open >= self.n_slots + self.options.max_queue:
                self._n_refused += 1
                raise QueueFullError(
                    f"{self._n_open} requests are running or waiting, and no more than {self.n_slots} running and "
                    f"{self.options.max_queue} waiting are taken; try again later",
                    self._retry_after(),
                )
            self._n_open += 1
            self._n_submitted += 1
            self._inbox.append(active)
            self._wake.notify()
        return Ticket(active, self._notify)

    def stream(self, request: CompletionRequest) -> Iterator[Event]:
        """The events of a request as they come, for a caller that may block. It is cancelled if the caller stops early.

        Raises what `submit` raises.
        """
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        ticket = self.submit(request, events.put)

        def wait() -> Iterator[Event]:
            try:
                while True:
                    event = events.get()
                    yield event
                    if isinstance(event, FinishedEvent | FailedEvent):
                        return
            finally:
                ticket.cancel()

        return wait()

    def statistics(self) -> EngineStatistics:
        """A snapshot. From any thread; figures of other nodes are fetched in the background and may lag a little."""
        self._nodes_wanted_at = self._clock()
        self._notify()
        core, meters = self._core, self._meters
        running = dict(core.running)
        held = {slot: (active.n_computed, active.request.request_id) for slot, active in running.items()}
        slots = tuple(
            SlotStatistics(*held[number]) if number in held else SlotStatistics(len(slot.tokens), None)
            for number, slot in enumerate(core.slots)
        )
        first_token, inter_token, queued = meters.histograms()
        prefill_rate, decode_rate = meters.rates()
        with self._wake:
            n_open, state, message = self._n_open, self._state, self._message
        return EngineStatistics(
            state=state,
            message=message,
            uptime_seconds=self._clock() - meters.started_at,
            seq_len=core.seq_len,
            max_queue=self.options.max_queue,
            n_running=len(running),
            n_queued=max(0, n_open - len(running)),
            slots=slots,
            n_submitted=self._n_submitted,
            n_refused=self._n_refused,
            n_failed=meters.n_failed,
            n_finished=dict(meters.n_finished),
            n_prompt_tokens=meters.n_prompt_tokens,
            n_cached_tokens=meters.n_cached_tokens,
            n_generated_tokens=meters.n_generated_tokens,
            n_drafted_tokens=meters.n_drafted_tokens,
            n_accepted_tokens=meters.n_accepted_tokens,
            n_steps=meters.n_steps,
            step_seconds=meters.step_seconds,
            n_recoveries=meters.n_recoveries,
            recovery_seconds=meters.recovery_seconds,
            first_token_seconds=first_token,
            inter_token_seconds=inter_token,
            queue_seconds=queued,
            decode_tokens_per_second=decode_rate,
            prefill_tokens_per_second=prefill_rate,
            nodes=self._nodes,
        )

    def close(self) -> None:
        """Fails what still runs or waits, and ends the engine's thread after the step under way."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, request: CompletionRequest) -> None:
        if not request.prompt:
            raise DllamaError(EMPTY_PROMPT)
        if len(request.prompt) > self.seq_len:
            raise PromptTooLongError(len(request.prompt), self.seq_len)
        vocab_size = self._core.vocab_size
        wrong = next((token for token in request.prompt if not 0 <= token < vocab_size), None)
        if wrong is not None:
            raise DllamaError(f"the prompt has a token {wrong}, but the model's ids are 0 to {vocab_size - 1}")

    def _retry_after(self) -> float:
        """A guess when a place in the queue will be free."""
        done = sum(self._meters.n_finished.values())
        each = self._meters.step_seconds / done if done else 5.0  # idle hours say nothing
        return min(max(each, 1.0), 60.0)

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify()

    def _work(self) -> None:
        n_failures = 0
        while True:
            with self._wake:
                while not (
                    self._closing
                    or self._inbox
                    or self._core.has_work
                    or self._recovery
                    or self._nodes_due()
                    or self._can_be_better()
                ):
                    looks = self._cluster is not None or self._is_better_possible is not None
                    self._wake.wait(_IDLE_SECONDS if looks else None)
                arrived, self._inbox, is_closing = self._inbox, [], self._closing  # later ones are refused
            for active in arrived:
                self._core.add(active)
            if is_closing:
                break
            try:
                if self._recovery is not None:
                    self._await_recovery(self._recovery)
                elif self._core.has_work:
                    self._core.step()
                    n_failures = 0
                elif self._can_be_better():
                    self._build_anew("a worker is back; the model is shared out anew")
                if self._recovery is None and self._nodes_due():
                    self._fetch_nodes()
            except ProgramFailedError as failure:
                n_failures += 1
                self._lost(failure.cause, give_up=n_failures >= _MOST_FAILURES_IN_A_ROW)
            except Exception as error:  # a mistake of ours must not leave users waiting without a word
                _log.exception("the engine made a mistake; its running requests fail")
                self._core.fail_all(DllamaError(f"the engine failed ({type(error).__name__}: {error})"))
        if self._recovery is not None:
            self._recovery.stop()
        self._core.fail_all(EngineUnavailableError("the server is shutting down; try again later", 5.0))

    def _lost(self, cause: DllamaError, *, give_up: bool) -> None:
        """The program failed: begins to build another one, if that is possible."""
        if self._rebuild is None or give_up:
            self._core.fail_all(cause)
        if self._rebuild is None:
            return
        self._build_anew(str(cause))

    def _can_be_better(self) -> bool:
        return self._rebuild is not None and self._is_better_possible is not None and self._is_better_possible()

    def _build_anew(self, why: str) -> None:
        assert self._rebuild is not None
        _log.warning("building the program anew: %s", why)
        with self._wake:
            self._state, self._message = "recovering", why
        self._core.drop_program()
        self._cluster, self._nodes = None, ()
        self._lost_at = self._clock()
        self._recovery = Recovery(self._rebuild)

    def _await_recovery(self, recovery: Recovery) -> None:
        self._core.end_early()
        if recovery.done.wait(_POLL_SECONDS) and recovery.program is not None:
            seconds = self._clock() - self._lost_at
            _log.warning("recovered after %.1f s", seconds)
            self._core.use_program(recovery.program)
            self._cluster = recovery.program if isinstance(recovery.program, ClusterProgram) else None
            self._meters.n_recoveries += 1
            self._meters.recovery_seconds += seconds
            self._recovery = None
            with self._wake:
                self._state, self._message = "ready", None
        elif self._clock() - self._lost_at > self.options.recover_seconds:
            message = f"the model cannot run at the moment: {recovery.problem or self._message}"
            with self._wake:
                self._state, self._message = "down", message
            self._core.fail_all(EngineUnavailableError(message, 10.0))

    def _nodes_due(self) -> bool:
        """Whether it is time to ask the nodes what they did: often if somebody looks, or just to hear from them."""
        if self._cluster is None:
            return False
        now = self._clock()
        is_watched = now - self._nodes_wanted_at < _NODES_WANTED_SECONDS
        return now - self._nodes_at >= (_NODES_EVERY_SECONDS if is_watched else _NODES_ALIVE_SECONDS)

    def _fetch_nodes(self) -> None:
        if self._cluster is None:
            return
        self._nodes_at = self._clock()
        try:
            self._nodes = tuple(self._cluster.statistics())
        except DllamaError as error:
            raise ProgramFailedError(error) from error
