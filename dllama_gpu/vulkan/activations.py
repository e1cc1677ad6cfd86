"""How a device keeps the activations of a graph.

F32 rows are padded with zeros to a multiple of 8 numbers, so that shaders read them as vec4 and matmuls whole units of
weights. I32 rows, and the F32 rows of candidates, are not. Q80 is, below the dot tier, f32 that has been rounded to
Q80; from the dot tier on, (rows, width) int8 and behind it (rows, width / 32) pairs of f32: d, and d times the sum of
the block's quants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dllama_gpu.graph.graph import Buffer, BufferType, Graph, TopCandidates
from dllama_gpu.vulkan.dispatch import Access, Binding
from dllama_gpu.vulkan.limits import Tier

_ALIGNMENT = 256  # minStorageBufferOffsetAlignment is at most this


@dataclass(frozen=True)
class Activation:
    """A buffer of the graph in memory; an allocation of its own, named like the buffer."""

    name: str
    type: BufferType
    width: int
    max_rows: int
    stride: int
    """Numbers from one row to the next."""
    packed: bool
    """Q80 as int8 and scales; else all numbers have 32 bits."""

    @property
    def scales_offset(self) -> int:
        """Where the scales of packed Q80 begin, in bytes."""
        return round_up(self.max_rows * self.stride, _ALIGNMENT)

    @property
    def n_bytes(self) -> int:
        """Size of the allocation."""
        if self.packed:
            return self.scales_offset + self.max_rows * self.stride // 4
        return 4 * self.max_rows * self.stride

    @property
    def row_words(self) -> int:
        """32-bit words from one row (of quants) to the next."""
        return self.stride // 4 if self.packed else self.stride

    def values(self, access: Access = "r") -> Binding:
        """The numbers, or the quants of packed Q80."""
        n_bytes = self.max_rows * self.stride if self.packed else self.n_bytes
        return Binding(self.name, 0, n_bytes, access)

    def scales(self, access: Access = "r") -> Binding:
        """The scales of packed Q80; for other buffers, which shaders then leave alone, the numbers again."""
        if self.packed:
            return Binding(self.name, self.scales_offset, self.max_rows * self.stride // 4, access)
        return self.values(access)

    def read(self, memory: npt.NDArray[np.uint8], n_rows: int) -> npt.NDArray[Any]:
        """The first rows (n_rows, width) out of the allocation's bytes: a view, or a copy of packed Q80."""
        if self.packed:
            quants = memory[: n_rows * self.stride].view(np.int8).reshape(n_rows, -1, 32)
            end = self.scales_offset + n_rows * self.stride // 4
            scales = memory[self.scales_offset : end].view(np.float32).reshape(n_rows, -1, 2)
            return (quants * scales[:, :, :1]).astype(np.float32).reshape(n_rows, self.width)
        kind = np.int32 if self.type is BufferType.I32 else np.float32
        return memory[: 4 * n_rows * self.stride].view(kind).reshape(n_rows, self.stride)[:, : self.width]


def lay_out(graph: Graph, tier: Tier) -> dict[str, Activation]:
    """The activations of a graph, by name."""
    tight = {name for op in graph.steps if isinstance(op, TopCandidates) for name in (op.values, op.log_sum_exp)}
    return {buffer.name: _activation(graph, buffer, tier, buffer.name in tight) for buffer in graph.buffers}


def scratch(name: str, width: int, max_rows: int) -> Activation:
    """A buffer of 32-bit words that only this device knows: f32 or, where a shader says so, pairs of f16."""
    return Activation(name, BufferType.F32, width, max_rows, round_up(width, 8), packed=False)


def _activation(graph: Graph, buffer: Buffer, tier: Tier, tight: bool) -> Activation:
    tight = tight or buffer.type is BufferType.I32
    stride = buffer.width if tight else round_up(buffer.width, 8)
    packed = buffer.type is BufferType.Q80 and tier >= Tier.DOT
    return Activation(buffer.name, buffer.type, buffer.width, graph.rows_of(buffer), stride, packed)


def round_up(n: int, multiple: int) -> int:
    """The next multiple."""
    return -(-n // multiple) * multiple
