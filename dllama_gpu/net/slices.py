"""The slices of tensors that a graph is made of: naming them, reading them, and offering received ones to a device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.graph import Graph, TensorSlice
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.source import ModelSource, TensorInfo
from dllama_gpu.model.spec import ModelSpec
from dllama_gpu.net.store import HeldSlice

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class WeightSlice:
    """A rectangle of a tensor and its number format: what crosses the network as one piece, row by row."""

    part: TensorSlice
    float_type: FloatType

    @property
    def n_rows(self) -> int:
        """Rows of the rectangle."""
        return self.part.row_end - self.part.row_begin

    @property
    def n_columns(self) -> int:
        """Elements of one of its rows."""
        return self.part.column_end - self.part.column_begin

    @property
    def row_bytes(self) -> int:
        """Bytes of one of its rows."""
        return self.float_type.row_bytes(self.n_columns)

    @property
    def n_bytes(self) -> int:
        """Bytes of the rectangle."""
        return self.n_rows * self.row_bytes

    @property
    def name(self) -> str:
        """Tensor, rows and columns; unique within a model."""
        part = self.part
        return f"{part.tensor}[{part.row_begin}:{part.row_end},{part.column_begin}:{part.column_end}]"


def graph_slices(graph: Graph) -> tuple[WeightSlice, ...]:
    """Every slice that the graph reads, once, in the order of first use."""
    parts = (WeightSlice(part, weight.float_type) for weight in graph.weights for part in weight.parts)
    return tuple(dict.fromkeys(parts))


def localize(graph: Graph) -> Graph:
    """The same graph over tensors that are just its slices, so that a device needs nothing else of the model."""
    weights = []
    for weight in graph.weights:
        parts = []
        for part in weight.parts:
            piece = WeightSlice(part, weight.float_type)
            parts.append(TensorSlice(piece.name, 0, piece.n_rows, 0, piece.n_columns))
        weights.append(replace(weight, parts=tuple(parts)))
    return replace(graph, weights=tuple(weights))


def read_slice(source: ModelSource, piece: WeightSlice, begin: int, chunk_bytes: int) -> Iterator[Bytes]:
    """The slice's bytes from byte `begin` on, in chunks of about `chunk_bytes` (whole rows, at least one).

    Raises DllamaError when the source has no such tensor.
    """
    info = source.tensors.get(piece.part.tensor)
    if info is None or info.float_type is not piece.float_type:
        raise DllamaError(f"{source.path} has no {piece.float_type.value} tensor {piece.part.tensor}")
    bytes_at = piece.float_type.row_bytes
    columns = slice(bytes_at(piece.part.column_begin), bytes_at(piece.part.column_end))
    rows = source.read(piece.part.tensor)[piece.part.row_begin : piece.part.row_end, columns]
    step = max(1, chunk_bytes // piece.row_bytes)
    row, inside = divmod(begin, piece.row_bytes)
    while row < piece.n_rows:
        chunk = np.ascontiguousarray(rows[row : row + step]).reshape(-1)
        yield chunk[inside:]
        row, inside = row + step, 0
    source.release(piece.part.tensor)


class SliceSource:
    """A ModelSource over the slices a worker holds, for a graph that was made local by `localize`.

    Slices in files are mapped when read. Those in memory are dropped with the last release, so that a device that makes
    its own copy does not need twice the memory.
    """

    def __init__(self, graph: Graph, held: Mapping[str, HeldSlice], model: str, spec: ModelSpec) -> None:
        self._held = dict(held)
        self._path = Path(model)
        self._spec = spec
        self._uses = Counter(part.tensor for weight in graph.weights for part in weight.parts)
        self._tensors = {
            piece.part.tensor: TensorInfo(piece.part.tensor, (piece.n_rows, piece.n_columns), piece.float_type)
            for piece in graph_slices(graph)
        }

    @property
    def path(self) -> Path:
        """The root's name of the model, for messages."""
        return self._path

    @property
    def spec(self) -> ModelSpec:
        """Shape of the whole model."""
        return self._spec

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The slices as tensors of their own."""
        return self._tensors

    def read(self, name: str) -> Bytes:
        """uint8 (n_rows, row_bytes) of one slice."""
        info = self._tensors[name]
        return self._held[name].open().reshape(info.n_rows, info.row_bytes)

    def release(self, name: str) -> None:
        """Counts down the uses of a slice."""
        self._uses[name] -= 1
        if self._uses[name] == 0:
            del self._held[name]

    def close(self) -> None:
        """Drops all slices."""
        self._held.clear()
