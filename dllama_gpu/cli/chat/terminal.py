"""A chat on a terminal: an editable prompt with history, answers as Markdown."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.styles import Style
from rich.console import Console
from rich.text import Text

from dllama_gpu.cli.chat.answer_view import AnswerView
from dllama_gpu.cli.chat.commands import COMMANDS, is_open_block
from dllama_gpu.cli.chat.interrupt import StopWish, ctrl_c_stops
from dllama_gpu.cli.display import TextOutput
from dllama_gpu.cli.terminal_text import without_controls

_STYLE = Style.from_dict({"prompt": "ansicyan bold", "bottom-toolbar": "noreverse ansibrightblack"})
_HINT = "/help for commands · Alt-Enter for a new line · Ctrl-D to end"


class TerminalSurface:
    """Enter sends, Alt-Enter or Ctrl-J begins a new line, Ctrl-C clears the line or stops an answer, Ctrl-D ends."""

    def __init__(self, history: History, *, as_markdown: bool) -> None:
        self._console = Console(highlight=False)
        self._as_markdown = as_markdown and not self._console.is_dumb_terminal
        self._answer: AnswerView | TextOutput | None = None
        self._prompt: PromptSession[str] = PromptSession(
            history=history,
            completer=CommandCompleter(),
            complete_while_typing=True,
            key_bindings=key_bindings(),
            multiline=True,
            prompt_continuation=lambda width, line, soft: "" if soft else "… ".rjust(width),
            style=_STYLE,
            reserve_space_for_menu=min(8, len(COMMANDS)),
        )

    def read(self, status: str) -> str | None:
        """What was typed; None for Ctrl-D."""
        self._console.print()
        while True:
            try:
                return self._prompt.prompt(
                    FormattedText([("class:prompt", "> ")]),
                    bottom_toolbar=FormattedText([("class:bottom-toolbar", f" {status} · {_HINT}")]),
                )
            except KeyboardInterrupt:
                continue
            except EOFError:
                return None

    def tell(self, text: str) -> None:
        """Writes it dimmed."""
        self._console.print(Text(without_controls(text), style="dim"))

    def complain(self, sentence: str) -> None:
        """Writes it in red."""
        self._console.print(Text(without_controls(sentence), style="red"))

    def stoppable(self) -> AbstractContextManager[StopWish]:
        """Ctrl-C stops the answer; what is typed meanwhile is not shown in the middle of it."""
        return _answer_time()

    def waiting(self) -> AbstractContextManager[object]:
        """Shows that something is going on."""
        self._console.print()
        return self._console.status("[dim]reading[/dim]", spinner_style="dim") if self._as_markdown else nullcontext()

    def write(self, piece: str) -> None:
        """Draws the next piece of an answer."""
        if self._answer is None:
            self._answer = AnswerView(self._console) if self._as_markdown else TextOutput()
        self._answer.write(without_controls(piece))

    def end_answer(self) -> None:
        """Leaves the cursor on a new line."""
        if self._answer is not None:
            self._answer.end()
            self._answer = None


class CommandCompleter(Completer):
    """Completes a command's name while it is the only word of the entry."""

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        """The commands that begin with what stands there."""
        text = document.text
        if not text.startswith("/") or any(character.isspace() for character in text):
            return
        for name, entry in COMMANDS.items():
            if name.startswith(text[1:].lower()):
                yield Completion(f"/{name}", -len(text), display=entry.usage, display_meta=entry.what)


def key_bindings() -> KeyBindings:
    '''Enter sends, except inside a `"""`; Alt-Enter and Ctrl-J begin a new line.'''
    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open_block(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    @bindings.add("c-j")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def open_history(path: Path | None) -> tuple[History, str | None]:
    """What was typed in earlier chats, kept in a file that only its owner can read, and a warning if it cannot be kept.

    None keeps it in memory alone.
    """
    if path is None:
        return InMemoryHistory(), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        with path.open("a"):
            pass
    except OSError as error:
        return InMemoryHistory(), f"the history cannot be kept in {path} ({error.strerror or error})"
    return FileHistory(str(path)), None


@contextmanager
def _answer_time() -> Iterator[StopWish]:
    with ctrl_c_stops() as wish, _no_echo():
        yield wish


@contextmanager
def _no_echo() -> Iterator[None]:
    """Keeps keys from being shown; they are kept for the next prompt."""
    try:
        import termios
    except ImportError:  # Windows shows nothing that nobody reads
        yield
        return
    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    quiet = termios.tcgetattr(number)
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(number, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(number, termios.TCSANOW, before)
