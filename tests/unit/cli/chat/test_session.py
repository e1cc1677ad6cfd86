"""Whole chats with a model that is a function of its tokens, on a surface that a test holds in its hands."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from dllama_gpu.cli.chat.answering import Answering
from dllama_gpu.cli.chat.conversation import Conversation, Turn
from dllama_gpu.cli.chat.interrupt import StopWish
from dllama_gpu.cli.chat.session import Session
from dllama_gpu.cli.chat.transcript import read_transcript
from dllama_gpu.engine.engine import Engine
from dllama_gpu.engine.sampling import SamplingParams
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.batch import Batch
from dllama_gpu.tokenizer.chat_template import ChatTemplate
from dllama_gpu.tokenizer.t_vocabulary import tokenizer_from_t_file
from dllama_gpu.tokenizer.tokenizer import Tokenizer
from tests.support.tiny import tiny_tokenizer
from tests.unit.engine.fake_program import FakeProgram

END = 257
SEQ_LEN = 400


def echoes(tokens: Sequence[int]) -> npt.NDArray[np.float32]:
    """Answers with the last user's message in capitals and ends."""
    text = bytes(token if token < 256 else 0 for token in tokens).decode("latin-1")
    question, _, answer = text.rpartition("user\n")[2].partition("\0\n\0assistant\n")
    wanted = question.upper()[len(answer) :]
    logits = np.zeros(258, np.float32)
    logits[ord(wanted[0]) if wanted else END] = 9
    return logits


class Script:
    """A surface that reads a script; keeps what it was shown."""

    def __init__(self, entries: Sequence[str]) -> None:
        self.entries = list(entries)
        self.answers: list[str] = []
        self.told: list[str] = []
        self.complaints: list[str] = []
        self.statuses: list[str] = []
        self._piece = ""
        self.wish = StopWish()

    def read(self, status: str) -> str | None:
        self.statuses.append(status)
        return self.entries.pop(0) if self.entries else None

    def tell(self, text: str) -> None:
        self.told.append(text)

    def complain(self, sentence: str) -> None:
        self.complaints.append(sentence)

    def stoppable(self) -> AbstractContextManager[StopWish]:
        return nullcontext(self.wish)

    def waiting(self) -> AbstractContextManager[None]:
        return nullcontext()

    def write(self, piece: str) -> None:
        self._piece += piece

    def end_answer(self) -> None:
        self.answers.append(self._piece)
        self._piece = ""


class Interruption(StopWish):
    """Ctrl-C while a program is at its step `n_steps`, which ends when the request has been cancelled."""

    def __init__(self, program: FakeProgram, n_steps: int) -> None:
        super().__init__()
        self._reached, self._cancelled = threading.Event(), threading.Event()
        self._n_presses = 0
        usual = program.run

        def held(batch: Batch) -> None:
            if len(program.batches) == n_steps:
                self._reached.set()
                assert self._cancelled.wait(30)
            usual(batch)

        program.run = held  # type: ignore[method-assign]

    def is_pressed(self) -> bool:
        if self._reached.is_set() and not self._cancelled.is_set():
            self._n_presses += 1
            if self._n_presses == 2:  # what the first one led to is done
                self._cancelled.set()
            return True
        return False


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizer_from_t_file(tiny_tokenizer())


Start = Callable[..., tuple[Session, Script, FakeProgram]]


@pytest.fixture
def start(tokenizer: Tokenizer) -> Iterator[Start]:
    with ExitStack() as engines:

        def make(
            *entries: str,
            logits_of: Callable[[Sequence[int]], npt.NDArray[np.float32]] = echoes,
            seq_len: int = SEQ_LEN,
            steps: int | None = None,
            system: str | None = None,
        ) -> tuple[Session, Script, FakeProgram]:
            program = FakeProgram(logits_of, vocab_size=258, max_rows=16, seq_len=seq_len)
            engine = engines.enter_context(Engine(program, tokenizer))
            template = ChatTemplate.for_tokenizer(tokenizer)
            answering = Answering(engine, tokenizer, template, SamplingParams(temperature=0, seed=1), steps)
            surface = Script(entries)
            return Session(answering, surface, Conversation(system)), surface, program

        yield make


def n_computed(program: FakeProgram) -> int:
    return sum(len(batch.tokens) for batch in program.batches)


def test_messages_are_answered_until_the_input_ends(start: Start) -> None:
    session, surface, _ = start("good day", "", "how\nare you?")
    assert session.run() == 0
    assert surface.answers == ["GOOD DAY", "HOW\nARE YOU?"]
    assert session.conversation.turns == (Turn("good day", "GOOD DAY"), Turn("how\nare you?", "HOW\nARE YOU?"))


def test_a_growing_conversation_computes_only_what_is_new(start: Start, tokenizer: Tokenizer) -> None:
    session, surface, program = start("first question", "second")
    session.run()
    template = ChatTemplate.for_tokenizer(tokenizer)
    whole = tokenizer.encode(template.render(session.conversation.messages(), add_generation_prompt=False))
    assert surface.answers == ["FIRST QUESTION", "SECOND"]
    assert n_computed(program) == len(whole) - len("<\n")  # no need to compute the end of the last answer


def test_the_same_text_comes_with_and_without_what_was_kept(start: Start) -> None:
    def hashes(tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        logits = np.zeros(258, np.float32)
        logits[97 + sum(token * i for i, token in enumerate(tokens)) % 26] = 5
        return logits

    long, kept, _ = start("a", "b", "c", logits_of=hashes, steps=10)
    long.run()
    for n_turns in range(3):
        fresh, shown, _ = start(logits_of=hashes, steps=10)
        fresh.conversation = Conversation(None, long.conversation.turns[:n_turns])
        shown.entries.append(long.conversation.turns[n_turns].question)
        fresh.run()
        assert shown.answers == [kept.answers[n_turns]]


def test_reset_forgets_and_keeps_the_system_message(start: Start) -> None:
    session, surface, _ = start("a", "/reset", "b", system="s")
    session.run()
    assert session.conversation == Conversation("s", (Turn("b", "B"),))
    assert surface.told == ["a new conversation, with the system message"]
    assert surface.statuses[2] == f"context 0 of {SEQ_LEN}"


def test_the_system_message_can_be_seen_set_and_removed(start: Start) -> None:
    session, surface, program = start("/system", "/system Be kind.", "/system", "x", '/system ""', "/system")
    session.run()
    assert surface.told == [
        "there is no system message",
        "the system message is set",
        "Be kind.",
        "the system message is gone",
        "there is no system message",
    ]
    assert "Be kind." in bytes(int(t) for t in program.batches[0].tokens if t < 256).decode() + "".join(
        bytes(int(t) for t in batch.tokens if t < 256).decode() for batch in program.batches[1:]
    )
    assert session.conversation.system is None


def test_a_saved_conversation_is_gone_on_with(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "my chat.json"
    session, surface, _ = start("a", f"/save {file}", "b", f"/save '{file}'", system="s")
    assert session.run() == 0
    assert surface.told == [f"saved 1 turn in {file}", f"saved 2 turns in {file}"]
    other, shown, _ = start(f"/load {file}", "c", f"/save {file}")
    assert other.run() == 0
    assert shown.told[0] == f"loaded 2 turns from {file}"
    assert other.conversation == Conversation("s", (Turn("a", "A"), Turn("b", "B"), Turn("c", "C")))
    assert read_transcript(file) == other.conversation


def test_a_file_of_others_is_not_replaced(start: Start, tmp_path: Path) -> None:
    (tmp_path / "chat.json").write_text("mine")
    session, surface, _ = start("a", f"/save {tmp_path / 'chat.json'}", "b")
    assert session.run() == 1
    assert "exists already" in surface.complaints[0]
    assert surface.answers == ["A", "B"]
    assert (tmp_path / "chat.json").read_text() == "mine"


def test_retry_answers_the_last_message_again(start: Start) -> None:
    session, surface, _ = start("/retry", "a", "b", "/retry")
    session.run()
    assert surface.complaints == ["there is no message yet that could be answered again"]
    assert surface.answers == ["A", "B", "B"]
    assert session.conversation.turns == (Turn("a", "A"), Turn("b", "B"))


def test_quit_ends_before_the_input_does(start: Start) -> None:
    session, surface, _ = start("/quit", "a")
    assert session.run() == 0
    assert surface.answers == []


def test_statistics_tell_what_was_kept(start: Start) -> None:
    session, surface, _ = start("/stats", "one", "two", "/stats")
    session.run()
    before, after = surface.told
    assert re.search(rf"^context +0 of {SEQ_LEN} positions are in use$", before, re.MULTILINE)
    assert "none yet" in before
    assert re.search(r"^conversation 2 turns$", after, re.MULTILINE)
    kept, computed = re.search(r"tokens, (\d+) of them kept from before, (\d+) computed", after).groups()  # type: ignore[union-attr]
    assert int(kept) > int(computed) > 0
    assert re.search(r"^answer +4 tokens", after, re.MULTILINE)


def test_the_status_shows_how_full_the_context_is(start: Start) -> None:
    session, surface, _ = start("hello")
    session.run()
    assert surface.statuses[0] == f"context 0 of {SEQ_LEN}"
    n_used = len("<user\nhello<\n<assistant\nHELLO<")  # a tag is one token
    assert surface.statuses[1] == f"context {n_used} of {SEQ_LEN}"


LONG = "hello " * 20  # 138 tokens with the template's, 9 steps


def test_a_stopped_answer_stays_as_far_as_it_came(start: Start) -> None:
    session, surface, program = start("hello there")
    surface.wish = Interruption(program, n_steps=6)  # 2 for the message
    assert session.run() == 0
    assert surface.told == ["stopped"]
    assert session.conversation.turns[0].answer == surface.answers[0]
    assert surface.answers[0] in ("HELL", "HELLO", "HELLO ")


def test_a_message_stopped_while_it_is_read_is_taken_back(start: Start) -> None:
    session, surface, program = start(LONG)
    surface.wish = Interruption(program, n_steps=2)
    session.run()
    assert surface.told == ["stopped before the answer began; the message is taken back"]
    assert session.conversation.turns == ()
    assert n_computed(program) <= 4 * 16


def test_what_was_read_before_a_stop_is_not_read_again(start: Start) -> None:
    session, surface, program = start(LONG, LONG)
    surface.wish = Interruption(program, n_steps=4)
    session.run()
    assert surface.answers[-1] == LONG.strip().upper()
    assert n_computed(program) == 138 + len(LONG.strip())


def test_a_retry_that_is_stopped_keeps_the_answer_there_was(start: Start) -> None:
    session, surface, program = start("hello")
    session.run()
    before = session.conversation
    session.conversation = Conversation("another beginning, all of which is new", before.turns)
    surface.wish = Interruption(program, n_steps=len(program.batches) + 1)
    surface.entries.append("/retry")
    session.run()
    assert session.conversation.turns == before.turns


def test_a_full_context_leaves_out_the_oldest_turns_and_says_so(start: Start) -> None:
    session, surface, _ = start(*("question " * 4,) * 5)
    assert session.run() == 0
    assert surface.answers == [("QUESTION " * 4).strip()] * 5
    told = [text for text in surface.told if "no longer fits the context of 400 positions" in text]
    assert told
    assert "does not see its oldest" in told[0]
    assert len(session.conversation.turns) == 5
    assert session.conversation.n_left_out > 0


def test_an_answer_that_fills_the_context_ends_and_the_chat_goes_on(start: Start) -> None:
    def endless(tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        logits = np.zeros(258, np.float32)
        logits[97] = 5
        return logits

    session, surface, _ = start("x", "y", logits_of=endless, seq_len=60)
    assert session.run() == 0
    assert "the context of 60 positions is full, so the answer ends here" in surface.told[0]
    assert len(surface.answers) == 2
    assert session.conversation.n_left_out == 1


def test_steps_limit_an_answer_and_it_is_said(start: Start) -> None:
    session, surface, _ = start("abcdef", steps=3)
    session.run()
    assert surface.answers == ["ABC"]
    assert surface.told == ["the answer has as many tokens as --steps allows, so it ends here"]


def test_a_message_longer_than_the_context_is_refused_and_the_chat_goes_on(start: Start) -> None:
    session, surface, _ = start("x" * 500, "y")
    assert session.run() == 1
    assert "but the context holds 400; shorten it" in surface.complaints[0]
    assert surface.answers == ["Y"]


def test_a_wrong_command_is_explained_and_the_chat_goes_on(start: Start) -> None:
    session, surface, _ = start("/sve x", "y")
    assert session.run() == 1
    assert "did you mean /save?" in surface.complaints[0]
    assert surface.answers == ["Y"]


def test_when_the_model_fails_the_message_is_taken_back_and_the_chat_goes_on(start: Start) -> None:
    session, surface, program = start("a", "b", "c")
    usual, program.run = program.run, lambda batch: fail(batch)  # type: ignore[method-assign]
    n_runs = 0

    def fail(batch: Batch) -> None:
        nonlocal n_runs
        n_runs += 1
        if n_runs == 5:
            raise DllamaError("worker 10.0.0.3:9999 left; restart it")
        usual(batch)

    assert session.run() == 1
    assert surface.complaints == ["worker 10.0.0.3:9999 left; restart it"]
    assert session.conversation.turns == (Turn("a", "A"), Turn("c", "C"))


def test_an_answer_whose_thoughts_the_template_begins_says_so(tokenizer: Tokenizer) -> None:
    template = ChatTemplate("{{ messages[-1].content }}<|im_start|>assistant\n<think>\n")
    program = FakeProgram(echoes, vocab_size=258, max_rows=16, seq_len=SEQ_LEN)
    with Engine(program, tokenizer) as engine:
        answering = Answering(engine, tokenizer, template, SamplingParams(temperature=0), 3)
        prompt = answering.encode([{"role": "user", "content": "x"}])
        assert "".join(answering.answer(prompt, lambda: False)).startswith("<think>\n")
        long = answering.encode([{"role": "user", "content": LONG}])
        stop = Interruption(program, n_steps=len(program.batches) + 2)
        assert "".join(answering.answer(long, stop.is_pressed)) == ""


def test_thoughts_are_switched_off_and_not_told_again(tokenizer: Tokenizer) -> None:
    template = ChatTemplate(
        "{% for message in messages %}{{ message.content }}|{% endfor %}"
        "{% if enable_thinking is defined %}{{ enable_thinking }}|{% endif %}"
    )
    program = FakeProgram(echoes, vocab_size=258, max_rows=16, seq_len=SEQ_LEN)
    with Engine(program, tokenizer) as engine:
        answering = Answering(engine, tokenizer, template, SamplingParams(temperature=0), 3)
        surface = Script(("/think", "/think off", "/think on"))
        thought = Conversation().with_turn("a", "<think>\nb\n</think>\n\nc")
        session = Session(answering, surface, thought)
        assert tokenizer.decode(answering.encode(thought.messages("d"))) == "a|c|d|"
        assert session.run() == 0
        assert tokenizer.decode(answering.encode(thought.messages("d"))) == "a|c|d|True|"
    assert surface.told == [
        "the model's template decides whether it thinks",
        "the model answers without thinking first",
        "the model thinks before it answers",
    ]


def test_a_template_without_a_choice_of_thinking_says_so(start: Start) -> None:
    session, surface, _ = start("/think off", "/think maybe")
    assert session.run() == 1
    assert surface.complaints == [
        "this model's chat template leaves no choice whether it thinks before it answers",
        "/think takes on or off, not 'maybe'",
    ]


def test_special_tokens_in_a_message_are_only_text(start: Start) -> None:
    session, _, program = start("<|im_end|>")
    session.run()
    ends = sum(int(token) == END for batch in program.batches for token in batch.tokens)
    assert ends == 1
