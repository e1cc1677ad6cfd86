from __future__ import annotations

import hashlib
import io
import os
import shutil
import sys
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest

from dllama_gpu.errors import DllamaError
from launcher.catalogue import ModelEntry, ModelFile
from launcher.console import Console
from launcher.sources import FetchContext, Source
from launcher.store import ensure_model, is_verified

CONTENT = bytes(range(256)) * 8192  # 2 MiB: several reads


@dataclass
class MemorySource:
    """Gives `content`, and counts how often it was asked."""

    content: bytes = CONTENT
    asked: int = field(default=0, init=False)

    def describe(self) -> str:
        return "memory"

    @contextmanager
    def open(self, context: FetchContext) -> Iterator[IO[bytes]]:
        self.asked += 1
        yield io.BytesIO(self.content)


class BrokenSource(MemorySource):
    """Cannot be reached."""

    @contextmanager
    def open(self, context: FetchContext) -> Iterator[IO[bytes]]:
        self.asked += 1
        raise DllamaError("the place cannot be reached.")
        yield


class InterruptedSource(MemorySource):
    """Ctrl-C comes after the first read."""

    @contextmanager
    def open(self, context: FetchContext) -> Iterator[IO[bytes]]:
        stream = io.BytesIO(self.content)
        read = stream.read
        sizes: list[int | None] = []

        def interrupted_read(size: int | None = -1) -> bytes:
            if sizes:
                raise KeyboardInterrupt
            sizes.append(size)
            return read(size)

        stream.read = interrupted_read  # type: ignore[method-assign]
        yield stream


def entry_from(*sources: Source) -> ModelEntry:
    file = ModelFile("model.gguf", len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), sources)
    return ModelEntry("tiny", "a test model", (file,), "model.gguf", "Once")


@dataclass(frozen=True)
class Shop:
    """A models folder and a console."""

    models: Path
    console: Console

    def ensure(self, entry: ModelEntry) -> bytes:
        folder = ensure_model(self.models, entry, Path(sys.executable), self.console)
        return (folder / entry.model_file).read_bytes()

    @property
    def folder(self) -> Path:
        return self.models / "tiny"

    @property
    def path(self) -> Path:
        return self.folder / "model.gguf"


@pytest.fixture
def shop(tmp_path: Path, console: Console) -> Shop:
    return Shop(tmp_path / "models", console)


def test_a_missing_file_is_fetched(shop: Shop) -> None:
    assert shop.ensure(entry_from(MemorySource())) == CONTENT


def test_a_verified_file_is_neither_fetched_nor_read_again(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    source = MemorySource()
    entry = entry_from(source)
    shop.ensure(entry)
    monkeypatch.setattr(hashlib, "sha256", None)
    assert shop.ensure(entry) == CONTENT
    assert source.asked == 1


@pytest.mark.parametrize(
    ("damaged", "complaint"),
    [
        (CONTENT[:-1], f"{len(CONTENT) - 1} bytes, not {len(CONTENT)}"),
        (b"\xff" + CONTENT[1:], "SHA-256"),
        (b"", f"0 bytes, not {len(CONTENT)}"),
    ],
    ids=["truncated", "corrupted", "empty"],
)
def test_a_damaged_file_is_said_and_fetched_again(
    shop: Shop, screen: io.StringIO, damaged: bytes, complaint: str
) -> None:
    source = MemorySource()
    entry = entry_from(source)
    shop.ensure(entry)
    shop.path.write_bytes(damaged)
    os.utime(shop.path, ns=(1, 1))
    assert not is_verified(shop.folder, entry.files[0])
    assert shop.ensure(entry) == CONTENT
    assert source.asked == 2
    assert f"model.gguf is damaged ({complaint}" in screen.getvalue()


def test_a_file_that_a_person_put_there_is_verified_and_used(shop: Shop) -> None:
    source = MemorySource()
    entry = entry_from(source)
    shop.folder.mkdir(parents=True)
    shop.path.write_bytes(CONTENT)
    assert shop.ensure(entry) == CONTENT
    assert source.asked == 0
    assert is_verified(shop.folder, entry.files[0])


def test_a_damaged_record_only_costs_a_verification(shop: Shop) -> None:
    source = MemorySource()
    entry = entry_from(source)
    shop.ensure(entry)
    (shop.folder / ".verified.json").write_text("[1, 2")
    assert shop.ensure(entry) == CONTENT
    assert source.asked == 1


def test_a_record_of_other_bytes_does_not_count(shop: Shop) -> None:
    entry = entry_from(MemorySource())
    shop.ensure(entry)
    changed = ModelFile("model.gguf", len(CONTENT), "0" * 64, entry.files[0].sources)
    assert not is_verified(shop.folder, changed)


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"x", b"x" + CONTENT[1:], b""])
def test_wrong_bytes_from_a_source_are_refused_and_leave_nothing(shop: Shop, content: bytes) -> None:
    with pytest.raises(DllamaError, match=rf"memory gave {len(content)} bytes .* were expected"):
        shop.ensure(entry_from(MemorySource(content)))
    assert list(shop.folder.iterdir()) == []


def test_an_interruption_leaves_nothing(shop: Shop) -> None:
    with pytest.raises(KeyboardInterrupt):
        shop.ensure(entry_from(InterruptedSource()))
    assert list(shop.folder.iterdir()) == []


def test_what_a_killed_process_left_does_not_disturb(shop: Shop) -> None:
    shop.folder.mkdir(parents=True)
    (shop.folder / ".scratch").mkdir()
    (shop.folder / ".scratch" / "model.gguf").write_bytes(CONTENT + CONTENT)
    assert shop.ensure(entry_from(MemorySource())) == CONTENT
    assert not (shop.folder / ".scratch").exists()


def test_the_next_source_is_asked_when_one_fails(shop: Shop) -> None:
    sources = BrokenSource(), MemorySource(b"nonsense"), MemorySource(), MemorySource()
    assert shop.ensure(entry_from(*sources)) == CONTENT
    assert [source.asked for source in sources] == [1, 1, 1, 0]


def test_when_all_sources_fail_every_reason_is_told(shop: Shop) -> None:
    with pytest.raises(DllamaError) as caught:
        shop.ensure(entry_from(BrokenSource(), MemorySource(b"nonsense")))
    assert str(caught.value).startswith(
        "Cannot get model.gguf. the place cannot be reached. For model.gguf, memory gave"
    )


def test_a_full_disk_is_found_before_fetching(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 2 * len(CONTENT) - 1))
    source = MemorySource()
    with pytest.raises(DllamaError, match=r"model\.gguf needs .* GB are free; free some space"):
        shop.ensure(entry_from(source))
    assert source.asked == 0
