"""What is recorded for a segment: dispatches, and barriers where one needs what another wrote."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Access = Literal["r", "w", "rw"]

_MAX_GROUPS = 65535  # of a grid's axis, on any device


@dataclass(frozen=True)
class Binding:
    """Bytes [offset, offset + n_bytes) of an allocation, and what the shader does with them."""

    allocation: str
    offset: int
    n_bytes: int
    access: Access = "r"

    def writing(self, access: Access = "w") -> Binding:
        """The same bytes, written."""
        return Binding(self.allocation, self.offset, self.n_bytes, access)

    def overlaps(self, other: Binding) -> bool:
        """Whether both see a common byte."""
        return (
            self.allocation == other.allocation
            and self.offset < other.offset + other.n_bytes
            and other.offset < self.offset + self.n_bytes
        )


@dataclass(frozen=True)
class Dispatch:
    """One run of a shader: binding i of the shader is `bindings[i]`, specialization constant i `specialization[i]`."""

    shader: str
    """Name of the file in `shaders/`, without `.comp`."""
    specialization: tuple[int, ...]
    bindings: tuple[Binding, ...]
    push: bytes
    grid: tuple[int, int, int]
    """Workgroups."""
    subgroup_size: int = 0
    """What the shader was planned for and must get where a driver has several sizes; 0 for shaders that ask."""
    work: int = 0
    """About how many multiplications it takes, reading counted as some; of those that take long."""


@dataclass(frozen=True)
class Barrier:
    """What was written before is seen behind it; compute to compute, all memory."""


Recorded = Dispatch | Barrier


def words(*numbers: int | float) -> bytes:
    """Push constants: each int as a 32-bit word, each float as f32."""
    return b"".join(struct.pack("<f" if isinstance(n, float) else "<I", n) for n in numbers)


def long_grid(n_groups: int, rows: int = 1) -> tuple[int, int, int]:
    """A grid of at least `n_groups` along x and, past the limit of an axis, y together; for shaders that count so."""
    if n_groups <= _MAX_GROUPS:
        return n_groups, 1, rows
    height = -(-n_groups // _MAX_GROUPS)
    return -(-n_groups // height), height, rows


def with_barriers(dispatches: Iterable[Dispatch]) -> Iterator[Recorded]:
    """Puts a barrier before each dispatch that touches what another has written since the last one, or writes what
    another has read.
    """
    since: list[Binding] = []
    for dispatch in dispatches:
        if any(_clash(binding, earlier) for binding in dispatch.bindings for earlier in since):
            yield Barrier()
            since = []
        yield dispatch
        since += dispatch.bindings


def _clash(one: Binding, other: Binding) -> bool:
    return (one.access != "r" or other.access != "r") and one.overlaps(other)
