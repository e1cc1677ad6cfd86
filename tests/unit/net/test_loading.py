"""Both ends of the transfer of weights, connected in this process."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.architectures import build_graph
from dllama_gpu.graph.graph import Graph
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.graph.shard import shard_by_ratio
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.m_file import MFile
from dllama_gpu.model.source import ModelSource
from dllama_gpu.net.channel import Channel, ChannelError
from dllama_gpu.net.hashing import slice_digests
from dllama_gpu.net.loading import graph_bytes, receive_slices, send_slices
from dllama_gpu.net.messages import Loading, SliceHashes, SliceWanted
from dllama_gpu.net.slices import graph_slices, localize, read_slice
from dllama_gpu.net.store import HeldSlice, SliceStore
from tests.support.models import write_random_m


@pytest.fixture
def source(tmp_path: Path) -> Iterator[ModelSource]:
    path = tmp_path / "model.m"
    write_random_m(
        path,
        dim=64,
        hidden_dim=96,
        n_layers=1,
        n_heads=4,
        n_kv_heads=2,
        vocab_size=128,
        max_seq_len=64,
        weight_type=FloatType.Q40,
        seed=3,
    )
    file = MFile(path)
    yield file
    file.close()


@pytest.fixture
def graph(source: ModelSource) -> Graph:
    shard = shard_by_ratio(source.spec, [1, 1])[1]
    return build_graph(source.spec, source.tensors, GraphOptions(seq_len=32), shard)


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = socket.socketpair()
    channels = Channel(ours, "the worker", timeout=5.0), Channel(theirs, "the root", timeout=5.0)
    yield channels
    for channel in channels:
        channel.close()


def transfer(
    ends: tuple[Channel, Channel], source: ModelSource, graph: Graph, store: SliceStore, told: list[int]
) -> tuple[dict[str, HeldSlice], int]:
    pieces = graph_slices(graph)
    digests = slice_digests(source, pieces, None)
    with ThreadPoolExecutor(1) as pool:
        receiving = pool.submit(receive_slices, ends[1], localize(graph), store)
        sent = send_slices(ends[0], source, pieces, digests, told.append)
        return receiving.result(), sent


def test_slices_arrive_whole_and_only_once(
    ends: tuple[Channel, Channel], source: ModelSource, graph: Graph, tmp_path: Path
) -> None:
    pieces = graph_slices(graph)
    total = sum(piece.n_bytes for piece in pieces)
    told: list[int] = []
    held, sent = transfer(ends, source, graph, SliceStore(tmp_path / "cache"), told)
    for piece in pieces:
        wanted = b"".join(chunk.tobytes() for chunk in read_slice(source, piece, 0, 1000))
        assert held[piece.name].open().tobytes() == wanted
    assert sent == total
    assert told == sorted(told)
    assert told[-1] == total
    again: list[int] = []
    assert transfer(ends, source, graph, SliceStore(tmp_path / "cache"), again)[1] == 0
    assert again == [total]


def test_a_worker_that_looks_through_its_cache_is_seen_to_go_on(
    ends: tuple[Channel, Channel], source: ModelSource, graph: Graph
) -> None:
    pieces = graph_slices(graph)
    total = sum(piece.n_bytes for piece in pieces)
    for done in (5, 9, 1 << 60, -7):  # the last two are nonsense
        ends[1].send(Loading(done, total))
    ends[1].send(SliceWanted(()))
    told: list[int] = []
    assert send_slices(ends[0], source, pieces, dict.fromkeys(pieces, bytes(32)), told.append) == 0
    assert told == [5, 9, total, 0, total]


def test_a_root_whose_weights_do_not_fit_their_hashes_is_left(
    ends: tuple[Channel, Channel], source: ModelSource, graph: Graph
) -> None:
    pieces = graph_slices(graph)
    digests = dict.fromkeys(pieces, bytes(32))
    with ThreadPoolExecutor(2) as pool:
        receiving = pool.submit(receive_slices, ends[1], localize(graph), SliceStore(None))
        sending = pool.submit(send_slices, ends[0], source, pieces, digests, lambda done: None)
        with pytest.raises(DllamaError, match="arrived damaged 3 times"):
            receiving.result()
        ends[1].interrupt()
        with pytest.raises(ChannelError):
            sending.result()


@pytest.mark.parametrize("digests", [(), (bytes(32),), tuple([bytes(31)] * 100)], ids=["none", "one", "short ones"])
def test_hashes_that_do_not_fit_the_graph_are_refused(
    ends: tuple[Channel, Channel], graph: Graph, digests: tuple[bytes, ...]
) -> None:
    ends[0].send(SliceHashes(digests))
    with pytest.raises(ChannelError, match="hashes were sent for"):
        receive_slices(ends[1], localize(graph), SliceStore(None))


@pytest.mark.parametrize(
    "wanted", [lambda n, size: (n, 0), lambda n, size: (-1, 0), lambda n, size: (0, size), lambda n, size: (0, -1)]
)
def test_a_worker_that_asks_for_what_does_not_exist_is_refused(
    ends: tuple[Channel, Channel], source: ModelSource, graph: Graph, wanted: Callable[[int, int], tuple[int, int]]
) -> None:
    pieces = graph_slices(graph)
    ends[1].send(Loading(0, 1))
    ends[1].send(SliceWanted((wanted(len(pieces), pieces[0].n_bytes),)))
    with pytest.raises(ChannelError, match="which does not exist"):
        send_slices(ends[0], source, pieces, dict.fromkeys(pieces, bytes(32)), lambda done: None)


def test_memory_counts_weights_caches_and_activations(graph: Graph) -> None:
    needed = graph_bytes(graph)
    assert needed > graph.weight_bytes() + graph.kv_cache_bytes()
