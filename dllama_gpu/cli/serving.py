"""An engine as commands start it: on this node alone or on a cluster, with recovery."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dllama_gpu.cli.arguments import Options
from dllama_gpu.cli.engine_options import context_length
from dllama_gpu.cli.loading import buffer_type, describe, make_device
from dllama_gpu.cli.prefill_chunk import prefill_chunk
from dllama_gpu.cli.serving_programs import ClusterPrograms, LocalPrograms, NodeShare
from dllama_gpu.cli.speculative_options import has_speculation, make_drafter
from dllama_gpu.engine.engine import Engine, EngineOptions
from dllama_gpu.engine.loading import OpenModel, build_graph
from dllama_gpu.engine.speculation import MAX_DRAFT
from dllama_gpu.graph.graph import CacheType
from dllama_gpu.graph.options import GraphOptions


@dataclass(frozen=True)
class Serving:
    """A running engine and the nodes that compute for it."""

    engine: Engine
    programs: LocalPrograms | ClusterPrograms

    def nodes(self) -> tuple[NodeShare, ...]:
        """All nodes by rank as of now, then those that were lost."""
        return self.programs.nodes


@contextmanager
def start_engine(model: OpenModel, options: Options, program: str) -> Iterator[Serving]:
    """Loads the model, on this node or with --workers on all of them, and runs an engine on it during the block.

    `options` are those of `add_model_arguments`, `add_device_arguments`, `add_cluster_arguments` (checked) and
    `add_engine_arguments`; `program` is the command's name for messages about usage. Raises DllamaError when the model
    cannot be run or a worker cannot be had.
    """
    device = make_device(options, program)
    most_checked = 1 + (MAX_DRAFT if has_speculation(options) else 0)
    max_rows = prefill_chunk(options, device)
    graph_options = GraphOptions(
        max_rows=max_rows,
        max_logit_rows=min(max_rows, options.slots * most_checked),
        n_slots=options.slots,
        seq_len=context_length(options, model.spec.max_seq_len),
        buffer_type=buffer_type(options),
        cache_type=CacheType(options.kv_cache_type),
    )
    kind = LocalPrograms if options.workers is None else ClusterPrograms
    programs = kind(model.source, options, graph_options, program, device)
    describe(model, build_graph(model.source, graph_options), programs.device, alone=options.workers is None)
    drafter = make_drafter(
        options, model, programs.device, n_slots=graph_options.n_slots, seq_len=graph_options.seq_len
    )
    try:
        with Engine(
            programs.first(),
            model.tokenizer,
            EngineOptions(max_queue=options.max_queue, recover_seconds=options.recover_seconds),
            rebuild=programs.rebuild,
            is_better_possible=programs.is_better_possible,
            drafter=drafter,
        ) as engine:
            yield Serving(engine, programs)
    finally:
        programs.close()
