"""A GPU whose memory may be too small: the CPU of the same machine takes the rest of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from dllama_gpu.engine.split_program import SplitProgram
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.architectures import build_graph
from dllama_gpu.graph.batch import Device, LoadProgress, Program
from dllama_gpu.graph.division import DoesNotFitError
from dllama_gpu.graph.graph import BufferType, CacheType, Graph
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.graph.profile import Link, NodeProfile, PlanOptions
from dllama_gpu.graph.shard import Shard, shard_by_ratio
from dllama_gpu.graph.subset import best_subset
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.source import ModelSource
from dllama_gpu.net.measure import measure_speed

_LINK = Link(latency_seconds=50e-6, bytes_per_second=4e9)
"""Between the two: waiting for a GPU and starting it again, and a bus."""
_ATTEMPTS = 6
_PLENTY = 1 << 62


class MemoryBoundDevice(Device, Protocol):
    """A device with memory of its own."""

    def free_memory(self) -> int:
        """Bytes that a program may take."""

    def bytes_of(self, graph: Graph) -> int:
        """Bytes that a program of `graph` takes there."""

    @property
    def is_graphics_card(self) -> bool:
        """Whether it has a board and memory of its own."""


class SplitDevice:
    """Runs models that fit on the GPU there, and shares others between GPU and CPU as the planner says.

    `max_memory` bounds what the GPU's part may take, besides what is free. With `gpu_layers` the GPU computes that many
    layers' worth of every layer, whatever fits. `cpu_memory` says what the machine has left (None: unknown), and `tell`
    is told sentences about who does what. With `shares_memory` the GPU's memory is a part of the machine's.
    """

    def __init__(
        self,
        gpu: MemoryBoundDevice,
        make_cpu: Callable[[], Device],
        cpu_memory: Callable[[], int | None],
        tell: Callable[[str], None],
        max_memory: int | None = None,
        gpu_layers: int | None = None,
        shares_memory: bool = False,
    ) -> None:
        self._gpu = gpu
        self._make_cpu = make_cpu
        self._cpu_memory = cpu_memory
        self._tell = tell
        self._max_memory = max_memory
        self._gpu_layers = gpu_layers
        self._shares_memory = shares_memory

    @property
    def name(self) -> str:
        """Of the GPU."""
        return self._gpu.name

    @property
    def is_graphics_card(self) -> bool:
        """Of the GPU."""
        return self._gpu.is_graphics_card

    def free_memory(self) -> int:
        """Bytes that a program may take on both together."""
        gpu, cpu = self._gpu.free_memory(), self._cpu_memory() or 0
        return max(gpu, cpu) if self._shares_memory else gpu + cpu

    def compile(self, graph: Graph, source: ModelSource, progress: LoadProgress | None = None) -> Program:
        """Loads a whole model. Raises DllamaError as the devices do, and where it fits neither nor both."""
        n_layers = source.spec.n_layers
        if self._gpu_layers is None:
            if self._gpu.bytes_of(graph) <= self._limit():
                return self._gpu.compile(graph, source, progress)
            shards = self._planned(graph, source)
        elif self._gpu_layers > n_layers:
            raise DllamaError(f"--gpu-layers is {self._gpu_layers}, but the model has {n_layers} layers")
        elif self._gpu_layers == n_layers:
            return self._gpu.compile(graph, source, progress)
        else:
            shards = shard_by_ratio(source.spec, (n_layers - self._gpu_layers, self._gpu_layers))
        if not _has_work(shards[-1]):
            self._tell(f"all on {self._make_cpu().name}")
            return self._make_cpu().compile(graph, source, progress)
        return self._compile_both(graph, source, shards, progress)

    def _limit(self) -> int:
        free = self._gpu.free_memory()
        return free if self._max_memory is None else min(free, self._max_memory)

    def _planned(self, graph: Graph, source: ModelSource) -> Sequence[Shard]:
        """Rank 0 is the CPU, which reads embeddings from the file: they take no memory on the GPU then."""
        spec, options = source.spec, _options_of(graph)
        machine = self._cpu_memory()
        if self._shares_memory and machine is not None and (taken := self._gpu.bytes_of(graph)) > machine:
            raise DllamaError(
                f"the model takes {taken / 2**30:.1f} GiB, but this machine, whose memory {self.name} shares, has "
                f"{machine / 2**30:.1f} GiB available; use a smaller --max-seq-len, or add --workers"
            )
        weight_type = spec.weight_type
        cpu = self._make_cpu()
        speeds = [measure_speed(device, weight_type) for device in (cpu, self._gpu)]
        memory = machine or _PLENTY
        nodes = [
            NodeProfile(name, speed.bytes_per_second, speed.flops_per_second, size, speed.op_seconds)
            for name, speed, size in zip(("CPU", "GPU"), speeds, (memory, self._limit()), strict=True)
        ]
        wanted = PlanOptions(
            seq_len=options.seq_len,
            n_slots=options.n_slots,
            max_rows=options.max_rows,
            max_logit_rows=options.max_logit_rows,
            buffer_type=options.buffer_type,
            cache_type=options.cache_type,
            wire=FloatType.F32,
        )
        for _ in range(_ATTEMPTS):
            try:
                found = best_subset(spec, source.tensors, nodes, lambda *_: _LINK, wanted)
            except DoesNotFitError as error:
                raise DllamaError(f"{self.name} and the processor's memory together are too small: {error}") from None
            if len(found.nodes) == 1:
                return shard_by_ratio(spec, (1, 0))
            taken = self._gpu.bytes_of(build_graph(spec, source.tensors, options, found.shards[1]))
            if taken <= self._limit():
                return found.shards
            # The planner counts what a graph declares; a device also pads and keeps room to work in.
            nodes[1] = replace(nodes[1], memory_bytes=max(0, nodes[1].memory_bytes - (taken - self._limit())))
        return shard_by_ratio(spec, (1, 0))

    def _compile_both(
        self, graph: Graph, source: ModelSource, shards: Sequence[Shard], progress: LoadProgress | None
    ) -> SplitProgram:
        options = _options_of(graph)
        graphs = [build_graph(source.spec, source.tensors, options, shard) for shard in shards]
        sizes = [part.weight_bytes() for part in graphs]
        devices = (self._make_cpu(), self._gpu)
        programs: list[Program] = []
        for device, part, size in zip(devices, graphs, sizes, strict=True):
            self._tell(f"{device.name}: {size / 2**20:.1f} MiB of weights ({size / sum(sizes):.0%})")
            before = sum(sizes[: len(programs)])

            def advance(done: int, total: int, before: int = before, size: int = size) -> None:
                if progress is not None:
                    progress(before + round(size * done / max(total, 1)), sum(sizes))

            programs.append(device.compile(part, source, advance))
        return SplitProgram(graph, programs)


def _has_work(shard: Shard) -> bool:
    return bool(shard.heads or shard.hidden or shard.vocab)


def _options_of(graph: Graph) -> GraphOptions:
    """The options that a whole model's graph was built with."""
    n_candidates = next(buffer.width for buffer in graph.buffers if buffer.name == "candidate_values")
    quantized = any(buffer.type is BufferType.Q80 for buffer in graph.buffers)
    return GraphOptions(
        max_rows=graph.max_rows,
        max_logit_rows=graph.max_logit_rows,
        n_slots=graph.n_slots,
        seq_len=graph.seq_len,
        buffer_type=BufferType.Q80 if quantized else BufferType.F32,
        cache_type=graph.caches[0].type if graph.caches else CacheType.F16,
        n_candidates=n_candidates,
    )
