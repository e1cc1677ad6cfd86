from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllama_gpu.cli.chat.conversation import Conversation, Messages, Turn, conversation_of, fitted
from dllama_gpu.cli.chat.transcript import read_transcript, write_transcript
from dllama_gpu.errors import DllamaError

TURNS = st.lists(st.builds(Turn, st.text(), st.text()), max_size=8).map(tuple)


def n_characters(messages: Messages) -> int:
    return sum(len(message["content"]) for message in messages)


def chat(*lengths: int, system: str | None = None) -> Conversation:
    return Conversation(system, tuple(Turn("q", "a" * (length - 1)) for length in lengths))


def test_the_model_sees_system_turns_and_question_in_order() -> None:
    conversation = Conversation("s", (Turn("q1", "a1"), Turn("q2", "a2")), n_left_out=1)
    assert [message["content"] for message in conversation.messages("q3")] == ["s", "q2", "a2", "q3"]
    assert [message["role"] for message in conversation.messages("q3")] == ["system", "user", "assistant", "user"]
    assert [message["content"] for message in conversation.all_messages()] == ["s", "q1", "a1", "q2", "a2"]


def test_a_reset_keeps_the_system_message_alone() -> None:
    assert chat(3, system="s").reset() == Conversation("s")


def test_nothing_is_left_out_while_an_answer_has_room() -> None:
    conversation = chat(20, 20, 20)
    assert fitted(conversation, "q" * 15, 100, n_characters) == conversation


def test_the_oldest_turns_are_left_out_until_half_of_the_context_is_free() -> None:
    assert fitted(chat(20, 20, 20), "q" * 16, 100, n_characters).n_left_out == 2
    assert fitted(chat(20, 20, 20), "q" * 16, 160, n_characters).n_left_out == 0


def test_a_question_longer_than_half_of_the_context_is_asked_alone() -> None:
    assert fitted(chat(20, 20), "q" * 100, 100, n_characters).n_left_out == 2


def test_a_question_longer_than_the_context_is_refused_with_both_numbers() -> None:
    with pytest.raises(DllamaError, match="this message has 101 tokens, but the context holds 100"):
        fitted(chat(20), "q" * 101, 100, n_characters)
    with pytest.raises(DllamaError, match="with the system message has 101 tokens"):
        fitted(chat(20, system="s"), "q" * 100, 100, n_characters)


@given(st.lists(st.integers(1, 60), max_size=12), st.integers(1, 80), st.integers(4, 200))
def test_what_is_fitted_fits_and_drops_no_more_than_it_must(lengths: list[int], question: int, seq_len: int) -> None:
    conversation = chat(*lengths)
    try:
        found = fitted(conversation, "q" * question, seq_len, n_characters)
    except DllamaError:
        assert question > seq_len
        return
    n_tokens = n_characters(found.messages("q" * question))
    assert n_tokens <= seq_len
    assert found.all_messages() == conversation.all_messages()
    if found.n_left_out:
        one_more = Conversation(None, found.turns, found.n_left_out - 1)
        assert n_characters(one_more.messages("q" * question)) > seq_len // 2


@given(st.none() | st.text(), TURNS)
def test_messages_give_the_conversation_back(system: str | None, turns: tuple[Turn, ...]) -> None:
    conversation = Conversation(system, turns)
    assert conversation_of(conversation.all_messages()) == conversation


@pytest.mark.parametrize(
    ("roles", "sentence"),
    [
        (["assistant"], "from message 1 on the roles are assistant"),
        (["system", "user"], "from message 2 on the roles are user"),
        (["user", "user"], "from message 1 on the roles are user, user"),
        (["user", "assistant", "system", "user"], "from message 3 on the roles are system, user"),
        (["tool", "assistant"], "the roles are tool, assistant"),
    ],
)
def test_messages_in_another_order_are_refused(roles: list[str], sentence: str) -> None:
    with pytest.raises(DllamaError, match=sentence):
        conversation_of([{"role": role, "content": ""} for role in roles])


def test_a_conversation_comes_back_from_its_file(tmp_path: Path) -> None:
    conversation = Conversation("sÿs", (Turn("zwölf\n", "Boote 🚣"), Turn("", "")), n_left_out=1)
    write_transcript(tmp_path / "new" / "chat.json", conversation, may_replace=False)
    assert read_transcript(tmp_path / "new" / "chat.json") == Conversation("sÿs", conversation.turns)


def test_a_bare_list_of_messages_is_understood(tmp_path: Path) -> None:
    text = '[{"role": "user", "content": "q", "name": "x"}, {"role": "assistant", "content": "a"}]'
    (tmp_path / "chat.json").write_text(text)
    assert read_transcript(tmp_path / "chat.json") == Conversation(None, (Turn("q", "a"),))


def test_a_file_is_only_replaced_when_that_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    write_transcript(path, Conversation("first"), may_replace=False)
    with pytest.raises(DllamaError, match=r"chat\.json exists already; give another name"):
        write_transcript(path, Conversation("second"), may_replace=False)
    assert read_transcript(path).system == "first"
    write_transcript(path, Conversation("second"), may_replace=True)
    assert read_transcript(path).system == "second"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"3",
        b"{}",
        b'{"messages": 3}',
        b'{"messages": [{"role": "user"}]}',
        b'{"messages": [{"role": "user", "content": [1]}]}',
        b"[" * 100_000,
    ],
)
def test_a_file_that_is_no_conversation_is_refused_in_a_sentence(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(DllamaError, match=r"is no conversation: .*; wanted is JSON like"):
        read_transcript(tmp_path / "x")


def test_files_that_cannot_be_had_are_named(tmp_path: Path) -> None:
    with pytest.raises(DllamaError, match=r"nowhere does not exist"):
        read_transcript(tmp_path / "nowhere")
    with pytest.raises(DllamaError, match=r"cannot be read \(Is a directory\)"):
        read_transcript(tmp_path)
    with pytest.raises(DllamaError, match=r"cannot be written"):
        write_transcript(tmp_path, Conversation(), may_replace=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(DllamaError, match=r"cannot be written"):
        write_transcript(tmp_path / "file" / "chat.json", Conversation(), may_replace=False)
