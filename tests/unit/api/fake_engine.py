"""An engine that says what a test tells it to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from dllama_gpu.engine.events import (
    Event,
    FailedEvent,
    FinishedEvent,
    FinishReason,
    StartedEvent,
    Timings,
    TokenEvent,
    TokenLogprob,
    Usage,
)
from dllama_gpu.engine.request import CompletionRequest
from dllama_gpu.engine.statistics import EngineStatistics, Observations, SlotStatistics
from dllama_gpu.errors import DllamaError
from dllama_gpu.net.messages import NodeStatistics
from dllama_gpu.tokenizer.tokenizer import Tokenizer


@dataclass
class Script:
    """What the engine does with requests."""

    answer: str | list[str] = "Hello there, friend."
    """One text for all, or one for each request in turn."""
    hidden_token: int | None = None
    """A token without text that comes first."""
    reason: FinishReason = FinishReason.END_TOKEN
    rest: str = ""
    refusal: DllamaError | None = None
    refuse_from: int = 0
    """The number of the first request that is refused with `refusal`."""
    failure: DllamaError | None = None
    """How each answer ends after its tokens."""
    never_ends: bool = False
    """After its tokens a request waits until it is cancelled."""


@dataclass
class FakeTicket:
    cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        self.cancelled.set()


class FakeEngine:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.script = Script()
        self.requests: list[CompletionRequest] = []
        self.tickets: list[FakeTicket] = []
        self.state = "ready"
        self.nodes: tuple[NodeStatistics, ...] = ()

    def reset(self) -> None:
        self.script = Script()
        self.requests.clear()
        self.tickets.clear()
        self.state, self.nodes = "ready", ()

    @property
    def last(self) -> CompletionRequest:
        return self.requests[-1]

    def submit(self, request: CompletionRequest, on_event: Callable[[Event], None]) -> FakeTicket:
        script = self.script
        number = len(self.requests)
        if script.refusal is not None and number >= script.refuse_from:
            raise script.refusal
        self.requests.append(request)
        ticket = FakeTicket()
        self.tickets.append(ticket)
        answer = script.answer if isinstance(script.answer, str) else script.answer[number % len(script.answer)]
        threading.Thread(target=self._run, args=(script, request, answer, ticket, on_event), daemon=True).start()
        return ticket

    def _run(
        self,
        script: Script,
        request: CompletionRequest,
        answer: str,
        ticket: FakeTicket,
        on_event: Callable[[Event], None],
    ) -> None:
        on_event(StartedEvent(3))
        tokens = self._tokenizer.encode(answer, add_bos=False, parse_special=False)
        stream = self._tokenizer.stream()
        if script.hidden_token is not None:
            on_event(TokenEvent(script.hidden_token, ""))
        for token in tokens:
            wanted = request.n_logprobs
            top = tuple(TokenLogprob(other, -0.5 - other) for other in range(wanted or 0))
            on_event(TokenEvent(token, stream.push(token), None if wanted is None else -0.25, top))
        usage = Usage(len(request.prompt), len(tokens), 3)
        timings = Timings(0.0, 0.1, 0.2)
        if script.never_ends:
            ticket.cancelled.wait(30)
            on_event(FinishedEvent(FinishReason.CANCELLED, "", usage, timings))
        elif script.failure is not None:
            on_event(FailedEvent(script.failure, usage, timings))
        else:
            on_event(FinishedEvent(script.reason, script.rest, usage, timings))

    def statistics(self) -> EngineStatistics:
        seen = Observations()
        seen.add(0.02, 3)
        return EngineStatistics(
            state=self.state,
            message=None if self.state == "ready" else "a worker was lost",
            uptime_seconds=12.5,
            seq_len=512,
            max_queue=64,
            n_running=1,
            n_queued=2,
            slots=(SlotStatistics(10, "req-1"), SlotStatistics(0, None)),
            n_submitted=7,
            n_refused=1,
            n_failed=0,
            n_finished={FinishReason.END_TOKEN: 4, FinishReason.MAX_TOKENS: 2},
            n_prompt_tokens=100,
            n_cached_tokens=40,
            n_generated_tokens=60,
            n_drafted_tokens=10,
            n_accepted_tokens=5,
            n_steps=30,
            step_seconds=1.5,
            n_recoveries=0,
            recovery_seconds=0.0,
            first_token_seconds=seen.snapshot(),
            inter_token_seconds=seen.snapshot(),
            queue_seconds=seen.snapshot(),
            decode_tokens_per_second=41.5,
            prefill_tokens_per_second=300.0,
            nodes=self.nodes,
        )
