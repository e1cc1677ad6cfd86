"""`dllama-gpu plan`: says what a cluster would do with a model before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dllama_gpu.cli.arguments import WEIGHT_TYPES, Options, Parser, UsageError, add_device_arguments, whole_number
from dllama_gpu.cli.cluster_options import add_cluster_arguments, check_cluster_options
from dllama_gpu.cli.failures import SUCCESS

if TYPE_CHECKING:
    from dllama_gpu.graph.profile import LinkBetween, NodeProfile
    from dllama_gpu.model.source import ModelSource

PROGRAM = "dllama-gpu plan"
DESCRIPTION = """Say, before anything is loaded, how a cluster would share a model, what memory every node and what
traffic every link would see, how fast it would be, and which nodes are better left out.

With --workers the nodes and the links between them are measured, and the workers are free again afterwards.
With --dry-run the cluster is described in a TOML file, and no machine is needed; examples/cluster.toml is one.
The result goes to standard output."""

_USUAL_SEQ_LEN = 4096
_MAX_ROWS = 128
_OF_MACHINES = ("workers", "key_file", "max_memory", "nthreads", "pin_threads", "no_cache", "cache_dir")


def add_arguments(parser: Parser) -> None:
    """Declares the options."""
    parser.add_argument(
        "--model",
        required=True,
        type=Path,
        metavar="PATH",
        help="model: a GGUF or .m file, a Hugging Face folder, or hf:org/repo",
    )
    parser.add_argument(
        "--weights", choices=WEIGHT_TYPES, help="number format that the matrices get while loading, as for inference"
    )
    parser.add_argument(
        "--dry-run", type=Path, metavar="FILE", help="TOML file that describes the cluster, in place of --workers"
    )
    parser.add_argument(
        "--max-seq-len",
        type=whole_number(1),
        metavar="N",
        help=f"positions that a sequence may have (default: {_USUAL_SEQ_LEN}, or the model's own limit if lower)",
    )
    parser.add_argument(
        "--slots", type=whole_number(1, 1024), default=1, metavar="N", help="sequences kept at once (default: 1)"
    )
    add_device_arguments(parser)
    add_cluster_arguments(parser)


def run(options: Options) -> int:
    """Plans and prints."""
    _check(options)

    from dllama_gpu.cli.download import chosen_path
    from dllama_gpu.cli.loading import buffer_type
    from dllama_gpu.graph.advice import consult
    from dllama_gpu.graph.cluster_file import read_cluster_file
    from dllama_gpu.graph.graph import CacheType
    from dllama_gpu.graph.plan_text import describe, measurements
    from dllama_gpu.graph.profile import PlanOptions
    from dllama_gpu.model.float_type import FloatType
    from dllama_gpu.model.open import open_model

    source = open_model(chosen_path(options.model), None if options.weights is None else FloatType(options.weights))
    try:
        wanted = PlanOptions(
            seq_len=min(source.spec.max_seq_len, options.max_seq_len or _USUAL_SEQ_LEN),
            n_slots=options.slots,
            max_logit_rows=min(options.slots, _MAX_ROWS),
            max_rows=_MAX_ROWS,
            buffer_type=buffer_type(options),
            cache_type=CacheType(options.kv_cache_type),
            wire=FloatType(options.buffer_float_type),
            ratio=options.ratio,
        )
        nodes: Sequence[NodeProfile]
        links: LinkBetween
        if options.dry_run is not None:
            cluster = read_cluster_file(options.dry_run)
            nodes, links = cluster.nodes, cluster.link
        else:
            nodes, links = _measured(source, options)
            print(measurements(nodes, links), end="\n\n")
        print(describe(consult(source.spec, source.tensors, nodes, links, wanted), source.spec))
    finally:
        source.close()
    return SUCCESS


def _check(options: Options) -> None:
    """Raises UsageError unless there is exactly one cluster to plan, and options that suit it."""
    if options.dry_run is None:
        if options.workers is None:
            raise UsageError("which cluster? --workers names machines, --dry-run a file that describes some", PROGRAM)
        check_cluster_options(options, PROGRAM)
        return
    for name in _OF_MACHINES:
        if getattr(options, name):
            raise UsageError(f"--{name.replace('_', '-')} is about machines, --dry-run needs none", PROGRAM)


def _measured(source: ModelSource, options: Options) -> tuple[Sequence[NodeProfile], LinkBetween]:
    from dllama_gpu.cli.cluster import connect, measured_nodes
    from dllama_gpu.cli.loading import make_device

    device = make_device(options, PROGRAM)
    with connect(options, measure=[source.spec.weight_type]) as cluster:
        return measured_nodes(source, device, options, cluster), cluster.link
