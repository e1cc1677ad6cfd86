"""A chat from its first line to its last: reads entries, carries out commands, has messages answered."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Protocol

from dllama_gpu.cli.chat.answering import Answering
from dllama_gpu.cli.chat.commands import Command, help_text, read_entry, unquoted
from dllama_gpu.cli.chat.conversation import Conversation, fitted
from dllama_gpu.cli.chat.interrupt import StopWish
from dllama_gpu.cli.chat.report import context_text, statistics_text
from dllama_gpu.cli.chat.transcript import read_transcript, write_transcript
from dllama_gpu.cli.failures import FAILURE, SUCCESS
from dllama_gpu.engine.events import FinishReason
from dllama_gpu.errors import DllamaError


class Surface(Protocol):
    """Where a chat takes place: a terminal or a pipe."""

    def read(self, status: str) -> str | None:
        """The next entry, None at the end; `status` may be shown beside the prompt."""

    def tell(self, text: str) -> None:
        """Shows a remark on the chat, which is no part of it."""

    def complain(self, sentence: str) -> None:
        """Shows what was wrong with an entry."""

    def stoppable(self) -> AbstractContextManager[StopWish]:
        """Around an answer; says whether it shall stop."""

    def waiting(self) -> AbstractContextManager[object]:
        """Around the time before the first piece of an answer."""

    def write(self, piece: str) -> None:
        """Shows the next piece of an answer."""

    def end_answer(self) -> None:
        """Ends an answer."""


class Session:
    """The state of one chat."""

    def __init__(self, answering: Answering, surface: Surface, conversation: Conversation) -> None:
        self._answering = answering
        self._surface = surface
        self._own_files: set[Path] = set()
        self._n_used = 0
        self.conversation = conversation

    def run(self) -> int:
        """Goes on until the input ends or a command says so; the exit status tells whether every entry went well."""
        status = SUCCESS
        while (text := self._surface.read(self._status())) is not None:
            try:
                entry = read_entry(text)
                if isinstance(entry, Command):
                    if entry.name == "quit":
                        break
                    self._carry_out(entry)
                elif entry is not None:
                    self._ask(entry.text)
            except DllamaError as error:
                self._surface.complain(str(error))
                status = FAILURE
        return status

    def _status(self) -> str:
        return context_text(self._n_used, self._answering.seq_len)

    def _carry_out(self, command: Command) -> None:
        tell, path = self._surface.tell, Path(unquoted(command.argument)).expanduser()
        if command.name == "help":
            tell(help_text())
        elif command.name == "reset":
            self.conversation, self._n_used = self.conversation.reset(), 0
            tell("a new conversation" + (", with the system message" if self.conversation.system is not None else ""))
        elif command.name == "system":
            self._set_system(command.argument)
        elif command.name == "think":
            self._set_thinking(command.argument)
        elif command.name == "stats":
            tell(statistics_text(self.conversation, self._n_used, self._answering.seq_len, self._answering.outcome))
        elif command.name == "save":
            may_replace = path.absolute() in self._own_files
            write_transcript(path, self.conversation, may_replace=may_replace)
            self._own_files.add(path.absolute())
            tell(f"saved {_turns(self.conversation)} in {path}")
        elif command.name == "load":
            self.conversation = read_transcript(path)
            self._n_used = 0
            self._own_files.add(path.absolute())
            tell(f"loaded {_turns(self.conversation)} from {path}")
        elif command.name == "retry":
            self._retry()

    def _set_system(self, argument: str) -> None:
        if not argument:
            system = self.conversation.system
            self._surface.tell("there is no system message" if system is None else system)
            return
        text = unquoted(argument)
        self.conversation = replace(self.conversation, system=text or None)
        self._surface.tell("the system message is set" if text else "the system message is gone")

    def _set_thinking(self, argument: str) -> None:
        if not self._answering.can_choose_thinking:
            raise DllamaError("this model's chat template leaves no choice whether it thinks before it answers")
        if argument:
            self._answering.thinks = argument == "on"
        thinks = self._answering.thinks
        words = {None: "the model's template decides whether it thinks", True: "the model thinks before it answers"}
        self._surface.tell(words.get(thinks, "the model answers without thinking first"))

    def _retry(self) -> None:
        if not self.conversation.turns:
            raise DllamaError("there is no message yet that could be answered again")
        before = self.conversation
        question = before.turns[-1].question
        self.conversation = before.without_last_turn()
        if not self._ask(question):
            self.conversation = before

    def _ask(self, question: str) -> bool:
        """Has the question answered; False when it was stopped before the first token, and so taken back."""
        conversation = fitted(
            self.conversation, question, self._answering.seq_len, lambda messages: len(self._answering.encode(messages))
        )
        n_more = conversation.n_left_out - self.conversation.n_left_out
        if n_more:
            self._surface.tell(
                f"the conversation no longer fits the context of {self._answering.seq_len} positions: from here on the "
                f"model does not see its oldest {_count(conversation.n_left_out, 'turn')} (/save still writes all, "
                "/reset begins anew)"
            )
        answer, reason = self._answer(self._answering.encode(conversation.messages(question)))
        if reason is FinishReason.CANCELLED and not answer:
            self._surface.tell("stopped before the answer began; the message is taken back")
            return False
        self.conversation = conversation.with_turn(question, answer)
        if reason is FinishReason.CANCELLED:
            self._surface.tell("stopped")
        elif reason is FinishReason.CONTEXT_FULL:
            self._surface.tell(
                f"the context of {self._answering.seq_len} positions is full, so the answer ends here; go on and the "
                "oldest turns are left out, or begin anew with /reset"
            )
        elif reason is FinishReason.MAX_TOKENS:
            self._surface.tell("the answer has as many tokens as --steps allows, so it ends here")
        return True

    def _answer(self, prompt: list[int]) -> tuple[str, FinishReason]:
        """The answer, which has been shown, and why it ended."""
        written: list[str] = []
        with self._surface.stoppable() as wish:
            pieces = self._answering.answer(prompt, wish.is_pressed)
            try:
                with self._surface.waiting():
                    first = next(pieces)
                for piece in chain((first,), pieces):
                    written.append(piece)
                    self._surface.write(piece)
            finally:
                self._surface.end_answer()
        outcome = self._answering.outcome
        assert outcome is not None, "an answer that ended without an error has an outcome"
        self._n_used = outcome.n_positions
        return "".join(written), outcome.reason


def _turns(conversation: Conversation) -> str:
    return _count(len(conversation.turns), "turn")


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")
