"""A graph planned for a Vulkan device: allocations, packed weights, and what to record for any number of rows.

Pure: nothing here touches a device. A program makes the allocations, fills weights and constants, records `segment`s
when their row counts are first wanted and replays them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.graph import (
    AllReduce,
    Attention,
    Broadcast,
    BufferType,
    Embed,
    ExpertGatedMatmul,
    ExpertMatmul,
    GatedMatmul,
    GatherCandidates,
    Graph,
    Matmul,
    RmsNorm,
    RopeAngles,
    RopeStore,
    TopCandidates,
    TopExperts,
    Weight,
)
from dllama_gpu.model.source import ModelSource
from dllama_gpu.vulkan.activations import Activation, lay_out, round_up, scratch
from dllama_gpu.vulkan.dispatch import Binding, Recorded, with_barriers
from dllama_gpu.vulkan.limits import DeviceLimits, Tier
from dllama_gpu.vulkan.mapping.attention import attention_partials, vectors_of
from dllama_gpu.vulkan.mapping.dispatches import dispatches
from dllama_gpu.vulkan.mapping.matmuls import gated_name
from dllama_gpu.vulkan.mapping.rows import CANDIDATE_LIST, CANDIDATE_WINDOW, n_slices
from dllama_gpu.vulkan.mapping.surroundings import RowCounts, Surroundings, cache_bytes
from dllama_gpu.vulkan.step import step_bytes
from dllama_gpu.vulkan.tuning import Tuning, for_device, uses_matrices
from dllama_gpu.vulkan.weights import (
    Chunk,
    PackedMatrix,
    can_take_turns,
    packed_chunks,
    packed_vectors,
    weight_allocation,
)

STEP = "step"
_MAX_HEAD_DIM = 512


class Use(Enum):
    """Who touches an allocation."""

    WEIGHT = "weight"
    """Filled once, then read by the device."""
    CACHE = "cache"
    """KV cache: zero at first, the device's own."""
    WORK = "work"
    """Activations and scratch: zero at first, the device's own."""
    HOST = "host"
    """Activations that the host reads or writes between segments; zero at first."""
    STEP = "step"
    """Written by the host before each step."""


@dataclass(frozen=True)
class Allocation:
    """Memory that a program needs."""

    name: str
    n_bytes: int
    use: Use


@dataclass(frozen=True)
class ProgramPlan:
    """See the module; made by `plan_program`."""

    graph: Graph
    around: Surroundings
    allocations: tuple[Allocation, ...]
    constants: dict[str, bytes]
    """Content, by allocation, that does not come from the model's file."""

    def weight_chunks(self, source: ModelSource) -> Iterator[Chunk]:
        """The content of all weight allocations, piece by piece; raises DllamaError for a file that does not fit."""
        weights = {weight.name: weight for weight in self.graph.weights}
        for names in self.around.vectors:
            yield packed_vectors([weights[name] for name in names], source)
        for matrix in {matrix.name: matrix for matrix in self.around.matrices.values()}.values():
            yield from packed_chunks(matrix, source)

    def buckets(self, n_rows: int, n_logit_rows: int) -> tuple[int, int]:
        """Row counts to record for, so that a few recordings serve all steps: powers of two, at most the most."""
        most_logits = self.graph.max_logit_rows or self.graph.max_rows
        return _bucket(n_rows, self.graph.max_rows), _bucket(n_logit_rows, most_logits)

    def segment(self, number: int, row_bucket: int, logit_bucket: int) -> tuple[Recorded, ...]:
        """The dispatches and barriers of one of `graph.segments()`; with no rows of logits, without what makes them."""
        steps, _ = self.graph.segments()[number]
        counts = RowCounts(row_bucket, logit_bucket)
        return tuple(with_barriers(d for op in steps for d in dispatches(op, self.around, counts)))

    def read(self, name: str, n_rows: int, memory: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """The first rows (n_rows, width) of a buffer out of its allocation's bytes; see `Activation.read`."""
        return self.around.activations[name].read(memory, n_rows)


def plan_program(graph: Graph, limits: DeviceLimits, tier: Tier, tuning: Tuning | None = None) -> ProgramPlan:
    """Plans a checked graph.

    Raises DllamaError when the device's shaders cannot run it: heads too long, too many candidates, or a buffer
    that is longer than a shader can see.
    """
    tuning = tuning or for_device(limits, tier)
    _check(graph)
    activations = lay_out(graph, tier)
    seq_len = round_up(graph.seq_len, 32)
    constants, frequencies = _frequencies(graph)
    around = Surroundings(
        tuning=tuning,
        activations=activations,
        rows={buffer.name: buffer.rows for buffer in graph.buffers},
        matrices=_matrices(graph),
        vectors=_vectors(graph),
        frequencies=frequencies,
        caches={cache.name: cache for cache in graph.caches},
        seq_len=seq_len,
        n_slots=graph.n_slots,
        step=Binding(STEP, 0, step_bytes(graph.max_rows)),
        scratch=_scratch(graph, activations, tuning, seq_len),
    )
    allocations = tuple(_allocations(graph, around, constants))
    for allocation in allocations:
        if allocation.use is not Use.WEIGHT and allocation.n_bytes > limits.max_range:
            raise DllamaError(
                f"the buffer {allocation.name} takes {allocation.n_bytes >> 20} MiB, but this GPU's shaders see "
                f"{limits.max_range >> 20} MiB of a buffer; use a shorter context, fewer users or smaller batches"
            )
    return ProgramPlan(graph, around, allocations, constants)


def _allocations(graph: Graph, around: Surroundings, constants: dict[str, bytes]) -> Iterator[Allocation]:
    yield Allocation(STEP, around.step.n_bytes, Use.STEP)
    for name, content in constants.items():
        yield Allocation(name, len(content), Use.WEIGHT)
    for vector in around.vectors.values():
        yield Allocation(vector.allocation, vector.n_bytes, Use.WEIGHT)
    for matrix in {matrix.name: matrix for matrix in around.matrices.values()}.values():
        yield Allocation(matrix.name, matrix.n_bytes, Use.WEIGHT)
    for cache in graph.caches:
        for half in ("keys", "values"):
            n_bytes = cache_bytes(cache, graph.n_slots, around.seq_len)
            yield Allocation(f"{cache.name}.{half}", n_bytes, Use.CACHE)
    on_host = _host_buffers(graph)
    for activation in around.activations.values():
        yield Allocation(activation.name, activation.n_bytes, Use.HOST if activation.name in on_host else Use.WORK)
    for activation in around.scratch.values():
        yield Allocation(activation.name, activation.n_bytes, Use.WORK)


def _host_buffers(graph: Graph) -> set[str]:
    """Buffers that exchanges and sampling touch in every step; logits are many and seldom asked for."""
    names: set[str] = set()
    for step in graph.steps:
        if isinstance(step, AllReduce | Broadcast):
            names.add(step.buffer)
        elif isinstance(step, GatherCandidates):
            names.update((*(step.own or ()), *(step.into or ())))
        elif isinstance(step, TopCandidates):
            names.update((step.values, step.ids, step.log_sum_exp))
    return names


def _matrices(graph: Graph) -> dict[str, PackedMatrix]:
    weights = {weight.name: weight for weight in graph.weights}
    matrices: dict[str, PackedMatrix] = {}

    def add(key: str, *members: Weight) -> None:
        matrices[key] = PackedMatrix(weight_allocation(*(member.name for member in members)), members)

    for op in graph.steps:
        if isinstance(op, Matmul | Embed):
            add(op.weight, weights[op.weight])
        elif isinstance(op, ExpertMatmul):
            add(op.down, weights[op.down])
        elif isinstance(op, GatedMatmul | ExpertGatedMatmul):
            gate, up = weights[op.gate], weights[op.up]
            if can_take_turns(gate, up):
                add(gated_name(op), gate, up)
            else:
                add(op.gate, gate)
                add(op.up, up)
    return matrices


def _vectors(graph: Graph) -> dict[tuple[str, ...], Binding]:
    widths = {weight.name: weight.n_columns for weight in graph.weights}
    vectors: dict[tuple[str, ...], Binding] = {}
    for op in graph.steps:
        names: tuple[str, ...] = ()
        if isinstance(op, RmsNorm):
            names = (op.weight,)
        elif isinstance(op, RopeStore):
            names = vectors_of(op)
        if names:
            n_numbers = round_up(sum(widths[name] for name in names), 8)
            vectors[names] = Binding(weight_allocation(*names), 0, 4 * n_numbers)
    return vectors


def _frequencies(graph: Graph) -> tuple[dict[str, bytes], dict[tuple[float, ...], Binding]]:
    """Frequencies in turns a position as 64-bit fractions; see shaders/rope_angles.comp."""
    constants: dict[str, bytes] = {}
    bindings: dict[tuple[float, ...], Binding] = {}
    for op in graph.steps:
        if isinstance(op, RopeAngles) and op.frequencies not in bindings:
            name = f"rope:{len(bindings)}"
            turns = [math.floor(f / (2 * math.pi) % 1.0 * 2.0**64) % 2**64 for f in op.frequencies]
            constants[name] = np.array(turns, "<u8").tobytes()
            bindings[op.frequencies] = Binding(name, 0, len(constants[name]))
    return constants, bindings


def _scratch(graph: Graph, activations: dict[str, Activation], tuning: Tuning, seq_len: int) -> dict[str, Activation]:
    """Memory between the dispatches of an op; ops of a kind share it, as they run one after the other."""
    sizes: dict[str, tuple[int, int]] = {}  # name -> width, rows

    def need(name: str, width: int, rows: int) -> None:
        if width:
            known_width, known_rows = sizes.get(name, (0, 0))
            sizes[name] = max(known_width, width), max(known_rows, rows)

    caches = {cache.name: cache for cache in graph.caches}
    buffers = {buffer.name: buffer for buffer in graph.buffers}
    weights = {weight.name: weight for weight in graph.weights}
    for op in graph.steps:
        if isinstance(op, Matmul | GatedMatmul):
            n_rows, x = graph.rows_of(buffers[op.out]), activations[op.x]
            for name in (op.weight,) if isinstance(op, Matmul) else (op.gate, op.up):
                if uses_matrices(tuning, weights[name].float_type, x.packed, n_rows):
                    need("halves", round_up(weights[name].n_columns, 32) // 2, n_rows)
        if isinstance(op, Attention):
            cache = caches[op.cache]
            for bucket in _buckets(graph.max_rows):
                need("partials", bucket * attention_partials(op, cache, tuning, bucket, seq_len), 1)
            if buffers[op.out].type is BufferType.Q80 and cache.head_dim % 32:
                need("attended", buffers[op.out].width, graph.max_rows)
        elif isinstance(op, GatedMatmul) and not can_take_turns(weights[op.gate], weights[op.up]):
            for name in ("gate", "up"):
                need(name, buffers[op.out].width, graph.rows_of(buffers[op.out]))
        elif isinstance(op, TopCandidates):
            logits = buffers[op.logits]
            slices = graph.rows_of(logits) * n_slices(logits.width, tuning)
            need("candidate_keys", 2 * slices * buffers[op.values].width, 1)
            need("candidate_sums", 2 * slices, 1)
    return {name: scratch(f"scratch:{name}", width, rows) for name, (width, rows) in sizes.items()}


def _check(graph: Graph) -> None:
    for cache in graph.caches:
        if cache.head_dim % 2 or cache.head_dim > _MAX_HEAD_DIM:
            raise DllamaError(
                f"the Vulkan device needs an even head_dim of at most {_MAX_HEAD_DIM}, not {cache.head_dim}"
            )
    weights = {weight.name: weight for weight in graph.weights}
    most = CANDIDATE_LIST - CANDIDATE_WINDOW
    for op in graph.steps:
        if isinstance(op, TopCandidates):
            k = next(buffer.width for buffer in graph.buffers if buffer.name == op.values)
            if k > most:
                raise DllamaError(f"the Vulkan device finds at most {most} candidates, not {k}")
        elif isinstance(op, TopExperts):
            n_experts = next(buffer.width for buffer in graph.buffers if buffer.name == op.logits)
            if n_experts > CANDIDATE_LIST:
                raise DllamaError(f"the Vulkan device chooses among at most {CANDIDATE_LIST} experts, not {n_experts}")
        elif isinstance(op, ExpertGatedMatmul):
            gate, up = weights[op.gate], weights[op.up]
            hidden = gate.n_rows // gate.n_experts
            if not can_take_turns(gate, up) or hidden % 8:
                raise DllamaError(
                    "the Vulkan device needs gate and up of experts in one number format and a multiple of 8 rows, not "
                    f"{gate.float_type.value} and {up.float_type.value} with {hidden} rows; use --device cpu"
                )


def _buckets(most: int) -> list[int]:
    return sorted({_bucket(n, most) for n in range(1, most + 1)})


def _bucket(n: int, most: int) -> int:
    return min(1 << (n - 1).bit_length(), most) if n else 0
