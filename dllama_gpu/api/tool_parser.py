"""Calls of functions out of a model's text, while it comes."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from dllama_gpu.api.tool_formats import HERMES_BEGIN, HERMES_END, LLAMA3_BEGIN, MISTRAL_BEGIN, ToolFormat

_BLANKS = " \t\r\n"


@dataclass(frozen=True)
class ParsedCall:
    """A call: `arguments` is JSON as text, which OpenAI's API wants."""

    id: str
    name: str
    arguments: str


Piece = str | ParsedCall
"""Text that is none of a call, or a whole call."""


class ToolCallParser:
    """Separates calls from text. What is not a proper call stays text, so nothing that a model wrote is lost."""

    def __init__(self, tool_format: ToolFormat, names: Collection[str]) -> None:
        self._format = tool_format
        self._names = frozenset(names)
        self._held = ""
        self._inside = False
        self._shown = False

    def push(self, text: str) -> list[Piece]:
        """What is certain now that `text` has come."""
        self._held += text
        return self._scan_tags() if self._format is ToolFormat.HERMES else self._scan_rest()

    def finish(self) -> list[Piece]:
        """What was held back until the answer's end."""
        held, self._held = self._held, ""
        if self._format is ToolFormat.HERMES:
            if not self._inside:
                return [held] if held.strip(_BLANKS) or self._shown else []
            return list(self._one_call(held)) or [HERMES_BEGIN + held]
        if not self._inside:
            return [held] if held else []
        calls = self._calls(held)
        return list(calls) if calls else [held]

    def _scan_tags(self) -> list[Piece]:
        """Hermes: text and calls between tags in any order; blanks around calls belong to neither."""
        pieces: list[Piece] = []
        while True:
            tag = HERMES_END if self._inside else HERMES_BEGIN
            before, found, after = self._held.partition(tag)
            if not found:
                break
            self._held = after
            if self._inside:
                pieces.extend(self._one_call(before) or [HERMES_BEGIN + before + HERMES_END])
            elif before.strip(_BLANKS):
                pieces.append(before.rstrip(_BLANKS))
                self._shown = True
            self._inside = not self._inside
        if not self._inside:
            # Blanks wait too: a call may follow, before which they are not wanted.
            certain = self._held[: len(self._held) - _possible_begin(self._held, HERMES_BEGIN)].rstrip(_BLANKS)
            if certain:
                pieces.append(certain)
                self._held = self._held[len(certain) :]
                self._shown = True
        return pieces

    def _scan_rest(self) -> list[Piece]:
        """Llama 3 and Mistral: from where a call begins, all that follows is calls; read when it is whole."""
        if self._inside:
            return []
        begin = LLAMA3_BEGIN if self._format is ToolFormat.LLAMA3 else MISTRAL_BEGIN
        before, found, after = self._held.partition(begin)
        if found:
            self._inside, self._held = True, after
            return [before.rstrip(_BLANKS)] if before.strip(_BLANKS) else []
        if self._format is ToolFormat.LLAMA3 and not self._shown:
            if self._held.lstrip(_BLANKS)[:1] == "{":
                self._inside = True
                return []
            if not self._held.strip(_BLANKS):
                return []
        certain = self._held[: len(self._held) - _possible_begin(self._held, begin)]
        self._held = self._held[len(certain) :]
        self._shown = self._shown or bool(certain)
        return [certain] if certain else []

    def _one_call(self, text: str) -> list[ParsedCall]:
        calls = self._calls(text)
        return calls if len(calls) == 1 else []

    def _calls(self, text: str) -> list[ParsedCall]:
        """The calls in `text`; none if anything in it is none."""
        calls = []
        for value in _values(text):
            call = self._call(value)
            if call is None:
                return []
            calls.append(call)
        return calls

    def _call(self, value: Any) -> ParsedCall | None:
        name = value.get("name") if isinstance(value, dict) else None
        if not isinstance(name, str) or name not in self._names:
            return None
        arguments = value.get("arguments", value.get("parameters", {}))
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                return None
        if not isinstance(arguments, dict):
            return None
        try:
            return ParsedCall(call_id(), name, _written(arguments))
        except (ValueError, RecursionError):  # Python reads NaN and 1e999, but no other reader of JSON does
            return None


def _written(arguments: dict[str, Any]) -> str:
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can carry
        return json.dumps(arguments)
    return text


def call_id() -> str:
    """A new id of a call; nine letters and digits, which is what Mistral's templates insist on."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    return "".join(secrets.choice(alphabet) for _ in range(9))


def _values(text: str) -> list[Any]:
    """The JSON values in `text`, one after the other or in one list, `;` between them or not; [] if it is not JSON."""
    values: list[Any] = []
    decoder = json.JSONDecoder()
    rest = text.strip(_BLANKS + ";")
    while rest:
        try:
            value, end = decoder.raw_decode(rest)
        except (ValueError, RecursionError):
            return []
        values.extend(value if isinstance(value, list) else [value])
        rest = rest[end:].strip(_BLANKS + ";")
    return values


def _possible_begin(text: str, tag: str) -> int:
    """Length of the longest end of `text` that is a beginning of `tag`."""
    return next((n for n in range(min(len(text), len(tag) - 1), 0, -1) if text.endswith(tag[:n])), 0)
