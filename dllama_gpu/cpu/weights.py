"""A graph's weights in the form that the native ops read."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from dllama_gpu.cpu import _native
from dllama_gpu.cpu.memory import Arena
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.batch import LoadProgress
from dllama_gpu.graph.graph import (
    Embed,
    ExpertGatedMatmul,
    ExpertMatmul,
    GatedMatmul,
    Graph,
    Matmul,
    RmsNorm,
    RopeStore,
    Weight,
)
from dllama_gpu.graph.weight_rows import read_part
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.source import ModelSource

_TYPES = {
    FloatType.F32: _native.WeightType.F32,
    FloatType.F16: _native.WeightType.F16,
    FloatType.BF16: _native.WeightType.BF16,
    FloatType.Q40: _native.WeightType.Q40,
    FloatType.Q41: _native.WeightType.Q41,
    FloatType.Q80: _native.WeightType.Q80,
}


@dataclass
class LoadedWeights:
    """Native handles by weight name, and the arrays they point into."""

    packed: dict[str, _native.PackedWeight] = field(default_factory=dict)
    """Matrices of matmuls: rows interleaved by 16, see native/kernel_table.hpp."""
    experts: dict[str, _native.PackedExperts] = field(default_factory=dict)
    """Stacks of experts, each packed for itself."""
    rows: dict[str, _native.RowSource] = field(default_factory=dict)
    """Matrices of embeddings: the packed one if a matmul shares it, else the file's own rows, read when needed."""
    vectors: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    """Norm weights and biases, f32 (n,)."""
    arrays: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    packed_bytes: int = 0
    matrices: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    """The memory of all packed matrices, in the order in which a step reads them."""


def load_weights(
    graph: Graph, source: ModelSource, pool: _native.ThreadPool, progress: LoadProgress | None = None
) -> LoadedWeights:
    """Reads every weight of `graph` once, releasing the file's pages as it goes.

    Raises DllamaError when a tensor is missing or has another shape or number format than the graph says.
    """
    packed, looked_up, vectors = _uses(graph)
    loaded = LoadedWeights()
    total = sum(_stored_bytes(weight) for weight in graph.weights)
    places, loaded.matrices = _places(graph, packed)
    done = 0
    for weight in graph.weights:
        if weight.name in vectors:
            loaded.vectors[weight.name] = _vector(weight, source)
        if weight.name in packed:
            _pack(weight, source, pool, loaded, places[weight.name])
        if weight.name in looked_up:
            loaded.rows[weight.name] = _row_source(weight, source, loaded)
        done += _stored_bytes(weight)
        if progress is not None:
            progress(done, total)
    return loaded


def _uses(graph: Graph) -> tuple[set[str], set[str], set[str]]:
    """Names of the weights that are read as matrices of matmuls, row by row, and as vectors."""
    packed: set[str] = set()
    looked_up: set[str] = set()
    vectors: set[str] = set()
    for op in graph.steps:
        if isinstance(op, Matmul):
            packed.add(op.weight)
        elif isinstance(op, GatedMatmul | ExpertGatedMatmul):
            packed.update((op.gate, op.up))
        elif isinstance(op, ExpertMatmul):
            packed.add(op.down)
        elif isinstance(op, Embed):
            looked_up.add(op.weight)
        elif isinstance(op, RmsNorm):
            vectors.add(op.weight)
        elif isinstance(op, RopeStore):
            vectors.update((*(op.biases or ()), *(op.norms or ())))
    return packed, looked_up, vectors


@dataclass(frozen=True)
class _Place:
    """Where the packed groups of 16 rows of a matrix go."""

    memory: npt.NDArray[np.uint8]
    between: int = 0
    """Bytes from the end of a group to the start of the next one, where groups of another matrix lie."""


def _places(graph: Graph, packed: set[str]) -> tuple[dict[str, _Place], npt.NDArray[np.uint8]]:
    """Where each packed weight goes, and the memory of all, in the order in which a step reads them.

    A gate and its up-projection are read together, so their groups take turns: memory is fastest when a thread reads it
    from front to back.
    """
    weights = {weight.name: weight for weight in graph.weights if weight.name in packed}
    arena = Arena(sum(Arena.padded(_packed_bytes(weight)) for weight in weights.values()), "the model's weights")
    pairs = _pairs(graph)
    ups = set(pairs.values())
    places: dict[str, _Place] = {}
    for name, weight in weights.items():
        if name in pairs:
            up = weights[pairs[name]]
            gate_bytes, up_bytes = _group_bytes(weight), _group_bytes(up)
            memory = arena.take(_packed_bytes(weight) + _packed_bytes(up))
            places[name] = _Place(memory, up_bytes)
            places[up.name] = _Place(memory[gate_bytes:], gate_bytes)
        elif name not in ups:
            places[name] = _Place(arena.take(_packed_bytes(weight)))
    return places, arena.memory


def _pairs(graph: Graph) -> dict[str, str]:
    """The up-projection of each gate whose groups lie in turns with its own; no weight is in two pairs or with itself.

    Experts, even if there is only one, lie each for itself.
    """
    taken: set[str] = set()
    for op in graph.steps:
        if isinstance(op, ExpertGatedMatmul):
            taken.update((op.gate, op.up))
        elif isinstance(op, ExpertMatmul):
            taken.add(op.down)
    pairs: dict[str, str] = {}
    for op in graph.steps:
        if isinstance(op, GatedMatmul) and op.gate != op.up and taken.isdisjoint((op.gate, op.up)):
            pairs[op.gate] = op.up
            taken.update((op.gate, op.up))
    return pairs


def _group_bytes(weight: Weight) -> int:
    return _native.packed_bytes(_TYPES[weight.float_type], 16, weight.n_columns)


def _stored_bytes(weight: Weight) -> int:
    return weight.n_rows * weight.float_type.row_bytes(weight.n_columns)


def _packed_bytes(weight: Weight) -> int:
    n_rows = weight.n_rows // weight.n_experts
    return weight.n_experts * _native.packed_bytes(_TYPES[weight.float_type], n_rows, weight.n_columns)


def _pack(
    weight: Weight,
    source: ModelSource,
    pool: _native.ThreadPool,
    loaded: LoadedWeights,
    place: _Place,
) -> None:
    type, n_columns = _TYPES[weight.float_type], weight.n_columns
    n_rows, stride = weight.n_rows // weight.n_experts, len(place.memory) // weight.n_experts
    next_row = 0
    for part in weight.parts:
        rows = read_part(part, weight, source)
        expert, first_row = divmod(next_row, n_rows)
        memory = place.memory[expert * stride : (expert + 1) * stride]
        bad = _native.pack(pool, memory, type, n_rows, n_columns, rows, first_row, place.between)
        if bad >= 0:
            raise DllamaError(
                f"{source.path}: row {part.row_begin + bad} of tensor {part.tensor} holds NaN or infinity; "
                "the file is damaged, get it again"
            )
        source.release(part.tensor)
        next_row += part.row_end - part.row_begin
    loaded.arrays.append(place.memory)
    loaded.packed_bytes += _packed_bytes(weight)
    if weight.n_experts == 1:
        loaded.packed[weight.name] = _native.PackedWeight(place.memory, type, n_rows, n_columns, place.between)
    if place.between == 0:
        loaded.experts[weight.name] = _native.PackedExperts(place.memory, type, weight.n_experts, n_rows, n_columns)


def _row_source(weight: Weight, source: ModelSource, loaded: LoadedWeights) -> _native.RowSource:
    if weight.name in loaded.packed:
        return _native.RowSource(loaded.packed[weight.name])
    rows = read_part(weight.parts[0], weight, source)
    loaded.arrays.append(rows)
    return _native.RowSource(rows, _TYPES[weight.float_type], weight.n_columns)


def _vector(weight: Weight, source: ModelSource) -> npt.NDArray[np.float32]:
    raw = read_part(weight.parts[0], weight, source)
    if weight.float_type is not FloatType.F32:
        raise DllamaError(f"{source.path}: the vector {weight.name} is stored as {weight.float_type.value}, not f32")
    vector = np.frombuffer(raw.tobytes(), np.float32)
    if not np.isfinite(vector).all():
        raise DllamaError(
            f"{source.path}: the vector {weight.name} holds NaN or infinity; the file is damaged, get it again"
        )
    return vector
