"""How a device keeps weights: rows of units of 16 bytes, scales apart from them, shaders/weight.glsl.

A lane then loads a unit with one instruction and neighbouring lanes load neighbouring units, whatever the type:

=====  ================  ==============================  =======================
type   columns of a unit content of a unit               scales, behind all units
=====  ================  ==============================  =======================
F32    4                 as stored                       -
F16    8                 as stored                       -
BF16   8                 as stored                       -
Q40    32                the block's nibbles             d (f16) of every unit
Q41    32                the block's nibbles             d, m (f16) of every unit
Q80    16                half of the block's quants      d (f16) of every block
=====  ================  ==============================  =======================

Rows of F32, F16 and BF16 are padded with zeros to whole units.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.graph import Weight
from dllama_gpu.graph.weight_rows import read_part
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.source import ModelSource
from dllama_gpu.vulkan.activations import round_up
from dllama_gpu.vulkan.dispatch import Binding

Bytes = npt.NDArray[np.uint8]

UNIT_COLUMNS = {
    FloatType.F32: 4,
    FloatType.F16: 8,
    FloatType.BF16: 8,
    FloatType.Q40: 32,
    FloatType.Q41: 32,
    FloatType.Q80: 16,
}
_SCALE_BYTES = {FloatType.Q40: 2, FloatType.Q41: 4, FloatType.Q80: 1}  # for each unit
_CHUNK_BYTES = 8 << 20
_SHARD_ROWS = 256  # both halves of a shard then begin at a multiple of 256 bytes


@dataclass(frozen=True)
class Shard:
    """Rows [first_row, first_row + n_rows) of a matrix, within a shader's reach."""

    first_row: int
    n_rows: int
    units: Binding
    scales: Binding


@dataclass(frozen=True)
class PackedMatrix:
    """A weight in an allocation of its own, or two of one shape and type whose rows take turns (gate and up)."""

    name: str
    """Of the allocation."""
    members: tuple[Weight, ...]

    @property
    def float_type(self) -> FloatType:
        """The number format of all rows."""
        return self.members[0].float_type

    @property
    def n_rows(self) -> int:
        """Of all members."""
        return sum(weight.n_rows for weight in self.members)

    @property
    def n_columns(self) -> int:
        """Of a row."""
        return self.members[0].n_columns

    @property
    def n_units(self) -> int:
        """Of a row."""
        return -(-self.n_columns // UNIT_COLUMNS[self.float_type])

    @property
    def scales_offset(self) -> int:
        """Where the scales begin, in bytes."""
        return round_up(16 * self.n_rows * self.n_units, 256)

    @property
    def n_bytes(self) -> int:
        """Size of the allocation; whole words."""
        return self.scales_offset + round_up(self.n_rows * self.n_units * _SCALE_BYTES.get(self.float_type, 0), 4)

    @property
    def n_experts(self) -> int:
        """Matrices that the rows are, one after the other."""
        return self.members[0].n_experts

    def shards(self, max_range: int) -> list[Shard]:
        """The matrix cut by rows, between experts, so that no part is longer than `max_range` bytes."""
        row_bytes = 16 * self.n_units
        per_shard = self.n_rows
        if self.n_rows * row_bytes > max_range:
            step = math.lcm(_SHARD_ROWS, self.n_rows // self.n_experts if self.n_experts > 1 else 1)
            per_shard = max_range // row_bytes // step * step
            if not per_shard:
                raise DllamaError(f"{self.name} is too wide for this GPU, which sees {max_range} bytes of a buffer")
        return [self._shard(first, min(per_shard, self.n_rows - first)) for first in range(0, self.n_rows, per_shard)]

    def _shard(self, first: int, n_rows: int) -> Shard:
        row_bytes, scale_bytes = 16 * self.n_units, self.n_units * _SCALE_BYTES.get(self.float_type, 0)
        units = Binding(self.name, first * row_bytes, n_rows * row_bytes)
        if not scale_bytes:
            return Shard(first, n_rows, units, units)
        length = round_up(n_rows * scale_bytes, 4)
        return Shard(first, n_rows, units, Binding(self.name, self.scales_offset + first * scale_bytes, length))


@dataclass(frozen=True)
class Chunk:
    """Bytes that belong at `offset` of an allocation."""

    allocation: str
    offset: int
    content: Bytes


def can_take_turns(one: Weight, other: Weight) -> bool:
    """Whether `PackedMatrix` can hold both."""
    return (one.float_type, one.n_columns) == (other.float_type, other.n_columns) and [
        p.row_end - p.row_begin for p in one.parts
    ] == [p.row_end - p.row_begin for p in other.parts]


def packed_chunks(matrix: PackedMatrix, source: ModelSource) -> Iterator[Chunk]:
    """The content of a matrix, a few MiB at a time; releases what it has read.

    Raises DllamaError when a tensor is missing, has another shape or type than its weight says, or holds NaN.
    """
    n_members, type = len(matrix.members), matrix.float_type
    first_row = 0
    for parts in zip(*(weight.parts for weight in matrix.members), strict=True):
        tensors = [read_part(part, weight, source) for part, weight in zip(parts, matrix.members, strict=True)]
        n_part_rows, row_bytes = tensors[0].shape
        step = max(2, _CHUNK_BYTES // (row_bytes * n_members) // 2 * 2)  # even: whole words of Q80 scales
        for begin in range(0, n_part_rows, step):
            end = min(begin + step, n_part_rows)
            rows = np.stack([tensor[begin:end] for tensor in tensors], axis=1).reshape(-1, row_bytes)
            units, scales = pack_rows(rows, type, matrix.n_columns)
            bad = _first_bad_row(units, scales, type)
            if bad >= 0:
                part = parts[bad % n_members]
                raise DllamaError(
                    f"{source.path}: row {part.row_begin + begin + bad // n_members} of tensor {part.tensor} holds "
                    "NaN or infinity; the file is damaged, get it again"
                )
            yield Chunk(matrix.name, 16 * first_row * matrix.n_units, units.reshape(-1))
            if scales.size:
                at = first_row * matrix.n_units * _SCALE_BYTES[type]
                yield Chunk(matrix.name, matrix.scales_offset + at, scales.reshape(-1))
            first_row += len(rows)
        for part in parts:
            source.release(part.tensor)


def packed_vectors(weights: Sequence[Weight], source: ModelSource) -> Chunk:
    """Norms or biases (1, n) one behind the other as f32, padded with zeros to a multiple of 8 numbers.

    Raises DllamaError as `packed_chunks` does, and for another number format than F32.
    """
    vectors = []
    for weight in weights:
        if weight.float_type is not FloatType.F32:
            raise DllamaError(
                f"{source.path}: the vector {weight.name} is stored as {weight.float_type.value}, not f32"
            )
        raw = np.concatenate([read_part(part, weight, source).reshape(-1) for part in weight.parts])
        vector = np.frombuffer(raw.tobytes(), np.float32)
        if not np.isfinite(vector).all():
            raise DllamaError(
                f"{source.path}: the vector {weight.name} holds NaN or infinity; the file is damaged, get it again"
            )
        vectors.append(vector)
    content = np.concatenate(vectors)
    padded = np.zeros(round_up(len(content), 8), np.float32)
    padded[: len(content)] = content
    return Chunk(weight_allocation(*(weight.name for weight in weights)), 0, padded.view(np.uint8))


def weight_allocation(*names: str) -> str:
    """Name of the allocation that holds weights."""
    return "weight:" + "+".join(names)


def pack_rows(rows: Bytes, type: FloatType, n_columns: int) -> tuple[Bytes, Bytes]:
    """Stored rows (n, row_bytes) to units (n, n_units · 16) and scales (n, bytes); no scales for plain formats."""
    n_rows = len(rows)
    if not type.is_quantized:
        n_bytes = 16 * -(-n_columns // UNIT_COLUMNS[type])
        units = np.zeros((n_rows, n_bytes), np.uint8)
        units[:, : rows.shape[1]] = rows
        return units, np.empty((n_rows, 0), np.uint8)
    blocks = rows.reshape(n_rows, -1, type.block_bytes)
    head = 4 if type is FloatType.Q41 else 2
    return blocks[:, :, head:].reshape(n_rows, -1), blocks[:, :, :head].reshape(n_rows, -1)


def _first_bad_row(units: Bytes, scales: Bytes, type: FloatType) -> int:
    """The first row with a number that is not finite, or -1."""
    if type is FloatType.BF16:
        finite = (units.view(np.uint16) & 0x7F80) != 0x7F80
    elif type is FloatType.F32:
        finite = np.isfinite(units.view(np.float32))
    else:
        finite = np.isfinite((units if type is FloatType.F16 else scales).view(np.float16))
    bad = np.flatnonzero(~finite.all(axis=1))
    return int(bad[0]) if bad.size else -1
