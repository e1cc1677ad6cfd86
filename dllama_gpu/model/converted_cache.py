"""Converted matrices kept on disk, so that only the first start with a model converts them.

    FOLDER/MODEL/layers.0.q     blocks of one tensor, and behind them their BLAKE2b-256

MODEL is a hash of what was converted (files, their sizes and times of change) and to what, by which release.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import platformdirs

import dllama_gpu
from dllama_gpu.model.files import file_states
from dllama_gpu.model.source import ModelSource, TensorInfo
from dllama_gpu.model.spec import ModelSpec

Bytes = npt.NDArray[np.uint8]

VARIABLE = "DLLAMA_GPU_CONVERTED_CACHE"
"""Environment variable: the folder, or `none`."""
DEFAULT_LIMIT = 50 << 30
_WORTH_BYTES = 64 << 20  # less than this is converted in a moment
_SPARE_BYTES = 5 << 30  # of the disk, for everybody else
_DIGEST_BYTES = 32


class ConvertingSource(ModelSource, Protocol):
    """A source of which some tensors are converted at each `read`."""

    def is_converted(self, name: str) -> bool:
        """Whether `read` makes a converted copy of a matrix."""


def cache_folder() -> Path | None:
    """Where converted matrices are kept: what the environment says, else this system's folder for caches."""
    chosen = os.environ.get(VARIABLE)
    if chosen == "none":
        return None
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("dllama-gpu", appauthor=False)) / "converted"


class CachedConversion:
    """A `ModelSource` that converts each matrix of another one at most once, and takes it from the disk later.

    What cannot be written, because the disk has less than 5 GiB to spare or refuses, is converted at each `read`.
    Models that were used longest ago make room where all together exceed `limit` bytes. May be used by several threads.
    """

    def __init__(self, source: ConvertingSource, folder: Path, limit: int = DEFAULT_LIMIT) -> None:
        self.original = source
        self._converted = {name: info for name, info in source.tensors.items() if source.is_converted(name)}
        self._folder = folder / _model_key(source)
        self._verified: set[str] = set()
        needed = sum(info.n_bytes + _DIGEST_BYTES for info in self._converted.values())
        self._writes = _WORTH_BYTES <= needed <= limit and _made_room(self._folder, needed, limit)

    @property
    def path(self) -> Path:
        """The model's file or folder, for messages."""
        return self.original.path

    @property
    def spec(self) -> ModelSpec:
        """Shape of the model."""
        return self.original.spec

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by canonical name, in the original's order."""
        return self.original.tensors

    @property
    def location(self) -> Path | None:
        """The folder of this model's matrices; None where they are not kept."""
        return self._folder if self._writes else None

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to convert."""
        return all((self._folder / name).is_file() for name in self._converted)

    def read(self, name: str) -> Bytes:
        """One tensor's blocks as uint8 [n_rows, row_bytes]: a view of a file where it can be. KeyError if unknown."""
        info = self._converted.get(name)
        if info is None:
            return self.original.read(name)
        found = self._load(name, info)
        if found is None:
            found = self.original.read(name)
            if self._writes:
                self._store(name, found)
        return found

    def release(self, name: str) -> None:
        """Tells the operating system that this tensor's mapped pages are not needed for now."""
        self.original.release(name)

    def close(self) -> None:
        """Unmaps the original's files; arrays of it must not be used afterwards."""
        self.original.close()

    def _load(self, name: str, info: TensorInfo) -> Bytes | None:
        """A matrix that is kept, if it is there and undamaged."""
        path = self._folder / name
        try:
            with path.open("rb") as file:
                data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        except (OSError, ValueError):
            return None
        if len(data) != info.n_bytes + _DIGEST_BYTES:
            return None
        blocks = data[: info.n_bytes]
        if name not in self._verified:
            if _digest(blocks) != data[info.n_bytes :].tobytes():
                with contextlib.suppress(OSError):
                    path.unlink()
                return None
            self._verified.add(name)
        return blocks.reshape(info.n_rows, info.row_bytes)

    def _store(self, name: str, blocks: Bytes) -> None:
        """Keeps a matrix; a cache that cannot be written costs time and nothing else."""
        blocks = np.ascontiguousarray(blocks)
        passing = self._folder / f".{name}.{os.getpid()}.{threading.get_ident()}"
        try:
            if shutil.disk_usage(self._folder).free < blocks.nbytes + _SPARE_BYTES:
                self._writes = False
                return
            with passing.open("wb") as file:
                file.write(blocks.data)
                file.write(_digest(blocks))
            passing.replace(self._folder / name)
        except OSError:
            self._writes = False
            with contextlib.suppress(OSError):
                passing.unlink()


def _digest(blocks: Bytes) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(blocks).data, digest_size=_DIGEST_BYTES).digest()


def _model_key(source: ModelSource) -> str:
    types = sorted({(name, info.float_type.value) for name, info in source.tensors.items()})
    text = repr((dllama_gpu.__version__, str(source.path.absolute()), file_states(source.path), types))
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _made_room(folder: Path, needed: int, limit: int) -> bool:
    """Makes the model's folder, and room for it by deleting those that were used longest ago; False if it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        others = [other for other in folder.parent.iterdir() if other.is_dir() and other != folder]
        sizes = {other: sum(file.stat().st_size for file in other.iterdir()) for other in others}
        total = needed + sum(sizes.values())
        for other in sorted(others, key=lambda other: other.stat().st_mtime):
            if total <= limit:
                break
            shutil.rmtree(other, ignore_errors=True)
            total -= sizes[other]
    except OSError:
        return False
    return True
