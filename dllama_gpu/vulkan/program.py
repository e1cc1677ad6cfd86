"""A graph as recorded work for a GPU."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.batch import Batch, ExchangeHandler, check_prefix_copy
from dllama_gpu.graph.graph import Graph
from dllama_gpu.vulkan import _native
from dllama_gpu.vulkan.dispatch import Dispatch, Recorded
from dllama_gpu.vulkan.failures import explained
from dllama_gpu.vulkan.gpu import Gpu
from dllama_gpu.vulkan.memory import ProgramMemory
from dllama_gpu.vulkan.plan import STEP, ProgramPlan
from dllama_gpu.vulkan.prefix import prefix_copies
from dllama_gpu.vulkan.step import write_step
from dllama_gpu.vulkan.submits import in_submits, should_cut_anew

_SECONDS = 120.0  # that a segment may take
_SECONDS_ON_A_PROCESSOR = 1800.0

_RecordingKey = tuple[int, int, int]
"""Segment, rows, rows that want logits."""


class VulkanProgram:
    """A compiled graph; see `dllama_gpu.graph.batch.Program`.

    A segment is recorded when a number of rows first needs it, and replayed from then on: what changes from step to
    step lies in the step buffer, which the shaders read.
    """

    def __init__(self, gpu: Gpu, plan: ProgramPlan, memory: ProgramMemory) -> None:
        self._gpu = gpu
        self._plan = plan
        self._memory = memory
        self._segments = plan.graph.segments()
        self._declared = {buffer.name: buffer for buffer in plan.graph.buffers}
        self._step = memory.views[STEP].view(np.uint32)
        self._recordings: dict[_RecordingKey, list[_native.Recording]] = {}
        self._seconds_of: dict[_RecordingKey, float] = {}
        self._seconds = _SECONDS_ON_A_PROCESSOR if gpu.info.type == "cpu" else _SECONDS

    @property
    def graph(self) -> Graph:
        """What was compiled."""
        return self._plan.graph

    def run(self, batch: Batch, exchange: ExchangeHandler | None = None) -> None:
        """Computes one step; see `dllama_gpu.graph.batch.Program.run`. Raises GpuError when the GPU fails."""
        batch.check(self.graph)
        rows, logit_rows = self._plan.buckets(len(batch.tokens), len(batch.logit_rows))
        keys = [(number, rows, logit_rows) for number in range(len(self._segments))]
        recordings = [self._recorded(key) for key in keys]
        self._gpu.keep_kernels()
        write_step(batch, self._step)
        for key, submits, (_, wanted) in zip(keys, recordings, self._segments, strict=True):
            start = time.perf_counter()
            for recording in submits:
                with explained(self._gpu.label, "a step was computed"):
                    recording.run(self._seconds)
            self._learn(key, time.perf_counter() - start)
            if wanted is not None:
                if exchange is None:
                    raise DllamaError("this graph is one node's share of a model; it runs only within a cluster")
                exchange(wanted, batch)

    def buffer(self, name: str, n_rows: int) -> npt.NDArray[Any]:
        """See `dllama_gpu.graph.batch.Program.buffer`; a copy also for buffers that no exchange and no sampler reads.

        Raises ValueError for an unknown name or too many rows.
        """
        if name not in self._declared or not 0 <= n_rows <= self.graph.rows_of(self._declared[name]):
            raise ValueError(f"this program has no {n_rows} rows of a buffer {name}")
        activation = self._plan.around.activations[name]
        # Packed rows have their scales behind all of them.
        n_bytes = activation.n_bytes if activation.packed else 4 * max(n_rows, 1) * activation.stride
        return self._plan.read(name, n_rows, self._memory.read(name, n_bytes))

    def copy_prefix(self, source: int, target: int, n_positions: int) -> None:
        """See `dllama_gpu.graph.batch.PrefixCopier`. Raises ValueError for slots or positions that there are not."""
        check_prefix_copy(self.graph, source, target, n_positions)
        if source == target or n_positions == 0:
            return
        buffers = self._memory.buffers
        seq_len = self._plan.around.seq_len
        recording = self._gpu.native.recording()
        recording.barrier()
        for copy in prefix_copies(self.graph.caches, self.graph.n_slots, seq_len, source, target, n_positions):
            buffer = buffers[copy.allocation]
            recording.copy(buffer, copy.source, buffer, copy.target, copy.n_bytes)
        recording.barrier()
        recording.finish()
        with explained(self._gpu.label, "the beginning of a text was copied"):
            recording.run(self._seconds)

    def work_of(self, n_rows: int, n_logit_rows: int) -> tuple[int, int, int]:
        """Dispatches, barriers and submits of a step with so many rows."""
        rows, logit_rows = self._plan.buckets(n_rows, n_logit_rows)
        found = [self._recorded((number, rows, logit_rows)) for number in range(len(self._segments))]
        submits = list(itertools.chain.from_iterable(found))
        return sum(r.n_dispatches for r in submits), sum(r.n_barriers for r in submits), len(submits)

    def timed(self, n_rows: int, n_logit_rows: int) -> list[tuple[Dispatch, float]]:
        """Runs the work of the last step again, if it had so many rows, and tells the seconds of every dispatch.

        Each is waited for, which a step does not do, so that the sum is more than a step takes. Segments follow one
        another without their exchanges. KV caches stay as they are.
        """
        rows, logit_rows = self._plan.buckets(n_rows, n_logit_rows)
        found: list[tuple[Dispatch, float]] = []
        for number in range(len(self._segments)):
            dispatches = [item for item in self._plan.segment(number, rows, logit_rows) if isinstance(item, Dispatch)]
            recording = self._gpu.native.recording(2 * len(dispatches))
            for dispatch in dispatches:
                recording.barrier()
                recording.timestamp()
                self._dispatch(recording, dispatch)
                recording.timestamp()
            recording.finish()
            with explained(self._gpu.label, "a step was timed"):
                recording.run(self._seconds)
            times = recording.timestamps()
            spans = [end - begin for begin, end in zip(times[::2], times[1::2], strict=True)]
            found += zip(dispatches, spans, strict=True)
        return found

    def _recorded(self, key: _RecordingKey) -> list[_native.Recording]:
        """The submits of a segment, none where it has nothing to do."""
        if key not in self._recordings:
            parts = in_submits(self._plan.segment(*key), self._seconds_of.get(key))
            with explained(self._gpu.label, "work was recorded"):
                self._recordings[key] = [self._record(part) for part in parts]
        return self._recordings[key]

    def _learn(self, key: _RecordingKey, seconds: float) -> None:
        if should_cut_anew(len(self._recordings[key]), seconds, self._seconds_of.get(key)):
            self._seconds_of[key] = seconds
            del self._recordings[key]

    def _record(self, work: Sequence[Recorded]) -> _native.Recording:
        recording = self._gpu.native.recording()
        for item in work:
            if isinstance(item, Dispatch):
                self._dispatch(recording, item)
            else:
                recording.barrier()
        recording.host_barrier()
        recording.finish()
        return recording

    def _dispatch(self, recording: _native.Recording, dispatch: Dispatch) -> None:
        buffers = self._memory.buffers
        bindings = [(buffers[b.allocation], b.offset, b.n_bytes) for b in dispatch.bindings]
        recording.dispatch(self._gpu.kernel(dispatch), bindings, dispatch.push, dispatch.grid)
