"""`dllama-gpu plan`: says what a cluster would do with a model before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from dllama_gpu.cli.arguments import Options, Parser, whole_number
from dllama_gpu.cli.cluster_options import shares
from dllama_gpu.cli.failures import SUCCESS

DESCRIPTION = """Say, before anything is loaded, how a cluster would share a model, what memory every node and what
traffic every link would see, how fast it would be, and which nodes are better left out.

The cluster is described in a TOML file; examples/cluster.toml is one. The result goes to standard output."""

_USUAL_SEQ_LEN = 4096
_MAX_ROWS = 128


def add_arguments(parser: Parser) -> None:
    """Declares the options."""
    parser.add_argument("--model", required=True, type=Path, metavar="FILE", help="model: a GGUF or .m file")
    parser.add_argument("--dry-run", required=True, type=Path, metavar="FILE", help="TOML file describing the cluster")
    parser.add_argument(
        "--ratio",
        type=shares,
        metavar="A,B,...",
        help="share of each node by hand, the root's first (default: by speed and memory)",
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
    parser.add_argument(
        "--buffer-float-type",
        choices=("q80", "f32"),
        default="q80",
        help="number format of activations, in memory and on the network (default: %(default)s)",
    )


def run(options: Options) -> int:
    """Plans and prints."""
    from dllama_gpu.graph.advice import consult
    from dllama_gpu.graph.cluster_file import read_cluster_file
    from dllama_gpu.graph.graph import BufferType
    from dllama_gpu.graph.plan_text import describe
    from dllama_gpu.graph.profile import PlanOptions
    from dllama_gpu.model.float_type import FloatType
    from dllama_gpu.model.open import open_model

    cluster = read_cluster_file(options.dry_run)
    source = open_model(options.model)
    try:
        spec, tensors = source.spec, source.tensors
    finally:
        source.close()
    wanted = PlanOptions(
        seq_len=min(spec.max_seq_len, options.max_seq_len or _USUAL_SEQ_LEN),
        n_slots=options.slots,
        max_logit_rows=min(options.slots, _MAX_ROWS),
        max_rows=_MAX_ROWS,
        buffer_type=BufferType(options.buffer_float_type),
        wire=FloatType(options.buffer_float_type),
        ratio=options.ratio,
    )
    print(describe(consult(spec, tensors, cluster.nodes, cluster.link, wanted), spec))
    return SUCCESS
