"""Graphs and batches as messages, and back, checked."""

from __future__ import annotations

import typing
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.batch import Batch
from dllama_gpu.graph.check import check
from dllama_gpu.graph.graph import (
    AllReduce,
    Attention,
    Broadcast,
    Embed,
    ExpertGatedMatmul,
    ExpertMatmul,
    GatedMatmul,
    GatherCandidates,
    Graph,
    Matmul,
    RmsNorm,
    RopeAngles,
    RopeStore,
    Step,
    TopCandidates,
    TopExperts,
)
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.spec import ModelSpec
from dllama_gpu.net.dialect import fingerprint
from dllama_gpu.net.messages import AnyMessage, GraphMessage, StepBatch, StepMessage, printable

_encoder = msgspec.msgpack.Encoder()
_STEP_TYPES: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        Embed,
        RopeAngles,
        RmsNorm,
        Matmul,
        GatedMatmul,
        RopeStore,
        Attention,
        TopExperts,
        ExpertGatedMatmul,
        ExpertMatmul,
        TopCandidates,
        AllReduce,
        Broadcast,
        GatherCandidates,
    )
}

DIALECT = fingerprint((*typing.get_args(AnyMessage), *_STEP_TYPES.values()))
"""The same on nodes that understand each other's messages and graphs to the last field."""


def graph_message(graph: Graph, model: str, spec: ModelSpec, wire: FloatType) -> GraphMessage:
    """A graph as a message."""
    return GraphMessage(
        model=model,
        spec=spec,
        wire=wire,
        buffers=graph.buffers,
        caches=graph.caches,
        weights=graph.weights,
        steps=tuple(StepMessage(type(step).__name__, msgspec.Raw(_encoder.encode(step))) for step in graph.steps),
        max_rows=graph.max_rows,
        n_slots=graph.n_slots,
        seq_len=graph.seq_len,
        max_logit_rows=graph.max_logit_rows,
    )


def read_graph(message: GraphMessage) -> Graph:
    """The graph in a message, checked. Raises DllamaError when it is unsound or has a step of an unknown kind."""
    graph = Graph(
        buffers=message.buffers,
        caches=message.caches,
        weights=message.weights,
        steps=tuple(_read_step(number, step) for number, step in enumerate(message.steps)),
        vocab_size=message.spec.vocab_size,
        max_rows=message.max_rows,
        n_slots=message.n_slots,
        seq_len=message.seq_len,
        max_logit_rows=message.max_logit_rows,
    )
    check(graph)
    return graph


def _read_step(number: int, message: StepMessage) -> Step:
    kind = _STEP_TYPES.get(message.kind)
    if kind is None:
        raise DllamaError(f"unsound graph: step {number} is of the unknown kind {printable(message.kind, 40)}")
    try:
        step: Step = msgspec.msgpack.decode(message.fields, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        problem = printable(str(error), 200)
        raise DllamaError(f"unsound graph: step {number} ({message.kind}) cannot be understood ({problem})") from None
    return step


def batch_message(batch: Batch) -> StepBatch:
    """A batch as a message."""
    return StepBatch(
        tokens=batch.tokens.astype("<i4").tobytes(),
        slots=batch.slots.astype("<i4").tobytes(),
        positions=batch.positions.astype("<i4").tobytes(),
        logit_rows=batch.logit_rows.astype("<i4").tobytes(),
        temperatures=batch.temperatures.astype("<f4").tobytes(),
    )


def read_batch(message: StepBatch) -> Batch:
    """The batch in a message, its columns consistent; whether it fits a graph is for `Batch.check` to say.

    Raises DllamaError when columns differ in length or logit rows are not in ascending order.
    """
    batch = Batch(
        tokens=_column(message.tokens),
        slots=_column(message.slots),
        positions=_column(message.positions),
        logit_rows=_column(message.logit_rows),
        temperatures=_column(message.temperatures).view(np.float32),
    )
    n_rows, n_logit_rows = len(batch.tokens), len(batch.logit_rows)
    if not len(batch.slots) == len(batch.positions) == n_rows or len(batch.temperatures) != n_logit_rows:
        raise DllamaError("a batch has columns of different lengths")
    if np.any(np.diff(batch.logit_rows) <= 0) or not np.all(np.isfinite(batch.temperatures)):
        raise DllamaError("a batch has logit rows out of order or temperatures that are no numbers")
    return batch


def _column(data: bytes) -> npt.NDArray[np.int32]:
    if len(data) % 4:
        raise DllamaError(f"a column of a batch has {len(data)} bytes, no multiple of 4")
    return np.frombuffer(data, "<i4").astype(np.int32, copy=False)
