"""A GPU as a device."""

from __future__ import annotations

import copy
from dataclasses import replace

from dllama_gpu.graph.batch import LoadProgress
from dllama_gpu.graph.check import check
from dllama_gpu.graph.graph import Graph
from dllama_gpu.model.source import ModelSource
from dllama_gpu.vulkan.gpu import Gpu
from dllama_gpu.vulkan.limits import Tier
from dllama_gpu.vulkan.memory import ProgramMemory
from dllama_gpu.vulkan.plan import plan_program
from dllama_gpu.vulkan.program import VulkanProgram


class VulkanDevice:
    """Runs graphs on the `index`th GPU; see `dllama_gpu.graph.batch.Device`.

    Options and errors are those of `dllama_gpu.vulkan.gpu.Gpu`.
    """

    def __init__(self, index: int, *, tier: Tier | None = None, validation: bool = False) -> None:
        self.gpu = Gpu(index, tier=tier, validation=validation)
        self._limits = self.gpu.limits

    @property
    def name(self) -> str:
        """For people, e.g. `vulkan:0 (NVIDIA GeForce RTX 3060, dot)`."""
        return f"vulkan:{self.gpu.index} ({self.gpu.info.name}, {self.gpu.tier.name.lower()})"

    @property
    def is_graphics_card(self) -> bool:
        """Whether it has a board and memory of its own, and with them units enough for many rows at once."""
        return self.gpu.info.type == "discrete"

    def seeing(self, n_bytes: int) -> VulkanDevice:
        """The same GPU, whose shaders are to see at most `n_bytes` of a buffer; longer matrices are cut by rows."""
        other = copy.copy(self)
        other._limits = replace(self._limits, max_range=n_bytes)
        return other

    def free_memory(self) -> int:
        """Bytes that a program may take."""
        return self.gpu.free_memory()

    def bytes_of(self, graph: Graph) -> int:
        """Bytes that a program of `graph` takes on the GPU. Raises DllamaError for a graph that it cannot run."""
        check(graph)
        return sum(a.n_bytes for a in plan_program(graph, self._limits, self.gpu.tier).allocations)

    def compile(self, graph: Graph, source: ModelSource, progress: LoadProgress | None = None) -> VulkanProgram:
        """Loads the graph's weights from `source` into the GPU's memory.

        Raises DllamaError when the graph is unsound, a tensor is missing, or the GPU has too little memory for it or
        no shader.
        """
        check(graph)
        plan = plan_program(graph, self._limits, self.gpu.tier)
        memory = ProgramMemory(self.gpu, plan.allocations)
        memory.fill(plan.constants, plan.weight_chunks(source), progress)
        return VulkanProgram(self.gpu, plan, memory)
