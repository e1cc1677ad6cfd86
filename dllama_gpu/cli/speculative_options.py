"""The options of speculative decoding."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dllama_gpu.cli.arguments import Options, Parser

if TYPE_CHECKING:
    from dllama_gpu.engine.drafting import Drafter
    from dllama_gpu.engine.loading import OpenModel
    from dllama_gpu.graph.batch import Device

NGRAM, OFF = "ngram", "off"
_DRAFT_ROWS = 128


def add_speculative_arguments(parser: Parser, *, default: str) -> None:
    """Declares --speculative and --draft-model."""
    group = parser.add_argument_group("speculative decoding (the text stays the same)")
    group.add_argument(
        "--speculative",
        choices=(NGRAM, OFF),
        default=default,
        help="check several tokens in one step, guessed from what the text said before; does so only where it pays "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--draft-model",
        type=Path,
        metavar="FILE",
        help="guess with this smaller model of the same vocabulary, which runs on this node alone",
    )


def has_speculation(options: Options) -> bool:
    """Whether tokens are guessed."""
    return options.draft_model is not None or options.speculative == NGRAM


def make_drafter(options: Options, model: OpenModel, device: Device, *, n_slots: int, seq_len: int) -> Drafter | None:
    """What makes the guesses that the options ask for, None for none.

    Raises DllamaError when the draft model cannot be used with `model`.
    """
    from dllama_gpu.engine.drafting import NgramDrafter

    if options.draft_model is None:
        return NgramDrafter() if options.speculative == NGRAM else None

    from dllama_gpu.cli.display import note, progress, size_text
    from dllama_gpu.cli.loading import buffer_type
    from dllama_gpu.engine.draft_model import ModelDrafter, check_same_vocabulary
    from dllama_gpu.engine.loading import build_graph, open_with_tokenizer
    from dllama_gpu.graph.graph import CacheType
    from dllama_gpu.graph.options import GraphOptions

    # An .m file brings no tokenizer; that it belongs to the same one cannot be checked.
    own_tokenizer = options.tokenizer if options.draft_model.suffix == ".m" else None
    draft = open_with_tokenizer(options.draft_model, own_tokenizer)
    name = options.draft_model.name
    check_same_vocabulary(model.tokenizer, draft.tokenizer, name)
    graph_options = GraphOptions(
        max_rows=max(_DRAFT_ROWS, n_slots),
        max_logit_rows=n_slots,
        n_slots=n_slots,
        seq_len=min(seq_len, draft.spec.max_seq_len),
        buffer_type=buffer_type(options),
        cache_type=CacheType(options.kv_cache_type),
        n_candidates=1,
    )
    graph = build_graph(draft.source, graph_options)
    note(
        "draft model",
        f"{name}: weights {size_text(graph.weight_bytes())}, KV cache {size_text(graph.kv_cache_bytes())}",
    )
    with progress("loading the draft model", "bytes") as advance:
        program = device.compile(graph, draft.source, advance)
    return ModelDrafter(program, name, model.tokenizer.vocab_size)
