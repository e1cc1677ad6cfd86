from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dllama_gpu.cpu.device import CpuDevice
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.architectures import build_graph
from dllama_gpu.graph.check import check
from dllama_gpu.graph.graph import Graph, TensorSlice
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.graph.shard import shard_by_ratio
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.m_file import MFile
from dllama_gpu.model.source import ModelSource
from dllama_gpu.net import hashing
from dllama_gpu.net.hashing import slice_digests, unknown_bytes
from dllama_gpu.net.slices import SliceSource, WeightSlice, graph_slices, localize, read_slice
from dllama_gpu.net.store import HeldSlice
from tests.support.models import write_random_m


@pytest.fixture
def source(tmp_path: Path) -> Iterator[ModelSource]:
    path = tmp_path / "model.m"
    write_random_m(
        path,
        dim=64,
        hidden_dim=96,
        n_layers=2,
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


def graphs(source: ModelSource) -> list[Graph]:
    shards = shard_by_ratio(source.spec, [1, 1])
    return [build_graph(source.spec, source.tensors, GraphOptions(seq_len=32), shard) for shard in shards]


def content(source: ModelSource, piece: WeightSlice, begin: int = 0, chunk_bytes: int = 100) -> bytes:
    return b"".join(chunk.tobytes() for chunk in read_slice(source, piece, begin, chunk_bytes))


def test_a_slice_is_its_rectangle_row_by_row_from_any_byte(source: ModelSource) -> None:
    piece = WeightSlice(TensorSlice("layers.0.o", 3, 40, 32, 64), FloatType.Q40)
    whole = np.ascontiguousarray(source.read("layers.0.o")[3:40, 18:36]).tobytes()
    assert len(whole) == piece.n_bytes
    for begin in (0, 1, 17, 18, 500, piece.n_bytes - 1):
        for chunk_bytes in (1, 18, 100, 1 << 20):
            assert content(source, piece, begin, chunk_bytes) == whole[begin:]


def test_a_slice_of_a_tensor_that_is_not_there_is_refused(source: ModelSource) -> None:
    for name, float_type in (("layers.9.o", FloatType.Q40), ("layers.0.o", FloatType.Q80)):
        with pytest.raises(DllamaError, match=f"has no {float_type.value} tensor {name}"):
            content(source, WeightSlice(TensorSlice(name, 0, 1, 0, 32), float_type))


def test_a_local_graph_needs_only_its_slices(source: ModelSource) -> None:
    for graph in graphs(source):
        pieces = graph_slices(graph)
        local = localize(graph)
        check(local)
        held = {
            piece.name: HeldSlice(piece.n_bytes, None, np.frombuffer(content(source, piece), np.uint8))
            for piece in pieces
        }
        assert {piece.name for piece in pieces} == {piece.part.tensor for piece in graph_slices(local)}
        received = SliceSource(local, held, "model.m", source.spec)
        for weight, local_weight in zip(graph.weights, local.weights, strict=True):
            for part, local_part in zip(weight.parts, local_weight.parts, strict=True):
                piece = WeightSlice(part, weight.float_type)
                assert received.read(local_part.tensor).tobytes() == content(source, piece)
        assert CpuDevice(1).compile(local, received).graph == local


def test_slices_in_memory_are_dropped_when_the_device_has_them(source: ModelSource) -> None:
    local = localize(graphs(source)[0])
    name = local.weights[0].parts[0].tensor
    piece = graph_slices(local)[0]
    received = SliceSource(
        local, {name: HeldSlice(piece.n_bytes, None, np.zeros(piece.n_bytes, np.uint8))}, "m", source.spec
    )
    received.read(name)
    received.release(name)
    with pytest.raises(KeyError):
        received.read(name)


def test_hashes_are_computed_once_for_a_file(
    source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = graph_slices(graphs(source)[0])
    told: list[tuple[int, int]] = []
    to_read = sum(piece.n_bytes for piece in pieces)
    assert unknown_bytes(source, pieces, tmp_path / "cache") == unknown_bytes(source, pieces, None) == to_read
    first = slice_digests(source, pieces, tmp_path / "cache", lambda done, total: told.append((done, total)))
    assert told[-1] == (to_read, to_read)
    assert unknown_bytes(source, pieces, tmp_path / "cache") == 0
    assert len(set(first.values())) == len({content(source, piece) for piece in pieces})
    with monkeypatch.context() as patch:
        patch.setattr(hashing, "read_slice", lambda *_: pytest.fail("read again"))
        assert slice_digests(source, pieces, tmp_path / "cache") == first


def test_hashes_of_a_changed_file_are_computed_anew(source: ModelSource, tmp_path: Path) -> None:
    piece = graph_slices(graphs(source)[0])[-1]
    assert piece.part.tensor == "head"
    first = slice_digests(source, [piece], tmp_path / "cache")
    data = bytearray(source.path.read_bytes())
    n_bytes = source.tensors["head"].n_bytes  # the last tensor of the file
    data[-n_bytes:] = bytes(n_bytes)
    other = source.path.with_name("other.m")
    other.write_bytes(data)
    other.replace(source.path)
    changed = MFile(source.path)
    assert slice_digests(changed, [piece], tmp_path / "cache") != first
    changed.close()


def test_hashes_of_another_release_or_a_changed_folder_are_computed_anew(
    source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another release may convert a model to other bytes; a model may be a folder of files."""

    class InFolder:
        path = tmp_path / "folder"
        tensors, read, release = source.tensors, source.read, source.release

    InFolder.path.mkdir()
    weights = InFolder.path / "weights"
    weights.write_bytes(b"one")
    piece = graph_slices(graphs(source)[0])[-1]
    computed: list[bool] = []
    digest = hashing._digest
    monkeypatch.setattr(hashing, "_digest", lambda *given: computed.append(True) or digest(*given))

    def times_computed() -> int:
        computed.clear()
        slice_digests(InFolder(), [piece], tmp_path / "cache")  # type: ignore[arg-type]
        return len(computed)

    assert (times_computed(), times_computed()) == (1, 0)
    weights.write_bytes(b"other")
    assert (times_computed(), times_computed()) == (1, 0)
    monkeypatch.setattr(hashing.dllama_gpu, "__version__", "9.9")
    assert (times_computed(), times_computed()) == (1, 0)


def test_a_damaged_file_of_hashes_is_ignored(source: ModelSource, tmp_path: Path) -> None:
    pieces = graph_slices(graphs(source)[0])
    first = slice_digests(source, pieces, tmp_path / "cache")
    (file,) = (tmp_path / "cache" / "hashes").iterdir()
    file.write_bytes(b"\xc1 damaged")
    assert slice_digests(source, pieces, tmp_path / "cache") == first
