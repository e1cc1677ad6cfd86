from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest

from dllama_gpu.engine.engine import Engine, EngineOptions
from dllama_gpu.engine.errors import EngineUnavailableError, PromptTooLongError, QueueFullError
from dllama_gpu.engine.events import Event, FailedEvent, FinishedEvent, FinishReason, StartedEvent, TokenEvent
from dllama_gpu.engine.request import CompletionRequest
from dllama_gpu.engine.sampling import SamplingParams
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.batch import Batch
from dllama_gpu.tokenizer.t_vocabulary import tokenizer_from_t_file
from tests.support.tiny import tiny_tokenizer
from tests.unit.engine.fake_program import FakeProgram

GREEDY = SamplingParams(temperature=0)
VOCAB_SIZE = 258
TOKENIZER = tokenizer_from_t_file(tiny_tokenizer())
PATIENCE = 60.0


def counts_up(tokens: Sequence[int]) -> npt.NDArray[np.float32]:
    """The next token is the last one plus 1, so `a` is followed by `b`."""
    logits = np.zeros(VOCAB_SIZE, np.float32)
    logits[(tokens[-1] + 1) % VOCAB_SIZE] = 5.0
    return logits


class GatedProgram(FakeProgram):
    """Waits before each step until it may go on; raises what it is told to."""

    def __init__(self, *, n_slots: int = 2, is_open: bool = True) -> None:
        super().__init__(counts_up, vocab_size=VOCAB_SIZE, max_rows=8, seq_len=64, n_slots=n_slots)
        self.gate = threading.Event()
        self.begun = threading.Event()
        self.failure: Exception | None = None
        if is_open:
            self.gate.set()

    def run(self, batch: Batch) -> None:
        self.begun.set()
        assert self.gate.wait(PATIENCE)
        if self.failure is not None:
            raise self.failure
        super().run(batch)


def request(text: str = "abc", max_tokens: int = 4, **more: object) -> CompletionRequest:
    return CompletionRequest(tuple(TOKENIZER.encode(text)), max_tokens, **{"sampling": GREEDY, **more})  # type: ignore[arg-type]


class Listener:
    """Keeps the events of one request."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.over = threading.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, FinishedEvent | FailedEvent):
            self.over.set()

    @property
    def last(self) -> Event:
        assert self.over.wait(PATIENCE), "the request never ended"
        return self.events[-1]

    @property
    def text(self) -> str:
        last = self.last
        assert isinstance(last, FinishedEvent)
        return "".join(event.text for event in self.events if isinstance(event, TokenEvent)) + last.text


def run(engine: Engine, wanted: CompletionRequest) -> Listener:
    listener = Listener()
    engine.submit(wanted, listener)
    assert listener.over.wait(PATIENCE)
    return listener


def test_a_request_starts_gives_its_tokens_and_finishes() -> None:
    with Engine(GatedProgram(), TOKENIZER) as engine:
        listener = run(engine, request("abc", 4))
    assert listener.text == "defg"
    assert [type(event) for event in listener.events] == [StartedEvent, *[TokenEvent] * 4, FinishedEvent]
    last = listener.last
    assert isinstance(last, FinishedEvent)
    assert (last.reason, last.reason.openai_name) == (FinishReason.MAX_TOKENS, "length")
    assert (last.usage.n_prompt_tokens, last.usage.n_generated_tokens) == (3, 4)
    assert last.timings.first_token_seconds is not None


def test_an_end_token_is_no_part_of_the_text_but_counts_as_generated() -> None:
    with Engine(GatedProgram(), TOKENIZER) as engine:
        listener = run(engine, request("abc", 20, end_ids=frozenset(TOKENIZER.encode("g"))))
    assert listener.text == "def"
    assert isinstance(listener.last, FinishedEvent)
    assert listener.last.reason is FinishReason.END_TOKEN
    assert listener.last.usage.n_generated_tokens == 4


def test_a_stop_text_never_shows_not_even_in_part() -> None:
    with Engine(GatedProgram(), TOKENIZER) as engine:
        listener = run(engine, request("abc", 20, stop=("ghi", "hx")))
    assert listener.text == "def"
    assert isinstance(listener.last, FinishedEvent)
    assert (listener.last.reason, listener.last.stop_text) == (FinishReason.STOP_TEXT, "ghi")


def test_a_beginning_of_a_stop_text_is_shown_in_the_end_if_the_rest_does_not_come() -> None:
    with Engine(GatedProgram(), TOKENIZER) as engine:
        listener = run(engine, request("abc", 4, stop=("fgx", "gh")))
    assert listener.text == "defg"


def test_a_cancelled_request_ends_with_what_it_has_and_frees_its_slot() -> None:
    program = GatedProgram(n_slots=1, is_open=False)
    with Engine(program, TOKENIZER) as engine:
        first, second = Listener(), Listener()
        ticket = engine.submit(request("abc", 50), first)
        engine.submit(request("x", 2), second)
        assert program.begun.wait(PATIENCE)
        ticket.cancel()
        program.gate.set()
        assert isinstance(first.last, FinishedEvent)
        assert first.last.reason is FinishReason.CANCELLED
        assert second.text == "yz"
        assert len(first.events) <= 3


def test_a_request_that_waits_in_the_queue_can_be_cancelled() -> None:
    program = GatedProgram(n_slots=1, is_open=False)
    with Engine(program, TOKENIZER) as engine:
        first, second = Listener(), Listener()
        engine.submit(request("abc", 3), first)
        assert program.begun.wait(PATIENCE)
        engine.submit(request("x", 2), second).cancel()
        program.gate.set()
        assert isinstance(second.last, FinishedEvent)
        assert second.last.reason is FinishReason.CANCELLED
        assert len(second.events) == 1
        assert first.text == "def"


def test_a_full_queue_refuses_and_takes_requests_again_later() -> None:
    program = GatedProgram(n_slots=1, is_open=False)
    with Engine(program, TOKENIZER, EngineOptions(max_queue=1)) as engine:
        listeners = [Listener(), Listener()]
        for listener in listeners:
            engine.submit(request(), listener)
        with pytest.raises(QueueFullError, match="no more than 1 running and 1 waiting") as refused:
            engine.submit(request(), Listener())
        assert refused.value.retry_after_seconds >= 1
        program.gate.set()
        assert [listener.text for listener in listeners] == ["defg", "defg"]
        assert run(engine, request()).text == "defg"
        assert engine.statistics().n_refused == 1


def test_time_that_is_up_ends_a_request_with_what_it_has() -> None:
    now = 0.0

    def slow_clock() -> float:
        nonlocal now
        now += 0.5
        return now

    with Engine(GatedProgram(), TOKENIZER, clock=slow_clock) as engine:
        listener = run(engine, request("abc", 50, timeout_seconds=20.0))
    assert isinstance(listener.last, FinishedEvent)
    assert listener.last.reason is FinishReason.TIMED_OUT


@pytest.mark.parametrize(
    ("prompt", "kind", "message"),
    [
        ((), DllamaError, "the prompt is empty"),
        ((1,) * 65, PromptTooLongError, "has 65 tokens, but the context holds 64"),
        ((1, VOCAB_SIZE), DllamaError, "a token 258, but the model's ids are 0 to 257"),
    ],
)
def test_a_wrong_prompt_is_refused(prompt: tuple[int, ...], kind: type[DllamaError], message: str) -> None:
    with Engine(GatedProgram(), TOKENIZER) as engine, pytest.raises(kind, match=message):
        engine.submit(CompletionRequest(prompt, 1), Listener())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"max_tokens": 0}, "must be at least 1"),
        ({"max_tokens": 1, "stop": ("a", "")}, "a stop text is empty"),
        ({"max_tokens": 1, "n_logprobs": 21}, "must be 0 to 20"),
    ],
)
def test_a_wrong_request_is_refused(more: dict[str, object], message: str) -> None:
    with pytest.raises(DllamaError, match=message):
        CompletionRequest((1,), **more)  # type: ignore[arg-type]


def test_a_receiver_that_fails_ends_its_request_and_no_other() -> None:
    def fails(event: Event) -> None:
        raise ValueError("no")

    with Engine(GatedProgram(n_slots=1), TOKENIZER) as engine:
        engine.submit(request("abc", 60), fails)
        assert run(engine, request()).text == "defg"
        assert engine.statistics().n_finished[FinishReason.CANCELLED] == 1


class OnlyThese:
    """Allows the letters of a word in their order, and is complete after the last; breaks when told to."""

    def __init__(self, word: str, breaks_at: int = 99) -> None:
        self.tokens = TOKENIZER.encode(word)
        self.n_done = 0
        self.breaks_at = breaks_at

    def allowed(self) -> npt.NDArray[np.bool_]:
        if self.n_done == self.breaks_at:
            raise ValueError("a broken grammar")
        mask = np.zeros(200, bool)
        mask[self.tokens[self.n_done]] = True
        return mask

    def advance(self, token: int) -> None:
        assert token == self.tokens[self.n_done]
        self.n_done += 1

    @property
    def is_complete(self) -> bool:
        return self.n_done == len(self.tokens)


@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams(temperature=1.0, presence_penalty=1.0)])
def test_a_constraint_decides_the_tokens_and_ends_the_text(sampling: SamplingParams) -> None:
    with Engine(GatedProgram(), TOKENIZER) as engine:
        listener = run(engine, request("abc", 50, sampling=sampling, constraint=OnlyThese("yes!")))
    assert listener.text == "yes!"
    assert isinstance(listener.last, FinishedEvent)
    assert listener.last.reason is FinishReason.CONSTRAINT


def test_a_constraint_that_breaks_fails_its_request_and_no_other() -> None:
    with Engine(GatedProgram(n_slots=2), TOKENIZER) as engine:
        other = Listener()
        engine.submit(request("abc", 20), other)
        last = run(engine, request("abc", 50, constraint=OnlyThese("yes!", breaks_at=2))).last
        assert isinstance(last, FailedEvent)
        assert "a broken grammar" in str(last.error)
        assert other.text == "".join(chr(ord("d") + i) for i in range(20))


def test_a_program_that_fails_fails_its_requests_and_the_engine_lives_on() -> None:
    program = GatedProgram()
    with Engine(program, TOKENIZER) as engine:
        program.failure = DllamaError("out of order")
        last = run(engine, request()).last
        assert isinstance(last, FailedEvent)
        assert str(last.error) == "out of order"
        program.failure = None
        assert run(engine, request()).text == "defg"


def test_a_lost_program_is_built_anew_and_requests_go_on_where_they_were() -> None:
    programs = [GatedProgram(), GatedProgram()]
    attempts: list[int] = []

    def rebuild(attempt: int) -> FakeProgram:
        attempts.append(attempt)
        if attempt == 0:
            raise DllamaError("not yet")
        return programs[1]

    with Engine(programs[0], TOKENIZER, rebuild=rebuild) as engine:
        listener = Listener()

        def breaks(event: Event) -> None:
            listener(event)
            if len(listener.events) == 4:
                programs[0].failure = DllamaError("the worker left")

        engine.submit(request("abc", 10), breaks)
        assert listener.text == "defghijklm"
        assert attempts == [0, 1]
        assert programs[1].batches[0].tokens.tolist() == TOKENIZER.encode("abcdef")
        statistics = engine.statistics()
        assert (statistics.state, statistics.n_recoveries) == ("ready", 1)


def test_a_better_program_is_built_when_nothing_runs() -> None:
    programs = [GatedProgram(n_slots=1, is_open=False), GatedProgram(n_slots=2)]
    is_better_possible = threading.Event()

    def rebuild(attempt: int) -> FakeProgram:
        is_better_possible.clear()
        return programs[1]

    with Engine(programs[0], TOKENIZER, rebuild=rebuild, is_better_possible=is_better_possible.is_set) as engine:
        listener = Listener()
        engine.submit(request("abc", 4), listener)
        is_better_possible.set()
        programs[0].gate.set()
        assert listener.text == "defg"
        assert len(programs[0].batches) == 4
        wait_until(lambda: engine.n_slots == 2)
        assert run(engine, request()).text == "defg"
        assert engine.statistics().n_failed == 0


def test_when_nothing_can_be_built_requests_fail_and_later_ones_are_refused_until_it_can() -> None:
    broken, whole = GatedProgram(), GatedProgram()
    may_build: queue.SimpleQueue[None] = queue.SimpleQueue()
    built = threading.Event()

    def rebuild(attempt: int) -> FakeProgram:
        if attempt < 2:
            raise DllamaError("nobody there")
        may_build.get(timeout=PATIENCE)
        built.set()
        return whole

    broken.failure = DllamaError("the worker left")
    with Engine(broken, TOKENIZER, EngineOptions(recover_seconds=0.01), rebuild=rebuild) as engine:
        last = run(engine, request()).last
        assert isinstance(last, FailedEvent)
        with pytest.raises(EngineUnavailableError, match="cannot run at the moment"):
            engine.submit(request(), Listener())
        assert engine.statistics().state == "down"
        may_build.put(None)
        wait_until(lambda: engine.statistics().state == "ready")
        assert run(engine, request()).text == "defg"


def test_a_cancelled_request_does_not_wait_for_the_recovery() -> None:
    program = GatedProgram()
    program.failure = DllamaError("the worker left")
    go_on = threading.Event()

    def rebuild(attempt: int) -> FakeProgram:
        assert go_on.wait(PATIENCE)
        return GatedProgram()

    with Engine(program, TOKENIZER, rebuild=rebuild) as engine:
        listener = Listener()
        ticket = engine.submit(request(), listener)
        wait_until(lambda: engine.statistics().state == "recovering")
        ticket.cancel()
        assert isinstance(listener.last, FinishedEvent)
        assert listener.last.reason is FinishReason.CANCELLED
        go_on.set()


def test_closing_fails_what_runs_and_waits_and_refuses_the_rest() -> None:
    program = GatedProgram(n_slots=1, is_open=False)
    engine = Engine(program, TOKENIZER)
    listeners = [Listener(), Listener()]
    for listener in listeners:
        engine.submit(request("abc", 60), listener)
    assert program.begun.wait(PATIENCE)
    closing = threading.Thread(target=engine.close)
    closing.start()
    program.gate.set()
    closing.join(PATIENCE)
    assert all(isinstance(listener.last, FailedEvent) for listener in listeners)
    with pytest.raises(EngineUnavailableError):
        engine.submit(request(), Listener())


def test_a_stream_that_is_left_early_cancels_its_request() -> None:
    with Engine(GatedProgram(n_slots=1), TOKENIZER) as engine:
        events = engine.stream(request("abc", 60))
        assert isinstance(next(events), StartedEvent)
        assert isinstance(next(events), TokenEvent)
        events.close()  # type: ignore[attr-defined]
        assert "".join(getattr(event, "text", "") for event in engine.stream(request())) == "defg"
        assert engine.statistics().n_running == 0


def test_statistics_say_what_runs_and_what_was_done() -> None:
    program = GatedProgram(n_slots=2)
    with Engine(program, TOKENIZER) as engine:
        run(engine, request("abc", 4))
        run(engine, request("abcxyz", 2))
        before = engine.statistics()
        program.gate.clear()
        program.begun.clear()
        listeners = [Listener() for _ in range(3)]
        for number, listener in enumerate(listeners):
            engine.submit(request(f"{number}", 5, request_id=f"r{number}"), listener)
            # The first one's step stands still while the others come.
            assert program.begun.wait(PATIENCE)
        during = engine.statistics()
        program.gate.set()
        assert all(listener.over.wait(PATIENCE) for listener in listeners)
    assert (before.n_running, before.n_queued, before.n_submitted) == (0, 0, 2)
    assert (before.n_prompt_tokens, before.n_cached_tokens, before.n_generated_tokens) == (9, 3, 6)
    assert before.first_token_seconds.count == 2
    assert before.inter_token_seconds.count == 4
    assert (during.n_running, during.n_queued) == (1, 2)
    assert {slot.request_id for slot in during.slots} == {"r0", None}


def wait_until(condition: Callable[[], bool]) -> None:
    waiting = threading.Event()
    for _ in range(int(PATIENCE / 0.005)):
        if condition():
            return
        waiting.wait(0.005)
    raise AssertionError("waited in vain")
