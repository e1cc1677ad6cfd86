from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.architectures import build_graph
from dllama_gpu.graph.batch import Batch, Row
from dllama_gpu.graph.graph import CacheType, Graph
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.graph.profile import Link
from dllama_gpu.graph.shard import shard_by_ratio
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.m_format import tensor_layout
from dllama_gpu.model.spec import Architecture
from dllama_gpu.net.graph_messages import batch_message, graph_message, read_batch, read_graph
from dllama_gpu.net.measure import NodeSpeed
from dllama_gpu.net.messages import (
    Failure,
    GraphMessage,
    NodeReport,
    PeerTable,
    RootHello,
    SliceWanted,
    StepBatch,
    decode,
    encode,
    printable,
)
from tests.support.architectures import architecture_spec
from tests.support.models import small_spec

SPEC = small_spec()
TENSORS = {info.name: info for info in tensor_layout(SPEC)}


def graphs() -> list[Graph]:
    return [build_graph(SPEC, TENSORS, GraphOptions(seq_len=32), shard) for shard in shard_by_ratio(SPEC, [2, 1, 1])]


def as_message(graph: Graph) -> GraphMessage:
    return graph_message(graph, "model.m", SPEC, FloatType.Q80)


@pytest.mark.parametrize("graph", graphs())
def test_graphs_travel_unchanged(graph: Graph) -> None:
    message = decode(encode(as_message(graph)))
    assert isinstance(message, GraphMessage)
    assert read_graph(message) == graph
    assert message.spec == SPEC


@pytest.mark.parametrize("architecture", Architecture)
def test_graphs_of_every_architecture_travel_unchanged(architecture: Architecture) -> None:
    spec = architecture_spec(architecture, FloatType.Q40)
    tensors = {info.name: info for info in tensor_layout(spec)}
    options = GraphOptions(seq_len=32, cache_type=CacheType.F32)
    for shard in shard_by_ratio(spec, [2, 1]):
        graph = build_graph(spec, tensors, options, shard)
        message = decode(encode(graph_message(graph, "model.m", spec, FloatType.F16)))
        assert isinstance(message, GraphMessage)
        assert read_graph(message) == graph
        assert message.spec == spec


@pytest.mark.parametrize(
    "message",
    [
        RootHello("0.1.0", b"t" * 32, (FloatType.Q40,)),
        NodeReport("0.1.0", "pi", "cpu", "ARM", None, {FloatType.Q80: NodeSpeed(1e9, 1e11, 1e-6)}, None),
        PeerTable(1, (None, ("10.0.0.1", 9999), ("fd00::2", 9999)), 10.0, Link(1e-4, 1e8)),
        SliceWanted(((0, 17),)),
        Failure("a reason"),
    ],
)
def test_messages_travel_unchanged(message: RootHello) -> None:
    assert decode(encode(message)) == message


@given(data=st.binary(max_size=400))
def test_random_bytes_are_refused_with_a_sentence(data: bytes) -> None:
    with pytest.raises(DllamaError, match="cannot be understood"):
        decode(data)


ENCODED = encode(as_message(graphs()[1]))


@given(at=st.integers(0, len(ENCODED) - 1), value=st.integers(0, 255), length=st.integers(0, len(ENCODED)))
def test_damaged_graphs_are_refused_or_sound(at: int, value: int, length: int) -> None:
    """Whatever bit changes: a sentence, or a graph that passed the check; never another exception."""
    damaged = bytearray(ENCODED)
    damaged[at] = value
    for data in (damaged, damaged[:length]):
        try:
            message = decode(data)
            if isinstance(message, GraphMessage):
                read_graph(message)
        except DllamaError:
            continue


def test_a_graph_with_an_unknown_step_is_refused() -> None:
    message = as_message(graphs()[0])
    step = msgspec.structs.replace(message.steps[0], kind="__import__")
    with pytest.raises(DllamaError, match="step 0 is of the unknown kind __import__"):
        read_graph(msgspec.structs.replace(message, steps=(step,)))


def test_a_graph_with_a_step_of_wrong_fields_is_refused() -> None:
    message = as_message(graphs()[0])
    step = msgspec.structs.replace(message.steps[0], fields=msgspec.Raw(msgspec.msgpack.encode({"weight": 1})))
    with pytest.raises(DllamaError, match=r"step 0 .* cannot be understood"):
        read_graph(msgspec.structs.replace(message, steps=(step,)))


def test_an_unsound_graph_is_refused() -> None:
    graph = graphs()[0]
    with pytest.raises(DllamaError, match="unsound graph"):
        read_graph(as_message(replace(graph, buffers=graph.buffers[1:])))


def test_unknown_fields_and_kinds_are_refused() -> None:
    for fields in ({"type": "Bye", "extra": 1}, {"type": "Pickle"}, {"type": "Failure", "sentence": 5}):
        with pytest.raises(DllamaError, match="cannot be understood"):
            decode(msgspec.msgpack.encode(fields))


def test_a_message_larger_than_its_kind_may_be_is_refused() -> None:
    with pytest.raises(DllamaError, match=r"a Failure message has .* more than the 8192 allowed"):
        decode(encode(Failure("x" * 9000)))


def test_batches_travel_unchanged() -> None:
    batch = Batch.of([Row(5, 0, 7), Row(6, 0, 8, True, 0.5), Row(7, 1, 0, True)])
    message = decode(encode(batch_message(batch)))
    assert isinstance(message, StepBatch)
    found = read_batch(message)
    for column in ("tokens", "slots", "positions", "logit_rows", "temperatures"):
        assert np.array_equal(getattr(found, column), getattr(batch, column))
        assert getattr(found, column).dtype == getattr(batch, column).dtype


COLUMN = np.arange(3, dtype="<i4").tobytes()
GOOD = StepBatch(COLUMN, COLUMN, COLUMN, COLUMN, np.ones(3, "<f4").tobytes())


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": COLUMN[:-1]},
        {"slots": COLUMN[:-4]},
        {"temperatures": b""},
        {"logit_rows": COLUMN[::-1]},
        {"logit_rows": COLUMN[:4] * 3},
        {"temperatures": np.full(3, np.nan, "<f4").tobytes()},
    ],
    ids=str,
)
def test_inconsistent_batches_are_refused(change: dict[str, bytes]) -> None:
    read_batch(GOOD)
    with pytest.raises(DllamaError):
        read_batch(msgspec.structs.replace(GOOD, **change))


def test_text_of_others_is_one_printable_line_of_limited_length() -> None:
    assert printable("a\nb\x1b[0m\u202e") == "a?b?[0m?"
    assert printable("x" * 50, 10) == "x" * 10 + "…"
