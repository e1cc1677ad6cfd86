"""What a line of a chat is: a message to the model, or a command such as `/reset`."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from dllama_gpu.errors import DllamaError

BLOCK = '"""'
_COMMAND = re.compile(r"/([A-Za-z]+)(?:\s+(.*))?", re.DOTALL)


@dataclass(frozen=True)
class Help:
    """How a command is written and what it does."""

    usage: str
    what: str


COMMANDS: dict[str, Help] = {
    "reset": Help("/reset", "begin a new conversation; the system message stays"),
    "retry": Help("/retry", "answer the last message once more"),
    "system": Help("/system [TEXT]", 'show the system message or set it; /system "" takes it away'),
    "think": Help("/think [on|off]", "whether the model thinks first, where its template leaves the choice"),
    "save": Help("/save FILE", "write the conversation to a file"),
    "load": Help("/load FILE", "go on with a conversation from a file"),
    "stats": Help("/stats", "how full the context is and how fast the answers were"),
    "help": Help("/help", "show this"),
    "quit": Help("/quit", "end the chat; so does Ctrl-D"),
}
_ALIASES = {"exit": "quit", "bye": "quit", "clear": "reset", "regenerate": "retry"}
_TAKES_NOTHING = {"reset", "retry", "stats", "help", "quit"}


@dataclass(frozen=True)
class Command:
    """A command of `COMMANDS` and the text behind it."""

    name: str
    argument: str = ""


@dataclass(frozen=True)
class Message:
    """Text for the model; never empty."""

    text: str


def read_entry(text: str) -> Command | Message | None:
    '''What a person has entered; None for nothing but white space.

    A `/` and letters alone make a command. Everything else is a message, also `/etc/passwd …` or a command's name
    behind a space; a message between two `"""` is taken as it is. Raises DllamaError for a command that does not exist
    or lacks its file.
    '''
    if text.startswith(BLOCK):
        inner = text.removeprefix(BLOCK).rstrip().removesuffix(BLOCK).strip("\r\n")
        return Message(inner) if inner.strip() else None
    match = _COMMAND.fullmatch(text.rstrip())
    if match is None:
        return Message(text.strip()) if text.strip() else None
    name = _ALIASES.get(match[1].lower(), match[1].lower())
    argument = (match[2] or "").strip()
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        guess = f"did you mean /{close[0]}?" if close else "/help lists them"
        raise DllamaError(f"there is no command /{match[1]} ({guess}); put a space before it to send it as a message")
    if argument and name in _TAKES_NOTHING:
        raise DllamaError(f"/{name} takes nothing behind it; put a space before it to send it as a message")
    if not argument and name in ("save", "load"):
        raise DllamaError(f"/{name} needs a file, such as /{name} chat.json")
    if name == "think" and argument not in ("", "on", "off"):
        raise DllamaError(f"/think takes on or off, not {argument!r}")
    return Command(name, argument)


def is_open_block(text: str) -> bool:
    """Whether the text begins a message between two `\"\"\"` and does not end it."""
    if not text.startswith(BLOCK):
        return False
    rest = text.rstrip()
    return len(rest) < 2 * len(BLOCK) or not rest.endswith(BLOCK)


def unquoted(text: str) -> str:
    """The text without the pair of quotes around it, if it has one."""
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    return text


def help_text() -> str:
    """All commands, one a line."""
    width = max(len(entry.usage) for entry in COMMANDS.values())
    return "\n".join(f"{entry.usage:<{width}}  {entry.what}" for entry in COMMANDS.values())
