"""Conversations in files: JSON with a list `messages` of roles and contents, as OpenAI's API writes them."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from dllama_gpu.cli.chat.conversation import Conversation, conversation_of
from dllama_gpu.errors import DllamaError

MAX_BYTES = 64 << 20


class _Message(msgspec.Struct):
    role: str
    content: str


class _Transcript(msgspec.Struct):
    messages: list[_Message]


def write_transcript(path: Path, conversation: Conversation, *, may_replace: bool) -> None:
    """Writes everything said, also what the model no longer sees.

    Raises DllamaError when there is such a file and `may_replace` is false, or it cannot be written.
    """
    text = json.dumps({"messages": conversation.all_messages()}, ensure_ascii=False, indent=2) + "\n"
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
        # A lone surrogate, which a model cannot write but a terminal can send, must not cost the conversation.
        with path.open("w" if may_replace else "x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as error:
        if path.exists() and not may_replace:
            raise DllamaError(f"{path} exists already; give another name, or remove it first") from None
        raise DllamaError(f"{path} cannot be written ({error.strerror or error}); give another name") from error


def read_transcript(path: Path) -> Conversation:
    """The conversation in a file, which may also be a bare list of messages.

    Raises DllamaError when there is none, it is not such a file, or its messages are in no order that can be gone on
    with.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DllamaError(f"{path} is larger than {MAX_BYTES >> 20} MiB, so it is no conversation of a chat")
        data = path.read_bytes()
    except FileNotFoundError:
        raise DllamaError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise DllamaError(f"{path} cannot be read ({error.strerror or error})") from error
    try:
        found = msgspec.json.decode(data, type=_Transcript | list[_Message])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DllamaError(f'{path} is no conversation: {error}; wanted is JSON like {{"messages": […]}}') from None
    messages = found.messages if isinstance(found, _Transcript) else found
    try:
        return conversation_of([{"role": message.role, "content": message.content} for message in messages])
    except DllamaError as error:
        raise DllamaError(f"{path} cannot be gone on with: {error}") from None
