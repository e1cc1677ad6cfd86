"""Loading as commands do it: with progress, and with what a person wants to know about the model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from dllama_gpu.cli.alone import load_alone
from dllama_gpu.cli.arguments import Options, UsageError
from dllama_gpu.cli.device_choice import choose_device, free_memory
from dllama_gpu.cli.display import note, size_text
from dllama_gpu.cli.download import chosen_path
from dllama_gpu.cpu.processors import available_threads
from dllama_gpu.engine.loading import OpenModel, build_graph, open_with_tokenizer
from dllama_gpu.graph.batch import Device, Program
from dllama_gpu.graph.graph import BufferType, CacheType, Graph
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.model.converted_cache import CachedConversion, cache_folder
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.gguf_file import GgufFile
from dllama_gpu.model.reweighted import ReweightedSource
from dllama_gpu.model.spec import ModelSpec


@dataclass(frozen=True)
class LoadedProgram:
    """A program ready to run, and how long its weights took to load."""

    program: Program
    seconds: float


def make_device(options: Options, program: str) -> Device:
    """The device that --device, --nthreads, --pin-threads and --gpu-layers ask for.

    Raises UsageError for more threads than there are processors, and DllamaError when the device cannot be had.
    """
    limit = available_threads()
    if options.nthreads is not None and options.nthreads > limit:
        raise UsageError(
            f"--nthreads must be from 1 to {limit}, the processors available here, not {options.nthreads}", program
        )
    choice = choose_device(options.device)
    if options.gpu_layers is not None:
        if choice.gpu is None:
            raise UsageError("--gpu-layers is for a GPU, but the CPU computes; name it with --device vulkan", program)
        if options.workers is not None:
            raise UsageError(
                "--gpu-layers shares a model within one machine; with --workers start another `dllama-gpu worker "
                "--device cpu` here and leave the shares to the planner or to --ratio",
                program,
            )
    return choice.open(options) if options.workers is not None else choice.open_alone(options)


def open_chosen_model(options: Options) -> OpenModel:
    """The model that --model, --tokenizer and --weights name. Raises DllamaError as `open_with_tokenizer` does."""
    weights = None if options.weights is None else FloatType(options.weights)
    model = open_with_tokenizer(chosen_path(options.model), options.tokenizer, weights)
    folder = cache_folder()
    if folder is None or not isinstance(model.source, GgufFile | ReweightedSource) or not model.source.converted_types:
        return model
    return replace(model, source=CachedConversion(model.source, folder))


def buffer_type(options: Options) -> BufferType:
    """What --buffer-float-type means for activations on a node; f16 is a format for the network alone."""
    return BufferType.Q80 if options.buffer_float_type == "q80" else BufferType.F32


@contextmanager
def load_program(
    model: OpenModel, device: Device, options: Options, *, seq_len: int, max_rows: int, max_logit_rows: int
) -> Iterator[LoadedProgram]:
    """Builds the graph for a context of `seq_len` and steps of `max_rows`, and loads its weights.

    With --workers the model is spread over them; they are free again after the block. Raises DllamaError when the model
    cannot be run or a worker cannot be had.
    """
    started = time.perf_counter()
    graph_options = GraphOptions(
        max_rows=max_rows,
        max_logit_rows=max_logit_rows,
        seq_len=seq_len,
        buffer_type=buffer_type(options),
        cache_type=CacheType(options.kv_cache_type),
    )
    graph = build_graph(model.source, graph_options)
    describe(model, graph, device, alone=options.workers is None)
    if options.workers is None:
        with load_alone(model.source, graph, device, options) as program:
            yield LoadedProgram(program, time.perf_counter() - started)
        return

    from dllama_gpu.cli.cluster import load_cluster

    with load_cluster(model.source, device, options, graph_options) as cluster_program:
        yield LoadedProgram(cluster_program, time.perf_counter() - started)


def describe(model: OpenModel, graph: Graph, device: Device, *, alone: bool) -> None:
    """Writes what a person wants to know of a model before it is loaded, as one graph or on this node `alone`."""
    note("model", f"{model.source.path.name}: {_shape(model.spec)}")
    types = sorted(graph.weight_types().items(), key=lambda item: -item[1])
    parts = ", ".join(f"{float_type.value} {size_text(size)}" for float_type, size in types)
    note("weights", f"{size_text(graph.weight_bytes())} ({parts})")
    note(
        "context",
        f"{graph.seq_len} of the {model.spec.max_seq_len} positions that the model allows, "
        f"KV cache {size_text(graph.kv_cache_bytes())}",
    )
    note("device", device.name)
    source = model.source
    converting = source.original if isinstance(source, CachedConversion) else source
    if isinstance(converting, GgufFile | ReweightedSource) and converting.converted_types:
        note("converting", _conversion(converting, source if isinstance(source, CachedConversion) else None))
    needed, available = graph.weight_bytes() + graph.kv_cache_bytes(), free_memory(device)
    if alone and available is not None and needed > available:
        note(
            "warning",
            f"weights and KV cache take {size_text(needed)}, but only {size_text(available)} of memory are free; the "
            "system may become slow or end this program",
        )


def _conversion(source: GgufFile | ReweightedSource, cache: CachedConversion | None) -> str:
    what = ", ".join(f"{name} to {becomes.value}" for name, becomes in sorted(source.converted_types.items()))
    if cache is not None and cache.is_complete:
        return f"{what} was done by an earlier start, and kept"
    if cache is not None and cache.location is not None:
        return f"{what}, kept for later starts in {cache.location.parent}"
    if isinstance(source, GgufFile):
        advice = "and takes more memory than the file has; a Q4_0 or Q8_0 file of this model is loaded as it is"
    else:
        advice = "than a file in that format"
    return f"{what} at every start, which makes it slower {advice}"


def _shape(spec: ModelSpec) -> str:
    return f"{spec.architecture.value}, {spec.n_layers} layers, dim {spec.dim}, vocabulary {spec.vocab_size}"
