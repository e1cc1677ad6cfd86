"""A program's memory on a GPU: one buffer an allocation, filled once."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from dllama_gpu.graph.batch import LoadProgress
from dllama_gpu.vulkan import _native
from dllama_gpu.vulkan.errors import GpuError, GpuMemoryError
from dllama_gpu.vulkan.failures import explained
from dllama_gpu.vulkan.gpu import Gpu
from dllama_gpu.vulkan.plan import Allocation, Use
from dllama_gpu.vulkan.upload import Uploader
from dllama_gpu.vulkan.weights import Chunk

_SECONDS = 60.0
_LARGEST = (1 << 32) - 4


class ProgramMemory:
    """The buffers of a program by the allocation's name; those that the host touches also as bytes.

    Raises GpuError saying how much is missing when the GPU has too little.
    """

    def __init__(self, gpu: Gpu, allocations: Iterable[Allocation]) -> None:
        self._gpu = gpu
        self.allocations = tuple(allocations)
        self._check()
        self.buffers: dict[str, _native.Buffer] = {}
        self.views: dict[str, npt.NDArray[np.uint8]] = {}
        self._reads: dict[tuple[str, int], tuple[_native.Recording, npt.NDArray[np.uint8]]] = {}
        with explained(gpu.label, "memory for the model was taken"):
            for allocation in self.allocations:
                buffer = gpu.native.buffer(_whole_words(allocation.n_bytes), self._kind(allocation.use))
                self.buffers[allocation.name] = buffer
                if allocation.use in (Use.HOST, Use.STEP) or (allocation.use is Use.WEIGHT and self._unified):
                    self.views[allocation.name] = buffer.view()
            self._clear()

    @property
    def _unified(self) -> bool:
        return self._gpu.info.unified_memory

    def fill(
        self, constants: Mapping[str, bytes], chunks: Iterable[Chunk], progress: LoadProgress | None = None
    ) -> None:
        """Writes constants and weights, telling `progress` the bytes done and in all."""
        total = sum(allocation.n_bytes for allocation in self.allocations if allocation.use is Use.WEIGHT)
        done, staged = 0, 0 if self._unified else total
        with explained(self._gpu.label, "weights were loaded"), Uploader(self._gpu.native, staged) as uploader:
            contents = (Chunk(name, 0, np.frombuffer(data, np.uint8)) for name, data in constants.items())
            for part in itertools.chain(contents, chunks):
                if self._unified:
                    self.views[part.allocation][part.offset : part.offset + part.content.size] = part.content
                else:
                    uploader.write(self.buffers[part.allocation], part.offset, part.content)
                done += part.content.size
                if progress is not None:
                    progress(min(done, total), total)

    def read(self, name: str, n_bytes: int) -> npt.NDArray[np.uint8]:
        """The first `n_bytes` of an allocation, in whole words: a view where the host sees them, else a copy that the
        next read of as many overwrites.
        """
        if name in self.views:
            return self.views[name]
        with explained(self._gpu.label, f"{name} was read back"):
            if (name, n_bytes) not in self._reads:
                self._reads[name, n_bytes] = self._reader(self.buffers[name], n_bytes)
            recording, view = self._reads[name, n_bytes]
            recording.run(_SECONDS)
        return view

    def _reader(self, source: _native.Buffer, n_bytes: int) -> tuple[_native.Recording, npt.NDArray[np.uint8]]:
        target = self._gpu.native.buffer(n_bytes, _native.BufferKind.READBACK)
        recording = self._gpu.native.recording()
        recording.copy(source, 0, target, 0, n_bytes)
        recording.host_barrier()
        recording.finish()
        return recording, target.view()

    def _kind(self, use: Use) -> _native.BufferKind:
        if use is Use.STEP:
            return _native.BufferKind.UPLOAD
        if use is Use.HOST:
            return _native.BufferKind.READBACK
        if use is Use.WEIGHT and self._unified:
            return _native.BufferKind.UNIFIED
        return _native.BufferKind.DEVICE

    def _clear(self) -> None:
        """What the host has mapped is zero already."""
        recording = self._gpu.native.recording()
        for allocation in self.allocations:
            if allocation.use in (Use.CACHE, Use.WORK):
                buffer = self.buffers[allocation.name]
                recording.clear(buffer, 0, buffer.n_bytes)
        recording.finish()
        recording.run(_SECONDS)

    def _check(self) -> None:
        largest = min(_LARGEST, self._gpu.info.limits.max_memory_allocation_size)
        for allocation in self.allocations:
            if allocation.n_bytes > largest:
                raise GpuError(
                    f"{allocation.name} takes {allocation.n_bytes / 2**30:.1f} GiB, but {self._gpu.label} takes "
                    f"{largest / 2**30:.1f} GiB in one piece; add --workers, so that each node holds a part"
                )
        if self._gpu.info.type == "cpu":  # what such a driver says about memory is made up
            return
        needed = sum(allocation.n_bytes for allocation in self.allocations)
        free = self._gpu.free_memory()
        if needed > free:
            raise GpuMemoryError(
                f"{self._gpu.label} has {free / 2**30:.1f} GiB of memory free, but its share of the model takes "
                f"{needed / 2**30:.1f} GiB; use a smaller --max-seq-len, or add --workers"
            )


def _whole_words(n_bytes: int) -> int:
    return -(-n_bytes // 4) * 4
