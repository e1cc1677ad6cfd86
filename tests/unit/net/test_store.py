from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dllama_gpu.errors import DllamaError
from dllama_gpu.net.store import DamagedSliceError, HeldSlice, SliceStore, default_folder, new_digest

DATA = bytes(np.random.default_rng(1).integers(0, 256, 100_000, np.uint8))


def digest(data: bytes) -> bytes:
    code = new_digest()
    code.update(data)
    return code.digest()


def put(store: SliceStore, data: bytes, begin: int = 0) -> HeldSlice:
    writer = store.receive(digest(data), len(data), begin)
    for at in range(begin, len(data), 3000):
        writer.write(data[at : at + 3000])
    assert writer.missing == 0
    return writer.finish()


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, warnings: list[str]) -> SliceStore:
    return SliceStore(tmp_path, warn=warnings.append)


def test_a_slice_is_found_again_by_its_digest(store: SliceStore, tmp_path: Path) -> None:
    assert store.find(digest(DATA), len(DATA)) is None
    assert put(store, DATA).open().tobytes() == DATA
    store.close()
    told: list[int] = []
    found = SliceStore(tmp_path).find(digest(DATA), len(DATA), told.append)
    assert found is not None
    assert found.path is not None
    assert found.open().tobytes() == DATA
    assert sum(told) == len(DATA)


def test_without_a_folder_slices_are_kept_in_memory() -> None:
    store = SliceStore(None)
    held = put(store, DATA)
    assert held.path is None
    assert held.open().tobytes() == DATA
    assert store.find(digest(DATA), len(DATA)) is None


def test_an_interrupted_slice_goes_on_where_it_stopped(store: SliceStore, tmp_path: Path) -> None:
    writer = store.receive(digest(DATA), len(DATA), 0)
    writer.write(DATA[:4321])
    writer.abandon()
    store.close()
    again = SliceStore(tmp_path)
    assert again.arrived(digest(DATA), len(DATA)) == 4321
    assert put(again, DATA, 4321).open().tobytes() == DATA
    assert again.arrived(digest(DATA), len(DATA)) == 0


def test_what_was_damaged_between_two_transfers_is_noticed(store: SliceStore, tmp_path: Path) -> None:
    writer = store.receive(digest(DATA), len(DATA), 0)
    writer.write(DATA[:4000])
    writer.abandon()
    (partial,) = (tmp_path / "partial-0").iterdir()
    partial.write_bytes(b"x" + DATA[1:4000])
    with pytest.raises(DamagedSliceError):
        put(store, DATA, 4000)
    assert store.arrived(digest(DATA), len(DATA)) == 0


def test_damaged_bytes_are_not_kept(store: SliceStore) -> None:
    writer = store.receive(digest(DATA), len(DATA), 0)
    writer.write(b"x" + DATA[1:])
    with pytest.raises(DamagedSliceError):
        writer.finish()
    assert store.find(digest(DATA), len(DATA)) is None


def test_more_bytes_than_the_slice_has_are_refused(store: SliceStore) -> None:
    writer = store.receive(digest(DATA), len(DATA), 0)
    with pytest.raises(DllamaError, match="was sent with more"):
        writer.write(DATA + b"x")
    writer.abandon()


@pytest.mark.parametrize("content", [DATA[:-1], DATA[:-1] + b"?", b""])
def test_a_slice_that_rotted_on_the_disk_is_thrown_away(store: SliceStore, content: bytes) -> None:
    path = put(store, DATA).path
    assert path is not None
    path.write_bytes(content)
    assert store.find(digest(DATA), len(DATA)) is None
    assert not path.exists()


def test_the_slices_used_longest_ago_go_first(tmp_path: Path) -> None:
    store = SliceStore(tmp_path, limit=3500)
    slices = [bytes([number]) * 1000 for number in range(3)]
    for age, data in enumerate(slices):
        path = put(store, data).path
        assert path is not None
        os.utime(path, (1000 + age, 1000 + age))
    assert store.find(digest(slices[0]), 1000) is not None  # used just now
    store.make_room(1000, keep=[])
    assert [store.find(digest(data), 1000) is not None for data in slices] == [True, False, True]


def test_slices_in_use_are_never_removed(tmp_path: Path, warnings: list[str]) -> None:
    store = SliceStore(tmp_path, limit=1500, warn=warnings.append)
    put(store, DATA[:1000])
    store.make_room(1000, keep=[digest(DATA[:1000])])
    assert store.find(digest(DATA[:1000]), 1000) is not None
    assert "--cache-size allows 1500" in warnings[0]
    assert put(store, DATA[:999]).path is None


def test_what_an_interrupted_transfer_left_counts_and_goes_in_its_turn(tmp_path: Path, warnings: list[str]) -> None:
    store = SliceStore(tmp_path, limit=2500, warn=warnings.append)
    abandoned, wanted = DATA[:2000], DATA[2000:4000]
    for data in (abandoned, wanted):
        writer = store.receive(digest(data), 2000, 0)
        writer.write(data[:1000])
        writer.abandon()
    store.make_room(2000, keep=[digest(wanted)])
    assert store.arrived(digest(abandoned), 2000) == 0
    assert store.arrived(digest(wanted), 2000) == 1000
    assert not warnings


def test_a_folder_that_is_deleted_meanwhile_costs_the_cache_alone(tmp_path: Path, warnings: list[str]) -> None:
    folder = tmp_path / "cache"
    store = SliceStore(folder, warn=warnings.append)
    shutil.rmtree(folder)
    store.make_room(1000, keep=[])
    assert bytes(put(store, DATA[:1000]).open()) == DATA[:1000]
    assert len(warnings) == 1


class FullDisk:
    """A file that takes no byte more."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.mark.parametrize("written", [0, 3000, 9000])
def test_a_full_disk_moves_the_slice_to_memory_and_says_so_once(
    store: SliceStore, warnings: list[str], written: int
) -> None:
    writer = store.receive(digest(DATA), len(DATA), 0)
    writer.write(DATA[:written])
    writer._file = FullDisk(writer._file)
    writer.write(DATA[written:])
    held = writer.finish()
    assert held.path is None
    assert held.open().tobytes() == DATA
    assert put(store, DATA[:50]).path is None
    assert len(warnings) == 1
    assert "the disk is full" in warnings[0]


def test_a_folder_that_cannot_be_made_leaves_memory(tmp_path: Path, warnings: list[str]) -> None:
    (tmp_path / "file").write_text("not a folder")
    store = SliceStore(tmp_path / "file", warn=warnings.append)
    assert not store.on_disk
    assert put(store, DATA).path is None
    assert len(warnings) == 1


def test_two_stores_share_a_folder_without_sharing_unfinished_files(tmp_path: Path) -> None:
    first, second = SliceStore(tmp_path), SliceStore(tmp_path)
    writers = [store.receive(digest(DATA), len(DATA), 0) for store in (first, second)]
    for writer in writers:
        writer.write(DATA)
    for writer in writers:
        assert writer.finish().open().tobytes() == DATA


def test_the_cache_is_where_the_system_keeps_caches() -> None:
    assert default_folder().name == "dllama-gpu"
