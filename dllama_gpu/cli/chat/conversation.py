"""A conversation, and which part of it the model is shown when it has become longer than the context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dllama_gpu.errors import DllamaError

ANSWER_ROOM = 256
"""Positions that are kept free for an answer before old turns are left out; a quarter of a small context."""

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Turn:
    """A question and its answer, which may be empty or cut short."""

    question: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """Everything said so far. The model no longer sees the first `n_left_out` turns."""

    system: str | None = None
    turns: tuple[Turn, ...] = ()
    n_left_out: int = 0

    def messages(self, question: str | None = None) -> Messages:
        """What the model sees, with a new question at the end."""
        seen = _messages(self.system, self.turns[self.n_left_out :])
        return seen if question is None else [*seen, {"role": "user", "content": question}]

    def all_messages(self) -> Messages:
        """Everything, also what the model no longer sees."""
        return _messages(self.system, self.turns)

    def with_turn(self, question: str, answer: str) -> Conversation:
        """One turn more."""
        return replace(self, turns=(*self.turns, Turn(question, answer)))

    def without_last_turn(self) -> Conversation:
        """One turn less."""
        turns = self.turns[:-1]
        return replace(self, turns=turns, n_left_out=min(self.n_left_out, len(turns)))

    def reset(self) -> Conversation:
        """The system message alone."""
        return Conversation(self.system)


def conversation_of(messages: Sequence[dict[str, str]]) -> Conversation:
    """The conversation that `all_messages` gave.

    Raises DllamaError unless questions and answers take turns, with at most one system message, which comes first.
    """
    rest = list(messages)
    system = rest.pop(0)["content"] if rest and rest[0]["role"] == "system" else None
    turns = []
    for i in range(0, len(rest), 2):
        roles = [message["role"] for message in rest[i : i + 2]]
        if roles != ["user", "assistant"]:
            at = i + (1 if system is None else 2)
            raise DllamaError(
                f"from message {at} on the roles are {', '.join(roles)}, but user and assistant must take turns, after "
                "at most one system message"
            )
        turns.append(Turn(rest[i]["content"], rest[i + 1]["content"]))
    return Conversation(system, tuple(turns))


def fitted(
    conversation: Conversation, question: str, seq_len: int, n_tokens_of: Callable[[Messages], int]
) -> Conversation:
    """The conversation with so many of its oldest turns left out that the question can be answered.

    As long as `ANSWER_ROOM` positions of `seq_len` stay free nothing changes. After that turns are left out until half
    of the context is free, because what follows a change at the front must be computed anew: this way not at every
    question. Raises DllamaError when the question alone, with the system message, is longer than the context.
    """
    room = min(ANSWER_ROOM, seq_len // 4)
    if n_tokens_of(conversation.messages(question)) + room <= seq_len:
        return conversation
    for n_left_out in range(conversation.n_left_out + 1, len(conversation.turns) + 1):
        shorter = replace(conversation, n_left_out=n_left_out)
        n_tokens = n_tokens_of(shorter.messages(question))
        if n_tokens <= seq_len // 2:
            return shorter
    alone = replace(conversation, n_left_out=len(conversation.turns))
    n_tokens = n_tokens_of(alone.messages(question))
    if n_tokens > seq_len:
        with_system = " with the system message" if conversation.system is not None else ""
        raise DllamaError(
            f"this message{with_system} has {n_tokens} tokens, but the context holds {seq_len}; shorten it, or start "
            "the chat with a larger --max-seq-len"
        )
    return alone


def _messages(system: str | None, turns: Sequence[Turn]) -> Messages:
    messages = [] if system is None else [{"role": "system", "content": system}]
    for turn in turns:
        messages.append({"role": "user", "content": turn.question})
        messages.append({"role": "assistant", "content": turn.answer})
    return messages
