import dataclasses
from enum import Enum
from typing import Optional

import msgspec
import pytest

from dllama_gpu.net.dialect import FINGERPRINT_BYTES, fingerprint
from dllama_gpu.net.graph_messages import DIALECT


class Colour(Enum):
    RED = "red"


@dataclasses.dataclass
class Inner:
    colour: Colour


class Outer(msgspec.Struct):
    inner: dict[str, tuple[Inner, ...]]
    number: int | None


def changed(**of_outer: object) -> bytes:
    inner = dataclasses.make_dataclass("Inner", of_outer.pop("inner", [("colour", Colour)]))  # type: ignore[call-overload]
    fields = {"inner": dict[str, tuple[inner, ...]], "number": int | None, **of_outer}  # type: ignore[valid-type]
    return fingerprint([msgspec.defstruct("Outer", list(fields.items()))])


def test_the_same_structs_have_the_same_fingerprint() -> None:
    assert fingerprint([Outer]) == fingerprint([Outer, Inner]) == changed()
    assert len(DIALECT) == FINGERPRINT_BYTES


def test_the_spelling_of_a_union_does_not_matter() -> None:
    assert changed(number=Optional[int]) == changed(number=None | int) == fingerprint([Outer])  # noqa: UP045


@pytest.mark.parametrize(
    "change",
    [
        {"number": float | None},
        {"number": int},
        {"more": int},
        {"inner": [("color", Colour)]},
        {"inner": [("colour", Colour), ("more", int)]},
        {"inner": [("colour", Enum("Colour", {"RED": "rouge"}))]},
    ],
    ids=str,
)
def test_every_change_of_a_field_changes_it(change: dict[str, object]) -> None:
    assert changed(**change) != fingerprint([Outer])
