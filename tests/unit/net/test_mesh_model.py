"""A sharded model over sockets computes what it computes when its nodes meet in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.batch import Batch, Program, Row
from dllama_gpu.graph.collective import Algorithm
from dllama_gpu.graph.graph import BufferType
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.source import ModelSource
from dllama_gpu.net.exchange import Candidates, MeshExchange, max_candidate_bytes, merge_candidates
from dllama_gpu.net.mesh import PeerLostError
from tests.support.local_cluster import LocalCluster
from tests.support.mesh import GATHER, MeshCluster, frame, mesh_and_socket, meshes
from tests.unit.graph.test_shard import TOKENS, awkward_model, cluster

DIRECT, TWO_HOPS = Algorithm.DIRECT, Algorithm.REDUCE_SCATTER_ALL_GATHER


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelSource]:
    file = awkward_model(tmp_path_factory.mktemp("model"), FloatType.Q40)
    yield file
    file.close()


def prefill_and_decode(nodes: LocalCluster | MeshCluster, n_tokens: int = 4) -> list[bytes]:
    """Everything that the nodes hold after each step: residual streams of all, results of rank 0."""
    rows = [Row(token, 0, p, p >= len(TOKENS) - 2, 0.7) for p, token in enumerate(TOKENS)]
    held: list[bytes] = []
    for step in range(n_tokens):
        nodes.run(Batch.of(rows))
        held += [program.buffer("x", len(rows)).tobytes() for program in nodes.programs]
        root = nodes.programs[0]
        n_logit_rows = sum(row.wants_logits for row in rows)
        names = ("candidate_values", "candidate_ids", "log_sum_exp")
        held += [root.buffer(name, n_logit_rows).tobytes() for name in names]
        best = int(root.buffer("candidate_ids", n_logit_rows)[-1, 0])
        rows = [Row(best, 0, len(TOKENS) + step, True)]
    return held


@pytest.mark.parametrize("ratio", [[1, 1], [4, 1, 1], [0, 1, 2], [5, 0, 1, 3], [1] * 9], ids=str)
@pytest.mark.parametrize(
    ("wire", "algorithm"),
    # f32 sums are not rounded, so both ways give the same bits.
    [(FloatType.F32, DIRECT), (FloatType.F32, TWO_HOPS), (FloatType.F16, DIRECT), (FloatType.Q80, DIRECT)],
)
def test_nodes_over_sockets_hold_the_same_bits_as_nodes_in_memory(
    source: ModelSource, ratio: Sequence[float], wire: FloatType, algorithm: Algorithm
) -> None:
    local = cluster(source, ratio, wire, BufferType.Q80)
    wanted = prefill_and_decode(local)
    again = cluster(source, ratio, wire, BufferType.Q80)
    with meshes(len(ratio), key=b"secret") as nodes:
        assert prefill_and_decode(MeshCluster(nodes, again.programs, wire, algorithm)) == wanted


@pytest.mark.parametrize("wire", [FloatType.F16, FloatType.Q80])
def test_all_nodes_hold_the_same_residual_stream_when_sums_are_rounded(source: ModelSource, wire: FloatType) -> None:
    local = cluster(source, [3, 1, 2, 0], wire, BufferType.Q80)
    with meshes(4) as nodes:
        MeshCluster(nodes, local.programs, wire, TWO_HOPS).run(
            Batch.of([Row(token, 0, p) for p, token in enumerate(TOKENS)])
        )
    streams = [program.buffer("x", len(TOKENS)).tobytes() for program in local.programs]
    assert set(streams) == {streams[0]}


def candidates(values: list[list[float]], first_id: int = 0) -> Candidates:
    array = np.array(values, np.float32)
    ids = np.arange(first_id, first_id + array.shape[1], dtype=np.int32)
    log_sum_exp = np.logaddexp.reduce(array, axis=1, keepdims=True)
    return Candidates(array, np.broadcast_to(ids, array.shape), log_sum_exp)


def test_merged_candidates_are_the_largest_of_all_with_the_lowest_id_first() -> None:
    merged = merge_candidates([candidates([[5, 3]]), candidates([[9, 5, 4]], 10)], 4)
    assert merged.values.tolist() == [[9, 5, 5, 4]]
    assert merged.ids.tolist() == [[10, 0, 11, 12]]
    assert merged.log_sum_exp[0, 0] == pytest.approx(np.log(np.exp([5, 3, 9, 5, 4]).sum()))
    with pytest.raises(ValueError, match="2 candidates a row where 3"):
        merge_candidates([candidates([[5, 3]])], 3)
    with pytest.raises(ValueError, match="0 candidates a row where 1"):
        merge_candidates([], 1)


def test_candidates_survive_the_wire_and_their_size_is_known_before() -> None:
    sent = candidates([[1, 2, 3], [4, 5, 6]], 7)
    data = sent.to_bytes()
    assert len(data) == max_candidate_bytes(2, 3)
    found = Candidates.from_bytes(data, 2, 10)
    for name in ("values", "ids", "log_sum_exp"):
        np.testing.assert_array_equal(getattr(found, name), getattr(sent, name))


GOOD = candidates([[1, 2, 3]], 7).to_bytes()
BAD = {
    "too few bytes": GOOD[:7],
    "a byte less": GOOD[:-1],
    "a byte more": GOOD + b"\0",
    "other rows": candidates([[1, 2, 3], [4, 5, 6]]).to_bytes(),
    "token above the vocabulary": candidates([[1, 2, 3]], 158).to_bytes(),
    "negative token": candidates([[1, 2, 3]], -1).to_bytes(),
    "absurd shape": b"\xff" * 8 + GOOD[8:],
    "no candidates for all rows": b"\x01\0\0\0\xff\xff\xff\xff" + GOOD[8:],
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_candidates_that_make_no_sense_name_the_node_that_sent_them(source: ModelSource, data: bytes) -> None:
    program = root_program(source)
    gather = program.graph.segments()[-1][1]
    assert gather is not None
    with mesh_and_socket() as (mesh, peer):
        peer.sendall(frame(data, kind=GATHER, shape=(0, 0)))
        exchange = MeshExchange(mesh, program, FloatType.F32)
        with pytest.raises(PeerLostError, match="node 1: ") as raised:
            exchange(gather, Batch.of([Row(0, 0, 0, True)]))
        assert raised.value.rank == 1


def root_program(source: ModelSource) -> Program:
    return cluster(source, [1, 1], FloatType.F32, BufferType.F32).programs[0]


def test_nodes_without_enough_candidates_are_an_error(source: ModelSource) -> None:
    program = cluster(source, [0, 1], FloatType.F32, BufferType.F32).programs[0]
    gather = program.graph.segments()[-1][1]
    assert gather is not None
    with mesh_and_socket() as (mesh, peer):
        peer.sendall(frame(GOOD, kind=GATHER, shape=(0, 0)))
        with pytest.raises(DllamaError, match="3 candidates a row where 12"):
            MeshExchange(mesh, program, FloatType.F32)(gather, Batch.of([Row(0, 0, 0, True)]))


def test_a_step_that_wants_no_logits_gathers_nothing(source: ModelSource) -> None:
    program = root_program(source)
    gather = program.graph.segments()[-1][1]
    assert gather is not None
    with mesh_and_socket() as (mesh, _):
        MeshExchange(mesh, program, FloatType.F32)(gather, Batch.of([Row(0, 0, 0)]))
        assert mesh.stats().n_exchanges == 0
