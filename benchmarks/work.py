"""What a step cannot do without: bytes of weights to read, multiplications to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dllama_gpu.graph.architectures import build_graph
from dllama_gpu.graph.graph import GatedMatmul, Graph, Matmul, Rows
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.model.open import open_model


@dataclass(frozen=True)
class Work:
    """Of one model. Attention, a few percent at short lengths, is left out, so both are lower bounds."""

    decode_bytes: int
    """Weights that every token of decode reads: all matrices that are multiplied with, in their file's format."""
    decode_macs: int
    """Multiply-accumulates of one token's matrix products."""
    prefill_macs: int
    """Multiply-accumulates of a prompt's matrix products, the head for the last token only."""


def work_of_model(path: Path, prompt_tokens: int) -> Work:
    """The work of the model in `path`. Raises DllamaError when it cannot be opened."""
    source = open_model(path)
    try:
        return work_of_graph(build_graph(source.spec, source.tensors, GraphOptions()), prompt_tokens)
    finally:
        source.close()


def work_of_graph(graph: Graph, prompt_tokens: int) -> Work:
    """The work of a graph that holds a whole model."""
    weights = {weight.name: weight for weight in graph.weights}
    rows_of = {buffer.name: buffer.rows for buffer in graph.buffers}
    decode_bytes = decode_macs = prefill_macs = 0
    for op in graph.steps:
        if isinstance(op, Matmul):
            names: tuple[str, ...] = (op.weight,)
        elif isinstance(op, GatedMatmul):
            names = (op.gate, op.up)
        else:
            continue
        n_rows = 1 if rows_of[op.out] is Rows.LOGITS else prompt_tokens
        for weight in (weights[name] for name in names):
            decode_bytes += weight.n_rows * weight.float_type.row_bytes(weight.n_columns)
            decode_macs += weight.n_rows * weight.n_columns
            prefill_macs += n_rows * weight.n_rows * weight.n_columns
    return Work(decode_bytes, decode_macs, prefill_macs)
