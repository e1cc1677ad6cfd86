"""Runs a `ProgramPlan` in the plainest way: all memory visible to the host, every segment recorded for its batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dllama_gpu.graph.batch import Batch
from dllama_gpu.graph.check import check
from dllama_gpu.graph.graph import Graph
from dllama_gpu.model.source import ModelSource
from dllama_gpu.vulkan import _native
from dllama_gpu.vulkan.dispatch import Dispatch
from dllama_gpu.vulkan.gpu import required_subgroup_size
from dllama_gpu.vulkan.limits import DeviceLimits, Tier
from dllama_gpu.vulkan.plan import STEP, plan_program
from dllama_gpu.vulkan.shaders import read_spirv
from dllama_gpu.vulkan.step import write_step
from dllama_gpu.vulkan.tuning import Tuning

TIMEOUT_SECONDS = 60.0


class PlanRunner:
    """Compiles and runs graphs on a native device, with kernels shared between graphs."""

    def __init__(self, device: _native.Device, limits: DeviceLimits, tier: Tier, tuning: Tuning | None = None) -> None:
        self.device = device
        self.limits = limits
        self.tier = tier
        self.tuning = tuning
        self.kernels: dict[tuple[str, tuple[int, ...]], _native.Kernel] = {}

    def compile(self, graph: Graph, source: ModelSource) -> PlannedProgram:
        check(graph)
        return PlannedProgram(self, graph, source)

    def kernel(self, dispatch: Dispatch) -> _native.Kernel:
        key = dispatch.shader, dispatch.specialization
        if key not in self.kernels:
            spirv, n_bindings, n_push = read_spirv(dispatch.shader), len(dispatch.bindings), len(dispatch.push)
            size = required_subgroup_size(dispatch, self.device.info.subgroup)
            self.kernels[key] = self.device.kernel(spirv, n_bindings, n_push, dispatch.specialization, size)
        return self.kernels[key]


class PlannedProgram:
    def __init__(self, runner: PlanRunner, graph: Graph, source: ModelSource) -> None:
        self.runner = runner
        self.plan = plan_program(graph, runner.limits, runner.tier, runner.tuning)
        kind = _native.BufferKind.UNIFIED
        self.memory = {a.name: runner.device.buffer(max(a.n_bytes, 4), kind) for a in self.plan.allocations}
        self.recordings: dict[tuple[int, int, int], _native.Recording] = {}
        for buffer in self.memory.values():
            buffer.view()[:] = 0
        for name, content in self.plan.constants.items():
            self.memory[name].view()[:] = np.frombuffer(content, np.uint8)
        for chunk in self.plan.weight_chunks(source):
            self.memory[chunk.allocation].view()[chunk.offset : chunk.offset + len(chunk.content)] = chunk.content

    def run(self, batch: Batch) -> None:
        batch.check(self.plan.graph)
        write_step(batch, self.memory[STEP].view().view(np.uint32))
        buckets = self.plan.buckets(len(batch.tokens), len(batch.logit_rows))
        for number in range(len(self.plan.graph.segments())):
            self.recording(number, *buckets).run(TIMEOUT_SECONDS)

    def recording(self, number: int, row_bucket: int, logit_bucket: int) -> _native.Recording:
        key = number, row_bucket, logit_bucket
        if key not in self.recordings:
            recording = self.runner.device.recording()
            for item in self.plan.segment(*key):
                if isinstance(item, Dispatch):
                    bound = [(self.memory[b.allocation], b.offset, b.n_bytes) for b in item.bindings]
                    recording.dispatch(self.runner.kernel(item), bound, item.push, item.grid)
                else:
                    recording.barrier()
            recording.host_barrier()
            recording.finish()
            self.recordings[key] = recording
        return self.recordings[key]

    def buffer(self, name: str, n_rows: int) -> npt.NDArray[Any]:
        return self.plan.read(name, n_rows, self.memory[name].view())
