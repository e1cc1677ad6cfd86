"""What nodes write down, what of it the root believes, and the file that comes of it."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.architectures import build_graph
from dllama_gpu.graph.batch import Batch, Row
from dllama_gpu.graph.graph import Exchange, Graph
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.graph.shard import shard_by_ratio
from dllama_gpu.model.m_format import tensor_layout
from dllama_gpu.net.chrome_trace import write_trace
from dllama_gpu.net.messages import TracePiece, encode, size_limit
from dllama_gpu.net.statistics import StepClock
from dllama_gpu.net.trace import (
    PIECE_RECORDS,
    RECORD,
    ClockReading,
    Lane,
    TraceRecorder,
    best_reading,
    lane,
    own_lane,
    read_records,
    to_own_clock,
)
from tests.support.mesh import meshes, on_all
from tests.support.models import small_spec

SPEC = small_spec()
TENSORS = {info.name: info for info in tensor_layout(SPEC)}
GRAPH = build_graph(SPEC, TENSORS, GraphOptions(seq_len=32), shard_by_ratio(SPEC, [1, 1])[0])
DECODE = Batch.of([Row(1, 0, 3, True)])
PREFILL = Batch.of([Row(1, 0, 0), Row(2, 0, 1)])


def exchanges(graph: Graph) -> list[Exchange]:
    return [exchange for _, exchange in graph.segments() if exchange is not None]


def traced_steps(n_steps: int, max_records: int = 1 << 16) -> list[TraceRecorder]:
    """What two nodes write down that send each other a few bytes in every exchange."""
    with meshes(2) as nodes:
        recorders = [
            TraceRecorder(mesh, lambda exchange, batch, mesh=mesh: mesh.gather(b"1234"), max_records) for mesh in nodes
        ]

        def run(rank: int) -> None:
            for _ in range(n_steps):
                with recorders[rank].step(DECODE):
                    for exchange in exchanges(GRAPH):
                        recorders[rank](exchange, DECODE)

        on_all(nodes, lambda mesh: run(mesh.rank))
    return recorders


def test_records_follow_each_other_and_know_what_crossed_the_network() -> None:
    n_segments = len(exchanges(GRAPH)) + 1
    for rank, recorder in enumerate(traced_steps(3)):
        records = read_records(recorder.piece(0), 2)
        assert records["step"].tolist() == [step for step in range(3) for _ in range(n_segments)]
        assert records["segment"].tolist() == list(range(n_segments)) * 3
        assert records["ends_step"].tolist() == ([0] * (n_segments - 1) + [1]) * 3
        moved = records["bytes_received" if rank == 0 else "bytes_sent"]
        assert np.all((moved > 4) == (records["ends_step"] == 0))
        assert set(records["awaited"].tolist()) <= {-1, 1 - rank}
        assert recorder.piece(len(records)) == b""


def test_memory_for_records_is_bounded_and_what_is_missing_is_counted() -> None:
    n_segments = len(exchanges(GRAPH)) + 1
    for recorder in traced_steps(5, max_records=2 * n_segments + 1):
        assert len(recorder.records()) == 2 * n_segments + 1
        assert recorder.n_untold == 3


def test_the_largest_piece_fits_a_message() -> None:
    assert len(encode(TracePiece(bytes(PIECE_RECORDS * RECORD.itemsize), 1 << 60))) <= size_limit(TracePiece)


def some_records(n: int = 4) -> np.ndarray:
    records = np.zeros(n, RECORD)
    for column, name in enumerate(("begin", "exchange", "moving", "end")):
        records[name] = 10 * np.arange(n) + column
    return records


def changed(name: str, value: float) -> bytes:
    records = some_records()
    records[name][2] = value
    return records.tobytes()


HOSTILE: dict[str, Callable[[], bytes]] = {
    "half a record": lambda: some_records().tobytes()[:-1],
    "too many": lambda: some_records(PIECE_RECORDS + 1).tobytes(),
    "no number": lambda: changed("moving", float("nan")),
    "endless": lambda: changed("end", float("inf")),
    "backwards": lambda: changed("begin", 1.0),
    "an unknown node": lambda: changed("awaited", 2),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_records_that_cannot_be_are_refused(what: str) -> None:
    with pytest.raises(DllamaError, match="a trace came"):
        read_records(HOSTILE[what](), 2)


@given(data=st.binary(max_size=3 * RECORD.itemsize))
def test_arbitrary_bytes_are_records_or_an_error(data: bytes) -> None:
    with contextlib.suppress(DllamaError):
        assert len(read_records(data, 3)) * RECORD.itemsize == len(data)


@given(
    offset=st.floats(-1e6, 1e6),
    drift=st.floats(-1e-4, 1e-4),
    length=st.floats(0.01, 1e4),
    part=st.floats(0, 1),
)
def test_another_clock_is_understood_though_it_is_elsewhere_and_drifts(
    offset: float, drift: float, length: float, part: float
) -> None:
    def theirs(ours: float) -> float:
        return offset + ours * (1 + drift)

    early, late = (ClockReading(ours, theirs(ours), 1e-4) for ours in (5.0, 5.0 + length))
    ours = 5.0 + part * length
    assert to_own_clock(np.array([theirs(ours)]), early, late)[0] == pytest.approx(ours, abs=1e-6)


def test_a_clock_that_stands_still_or_goes_backwards_is_taken_at_its_first_word() -> None:
    early, late = ClockReading(5.0, 100.0, 1e-4), ClockReading(6.0, 100.0, 1e-4)
    assert to_own_clock(np.array([101.0]), early, late)[0] == 6.0


def test_the_shortest_round_trip_reads_a_clock_best() -> None:
    readings = [ClockReading(1.0, 1.0, 3e-4), ClockReading(2.0, 2.0, 1e-4), ClockReading(3.0, 3.0, 2e-4)]
    assert best_reading(readings) is readings[1]


def test_the_file_has_a_lane_for_each_node_and_steps_that_hold_what_happened_in_them(tmp_path: Path) -> None:
    recorders = traced_steps(2)
    same = ClockReading(0.0, 0.0, 5e-5), ClockReading(1.0, 1.0, 6e-5)
    lanes = [own_lane("root", recorders[0]), lane("10.0.0.2:9999", recorders[1].records(), 0, *same)]
    write_trace(tmp_path / "trace.json", lanes, GRAPH, "dllama-gpu, model.m")
    events = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert names == {0: "0 root (clock ± 0 µs)", 1: "1 10.0.0.2:9999 (clock ± 60 µs)"}
    for rank in names:
        spans = [event for event in events if event["ph"] == "X" and event["tid"] == rank]
        steps = [span for span in spans if span["cat"] == "step"]
        assert [step["name"] for step in steps] == ["step 0: 1 row", "step 1: 1 row"]
        assert {"compute layers.0.o", "compute layers.0.down"} <= {span["name"] for span in spans}
        parts = [span for span in spans if span["cat"] != "step"]
        assert all(one["ts"] + one["dur"] <= next_one["ts"] + 0.01 for one, next_one in itertools.pairwise(parts))
        for part in parts:
            assert any(
                step["ts"] <= part["ts"] + 0.01 and part["ts"] + part["dur"] <= step["ts"] + step["dur"] + 0.01
                for step in steps
            )
    assert min(event["ts"] for event in events if event["ph"] == "X") == 0


def test_a_file_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DllamaError, match="the trace cannot be written to"):
        write_trace(tmp_path, [Lane("root", some_records(0), 0, 0.0)], GRAPH, "title")


def test_steps_that_read_a_prompt_and_those_that_generate_are_counted_apart() -> None:
    two_users = Batch.of([Row(1, 0, 4, True), Row(1, 1, 7, True)])
    guessed = Batch.of([Row(1, 0, 5, True), Row(2, 0, 6, True), Row(3, 0, 7, True)])
    with meshes(2) as nodes:

        def run(rank: int) -> StepClock:
            clock = StepClock(nodes[rank])
            for batch in (PREFILL, DECODE, two_users, guessed):
                with clock.step(batch):
                    nodes[rank].gather(b"1234")
            return clock

        root, other = (clock.statistics() for clock in on_all(nodes, lambda mesh: run(mesh.rank)))
    assert (root.prefill.n_steps, root.prefill.n_rows) == (1, 2)
    assert (root.decode.n_steps, root.decode.n_rows) == (3, 6)
    assert other.decode.bytes_sent == root.decode.bytes_received == 3 * root.prefill.bytes_received > 0
    for phase in (root.prefill, root.decode, other.decode):
        assert 0 <= phase.waiting_seconds <= phase.exchange_seconds <= phase.step_seconds
