"""The CPU as a device: native kernels chosen by what the processor offers, and a thread pool."""

from __future__ import annotations

import os

from dllama_gpu.cpu import _native
from dllama_gpu.cpu.processors import available_threads, default_threads
from dllama_gpu.cpu.program import CpuProgram, check_head_dim
from dllama_gpu.cpu.weights import load_weights
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.batch import LoadProgress
from dllama_gpu.graph.check import check
from dllama_gpu.graph.graph import Graph
from dllama_gpu.model.source import ModelSource


class CpuDevice:
    """Runs graphs on `n_threads` threads with the kernel table `kernels` (default: the best the processor has).

    The default is one thread a core. `pin` keeps each thread but the calling one on one processor, which helps a
    machine that runs nothing else and hurts any other. Raises DllamaError for a thread count below 1 or above the
    processors available, or kernels this processor lacks.
    """

    def __init__(self, n_threads: int | None = None, kernels: str | None = None, pin: bool = False) -> None:
        limit = available_threads()
        n_threads = default_threads() if n_threads is None else n_threads
        if not 1 <= n_threads <= limit:
            raise DllamaError(f"--nthreads must be from 1 to {limit}, the processors available here, not {n_threads}")
        usable = _native.kernel_names()
        kernels = kernels or os.environ.get("DLLAMA_GPU_CPU_KERNELS") or usable[0]
        if kernels not in usable:
            raise DllamaError(f"this processor has no '{kernels}' kernels; it can run {', '.join(usable)}")
        self.kernels = kernels
        try:
            self._pool = _native.ThreadPool(n_threads, pin)
        except RuntimeError as error:
            raise DllamaError(f"the system gives no {n_threads} threads ({error}); try a smaller --nthreads") from error

    @property
    def n_threads(self) -> int:
        """Threads that share the work of a step."""
        return self._pool.n_threads

    @property
    def name(self) -> str:
        """For people, e.g. `cpu (avx512, 2 threads)`."""
        return f"cpu ({self.kernels}, {self.n_threads} thread{'s' if self.n_threads > 1 else ''})"

    def compile(self, graph: Graph, source: ModelSource, progress: LoadProgress | None = None) -> CpuProgram:
        """Loads the graph's weights from `source`, which must stay open as long as the program is used."""
        check(graph)
        check_head_dim(graph)
        weights = load_weights(graph, source, self._pool, progress)
        return CpuProgram(graph, weights, self._pool, self.kernels)
