"""A fingerprint of what nodes say to each other, so that two states of the program never misunderstand one another."""

from __future__ import annotations

import dataclasses
import hashlib
import types
import typing
from collections.abc import Iterable
from enum import Enum

import msgspec

FINGERPRINT_BYTES = 8


def fingerprint(kinds: Iterable[type]) -> bytes:
    """FINGERPRINT_BYTES over names and fields of these structs, dataclasses and enums and of all in their fields."""
    described: dict[str, str] = {}
    for kind in kinds:
        _describe(kind, described)
    text = "\n".join(f"{name} {fields}" for name, fields in sorted(described.items()))
    return hashlib.blake2b(text.encode(), digest_size=FINGERPRINT_BYTES).digest()


def _describe(kind: object, described: dict[str, str]) -> None:
    for part in typing.get_args(kind):
        _describe(part, described)
    if not isinstance(kind, type) or kind.__name__ in described:
        return
    if issubclass(kind, Enum):
        described[kind.__name__] = str([(member.name, member.value) for member in kind])
    elif issubclass(kind, msgspec.Struct) or dataclasses.is_dataclass(kind):
        names = (
            kind.__struct_fields__ if issubclass(kind, msgspec.Struct) else [f.name for f in dataclasses.fields(kind)]
        )
        hints = typing.get_type_hints(kind)
        described[kind.__name__] = str([(name, _written(hints[name])) for name in names])
        for name in names:
            _describe(hints[name], described)


def _written(hint: object) -> str:
    """A type as text that does not depend on the release of Python, as its own spelling of unions does."""
    parts = [_written(part) for part in typing.get_args(hint)]
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return "|".join(sorted(parts))
    name = getattr(origin or hint, "__name__", "any")
    return f"{name}[{','.join(parts)}]" if parts else str(name)
