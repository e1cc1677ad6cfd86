"""Exchanges among nodes of one process against NumPy."""

from __future__ import annotations

import shutil
import socket
import subprocess
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.collective import Algorithm, all_reduce_hops
from dllama_gpu.model.codecs import dequantize, quantize
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.net import _native
from dllama_gpu.net.mesh import Mesh
from tests.support.mesh import Pair, meshes, on_all, tcp_pair

Rows = npt.NDArray[np.float32]
WIRES = [FloatType.F32, FloatType.F16, FloatType.Q80]
DIRECT, TWO_HOPS = Algorithm.DIRECT, Algorithm.REDUCE_SCATTER_ALL_GATHER


def rounded(rows: Rows, wire: FloatType) -> Rows:
    return dequantize(quantize(rows, wire), wire)


def expected_sum(parts: list[Rows | None], wire: FloatType, algorithm: Algorithm, shape: tuple[int, int]) -> Rows:
    """In rank order from 0; the sums are rounded again where they cross the network."""
    total = np.zeros(shape, np.float32)
    for part in parts:
        if part is not None:
            total = total + rounded(part, wire)
    return total if algorithm is DIRECT else np.zeros(shape, np.float32) + rounded(total, wire)


def all_reduced(
    nodes: list[Mesh], parts: list[Rows | None], shape: tuple[int, int], wire: FloatType, algorithm: Algorithm
) -> list[Rows]:
    """What every node holds afterwards."""

    def work(mesh: Mesh) -> Rows:
        part = parts[mesh.rank]
        rows = np.full(shape, 99, np.float32) if part is None else part.copy()
        mesh.all_reduce(rows, contributes=part is not None, wire=wire, algorithm=algorithm)
        return rows

    return on_all(nodes, work)


def assert_same_bits(found: Rows, wanted: Rows) -> None:
    np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))


def random_parts(seed: int, shape: tuple[int, int], contributes: list[bool]) -> list[Rows | None]:
    rng = np.random.default_rng(seed)
    values = [rng.standard_normal(shape, np.float32) * np.float32(10.0 ** rng.integers(-3, 3)) for _ in contributes]
    return [part if given else None for part, given in zip(values, contributes, strict=True)]


@pytest.mark.parametrize("key", [None, b"secret"], ids=["plain", "authenticated"])
@pytest.mark.parametrize("algorithm", Algorithm, ids=lambda algorithm: algorithm.name)
@pytest.mark.parametrize("n_nodes", [2, 3, 5, 7])
def test_all_reduce_adds_rounded_rows_in_rank_order(n_nodes: int, algorithm: Algorithm, key: bytes | None) -> None:
    with meshes(n_nodes, key=key) as nodes:
        for seed, (n_rows, width) in enumerate([(1, 32), (1, 576), (3, 96), (40, 2048), (7, 1), (2, 77), (33, 1000)]):
            for wire in WIRES if width % 32 == 0 else WIRES[:2]:
                parts = random_parts(seed, (n_rows, width), [True] * n_nodes)
                wanted = expected_sum(parts, wire, algorithm, (n_rows, width))
                for found in all_reduced(nodes, parts, (n_rows, width), wire, algorithm):
                    assert_same_bits(found, wanted)


@settings(max_examples=40, deadline=None)
@given(
    contributes=st.lists(st.booleans(), min_size=2, max_size=6),
    n_rows=st.integers(1, 40),
    n_blocks=st.integers(1, 9),
    odd_columns=st.integers(0, 31),
    wire=st.sampled_from(WIRES),
    algorithm=st.sampled_from(list(Algorithm)),
    seed=st.integers(0, 1000),
)
def test_nodes_that_contribute_nothing_are_left_out_of_the_sum(
    contributes: list[bool],
    n_rows: int,
    n_blocks: int,
    odd_columns: int,
    wire: FloatType,
    algorithm: Algorithm,
    seed: int,
) -> None:
    shape = (n_rows, 32 * n_blocks + (0 if wire is FloatType.Q80 else odd_columns))
    parts = random_parts(seed, shape, contributes)
    wanted = expected_sum(parts, wire, algorithm, shape)
    with meshes(len(contributes)) as nodes:
        for found in all_reduced(nodes, parts, shape, wire, algorithm):
            assert_same_bits(found, wanted)


@settings(max_examples=200, deadline=None)
@given(
    rows=hypothesis_numpy.arrays(np.float32, (2, 64), elements=st.floats(-60000, 60000, width=32)),
    wire=st.sampled_from(WIRES),
)
def test_rounding_is_that_of_the_codecs(rows: Rows, wire: FloatType) -> None:
    with meshes(2) as nodes:
        found = all_reduced(nodes, [rows, None], rows.shape, wire, DIRECT)
    assert_same_bits(found[1], np.float32(0) + rounded(rows, wire))


@pytest.mark.parametrize("largest", [1e-45, 1e-39, 2e-38, 1e-8, 7.5e-6, 0.001, 1.0, 8.3e6])
def test_q80_scales_of_any_magnitude_are_those_of_the_codecs(largest: float) -> None:
    rows = (np.random.default_rng(1).uniform(-1, 1, (4, 32)) * largest).astype(np.float32)
    with meshes(2) as nodes:
        found = all_reduced(nodes, [rows, None], rows.shape, FloatType.Q80, DIRECT)
    assert_same_bits(found[1], np.float32(0) + rounded(rows, FloatType.Q80))


def test_every_f16_number_and_those_halfway_between_are_rounded_as_numpy_rounds() -> None:
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    halfway = (halves[:-1] + halves[1:]) / 2
    near = [np.nextafter(halfway, np.float32(limit), dtype=np.float32) for limit in (0, np.inf)]
    beyond = np.float32([65504, 65519, 65520, 65536, 1e9, 3e38, 1e-8, 2.98e-8, 1e-40])
    rows = np.concatenate([halves, halfway, *near, beyond])
    rows = np.stack([rows, -rows])
    with np.errstate(over="ignore"):
        wanted = np.float32(0) + rows.astype(np.float16).astype(np.float32)
    with meshes(2) as nodes:
        assert_same_bits(all_reduced(nodes, [rows, None], rows.shape, FloatType.F16, DIRECT)[1], wanted)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("algorithm", Algorithm, ids=lambda algorithm: algorithm.name)
@pytest.mark.parametrize("wire", WIRES)
def test_numbers_that_are_not_finite_stay_so_and_spoil_nothing_else(
    wire: FloatType, algorithm: Algorithm, bad: float
) -> None:
    rows = np.ones((2, 96), np.float32)
    rows[1, 40] = bad
    with meshes(3) as nodes:
        results = all_reduced(nodes, [rows, rows, rows], rows.shape, wire, algorithm)
    for found in results:
        assert not np.isfinite(found[1, 40])
        spoiled = ~np.isfinite(found)
        assert not spoiled[0].any()
        assert not spoiled[1, :32].any()
        assert not spoiled[1, 64:].any()


def small_buffers(pair: Pair) -> Pair:
    def made() -> tuple[socket.socket, socket.socket]:
        ends = pair()
        for end in ends:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        return ends

    return made


@pytest.mark.timeout(120)
@pytest.mark.parametrize("algorithm", Algorithm, ids=lambda algorithm: algorithm.name)
def test_rows_far_larger_than_the_system_buffers_do_not_block(algorithm: Algorithm) -> None:
    shape = (256, 2048)
    parts = random_parts(0, shape, [True] * 3)
    with meshes(3, pair=small_buffers(socket.socketpair)) as nodes:
        results = all_reduced(nodes, parts, shape, FloatType.F32, algorithm)
    wanted = expected_sum(parts, FloatType.F32, algorithm, shape)
    for found in results:
        assert_same_bits(found, wanted)


def test_exchanges_of_all_kinds_follow_each_other_over_tcp() -> None:
    """The faster nodes run ahead: a broadcast and a gather need no answer."""

    def work(mesh: Mesh) -> tuple[list[Rows], list[list[bytes] | None]]:
        rng = np.random.default_rng(mesh.rank)
        kept: list[Rows] = []
        gathered = []
        for step in range(30):
            rows = rng.standard_normal((1 + step % 4, 160), np.float32)
            mesh.broadcast(rows)
            kept.append(rows.copy())
            algorithm = TWO_HOPS if step % 3 else DIRECT
            mesh.all_reduce(rows, contributes=mesh.rank != 2, wire=FloatType.Q80, algorithm=algorithm)
            kept.append(rows)
            gathered.append(mesh.gather(bytes([mesh.rank]) * (step * mesh.rank)))
        return kept, gathered

    with meshes(4, pair=tcp_pair, key=b"k") as nodes:
        results = on_all(nodes, work)
    rng = np.random.default_rng(0)
    for step in range(30):
        assert_same_bits(results[3][0][2 * step], rng.standard_normal((1 + step % 4, 160), np.float32))
    for kept, _ in results[1:]:
        for ours, roots in zip(kept, results[0][0], strict=True):
            assert_same_bits(ours, roots)
    assert results[0][1] == [[bytes([rank]) * (step * rank) for rank in range(4)] for step in range(30)]
    assert all(payload is None for _, gathered in results[1:] for payload in gathered)


def test_broadcast_keeps_every_bit() -> None:
    rows = np.array([[-0.0, 1e-45, np.inf, np.nan, 1 / 3]], np.float32)
    with meshes(2) as nodes:
        results = [rows.copy(), np.zeros_like(rows)]
        on_all(nodes, lambda mesh: mesh.broadcast(results[mesh.rank]))
    assert_same_bits(results[1], rows)


def test_sixty_four_nodes_agree() -> None:
    shape = (1, 96)  # fewer spans than nodes
    parts = random_parts(0, shape, [True] * 64)
    with meshes(64) as nodes:
        results = all_reduced(nodes, parts, shape, FloatType.F32, TWO_HOPS)
    for found in results:
        assert_same_bits(found, expected_sum(parts, FloatType.F32, TWO_HOPS, shape))


def test_rows_may_be_part_of_a_larger_buffer() -> None:
    buffers = [np.full((4, 32), 1 + rank, np.float32) for rank in range(2)]
    with meshes(2) as nodes:
        on_all(
            nodes,
            lambda mesh: mesh.all_reduce(
                buffers[mesh.rank][:2], contributes=True, wire=FloatType.F32, algorithm=DIRECT
            ),
        )
    assert [buffer[:, 0].tolist() for buffer in buffers] == [[3, 3, 1, 1], [3, 3, 2, 2]]


def test_bytes_are_counted_by_peer() -> None:
    shape = (2, 64)
    with meshes(3) as nodes:
        all_reduced(nodes, random_parts(0, shape, [True, False, True]), shape, FloatType.F16, DIRECT)
        stats = [mesh.stats() for mesh in nodes]
    full, empty = 28 + 2 * 64 * 2, 28
    assert [stats[0].peers[rank].bytes_received for rank in (1, 2)] == [empty, full]
    assert (stats[1].bytes_sent, stats[1].bytes_received) == (2 * empty, 2 * full)
    for node in stats:
        assert node.n_exchanges == 1
        assert 0 <= node.waiting_seconds <= node.seconds
        for peer in node.peers.values():
            assert min(peer.waiting_seconds, peer.receiving_seconds, peer.sending_seconds) >= 0


@pytest.mark.parametrize("n_nodes", [2, 4, 5])
@pytest.mark.parametrize("algorithm", Algorithm)
def test_planned_traffic_is_what_crosses_every_link(n_nodes: int, algorithm: Algorithm) -> None:
    contributes = [rank != 1 for rank in range(n_nodes)]
    n_rows, width, wire = 2, 576, FloatType.Q80
    planned = sum(all_reduce_hops(contributes, width, n_rows, wire, algorithm))
    header_bytes, hops = 28, 1 if algorithm is Algorithm.DIRECT else 2
    with meshes(n_nodes) as nodes:
        rows = [np.zeros((n_rows, width), np.float32) for _ in nodes]
        on_all(
            nodes,
            lambda mesh: mesh.all_reduce(
                rows[mesh.rank], contributes=contributes[mesh.rank], wire=wire, algorithm=algorithm
            ),
        )
        for mesh in nodes:
            for rank, peer in mesh.stats().peers.items():
                assert peer.bytes_sent - hops * header_bytes == planned[mesh.rank, rank]


def test_what_cannot_cross_the_network_is_refused_in_a_sentence() -> None:
    with meshes(2) as (mesh, _):
        with pytest.raises(DllamaError, match="multiple of 32"):
            mesh.all_reduce(np.zeros((1, 33), np.float32), contributes=True, wire=FloatType.Q80, algorithm=DIRECT)
        with pytest.raises(DllamaError, match="not q40"):
            mesh.all_reduce(np.zeros((1, 32), np.float32), contributes=True, wire=FloatType.Q40, algorithm=DIRECT)
    with pytest.raises(DllamaError, match="2 to 64 nodes, not 1"):
        Mesh(0, {})
    with socket.socket() as one, pytest.raises(DllamaError, match="2 to 64 nodes, not 65"):
        Mesh(0, dict.fromkeys(range(1, 65), one))


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((2, 64), np.float64),
        np.zeros((2, 64), np.float32)[:, ::2],
        np.zeros((0, 32), np.float32),
    ],
    ids=["double precision", "not contiguous", "no rows"],
)
def test_arrays_that_native_code_could_not_write_to_are_refused(rows: Rows) -> None:
    with meshes(2) as (mesh, _), pytest.raises((TypeError, ValueError)):
        mesh.all_reduce(rows, contributes=True, wire=FloatType.F32, algorithm=DIRECT)


# Of the reference implementation: key 00 01 .. 0f, input 00 01 .. of the length given.
SIPHASH_VECTORS = {0: "a3817f04ba25a8e66df67214c7550293", 1: "da87c1d86b99af44347659119b22fc45"}


@pytest.mark.parametrize("length", SIPHASH_VECTORS)
def test_siphash_gives_the_published_results(length: int) -> None:
    found = _native.siphash(bytes(range(16)), [bytes(range(length))])
    assert found.hex() == SIPHASH_VECTORS[length]


@given(
    data=st.binary(max_size=80), cuts=st.lists(st.integers(0, 80), max_size=4), key=st.binary(min_size=16, max_size=16)
)
def test_siphash_does_not_depend_on_the_pieces(data: bytes, cuts: list[int], key: bytes) -> None:
    edges = [0, *sorted(cuts), 80]
    pieces = [data[begin:end] for begin, end in pairwise(edges)]
    assert _native.siphash(key, pieces) == _native.siphash(key, [data])


def test_siphash_agrees_with_openssl() -> None:
    if not shutil.which("openssl"):
        pytest.skip("the openssl program, which has another SipHash, is not installed")
    key, data = bytes(range(100, 116)), bytes(range(77))
    command = ["openssl", "mac", "-macopt", f"hexkey:{key.hex()}", "-macopt", "size:16", "SIPHASH"]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("this openssl has no SipHash (it is older than 3.0, or LibreSSL)")
    assert _native.siphash(key, [data]).hex() == done.stdout.decode().strip().lower()
