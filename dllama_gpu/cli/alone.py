"""Running a model on this node alone, as commands do it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dllama_gpu.cli.arguments import Options
from dllama_gpu.cli.display import progress
from dllama_gpu.cli.trace import save_trace
from dllama_gpu.graph.batch import Device, Program
from dllama_gpu.graph.graph import Graph
from dllama_gpu.model.source import ModelSource
from dllama_gpu.net.trace import TracedProgram


@contextmanager
def load_alone(source: ModelSource, graph: Graph, device: Device, options: Options) -> Iterator[Program]:
    """Loads the weights on `device`; with --trace, what it did is written after the block. Raises DllamaError."""
    with progress("loading weights", "bytes") as advance:
        program = device.compile(graph, source, advance)
    if options.trace is None:
        yield program
        return
    traced = TracedProgram(program)
    yield traced
    save_trace(options.trace, traced.lanes(), graph, source.path.name)
