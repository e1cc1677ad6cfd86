"""The digests of a model's slices, computed by the root once and remembered until the model file changes."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

import dllama_gpu
from dllama_gpu.model.files import file_states
from dllama_gpu.model.source import ModelSource
from dllama_gpu.net.slices import WeightSlice, read_slice
from dllama_gpu.net.store import new_digest

Progress = Callable[[int, int], None]
_CHUNK_BYTES = 4 << 20


class _Remembered(msgspec.Struct):
    """Digests of one model, valid as long as its files and the release that converts them stay."""

    release: str
    files: list[tuple[str, int, int]]
    """Name, bytes and time of change of each."""
    digests: dict[str, bytes]


def slice_digests(
    source: ModelSource, pieces: Sequence[WeightSlice], folder: Path | None, progress: Progress | None = None
) -> dict[WeightSlice, bytes]:
    """BLAKE2b-256 of every slice; those of an earlier start are remembered in `folder`, the cache's, if there is one.

    `progress` is told (bytes done, bytes in all) of those that have to be computed. Raises DllamaError when a tensor is
    missing.
    """
    file = None if folder is None else _file_of(folder, source.path)
    remembered = _load(file, source.path)
    known = remembered.digests
    unknown = [piece for piece in dict.fromkeys(pieces) if _key(piece) not in known]
    total, done = sum(piece.n_bytes for piece in unknown), 0
    # Hashing lets other threads run; more than a few only fight for the disk.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for piece, digest in zip(unknown, pool.map(lambda piece: _digest(source, piece), unknown), strict=True):
            known[_key(piece)] = digest
            done += piece.n_bytes
            if progress is not None:
                progress(done, total)
    if unknown and file is not None:
        _save(file, remembered)
    return {piece: known[_key(piece)] for piece in pieces}


def unknown_bytes(source: ModelSource, pieces: Sequence[WeightSlice], folder: Path | None) -> int:
    """Bytes that `slice_digests` would have to read."""
    known = _load(None if folder is None else _file_of(folder, source.path), source.path).digests
    return sum(piece.n_bytes for piece in dict.fromkeys(pieces) if _key(piece) not in known)


def _digest(source: ModelSource, piece: WeightSlice) -> bytes:
    code = new_digest()
    for chunk in read_slice(source, piece, 0, _CHUNK_BYTES):
        code.update(chunk.data)
    return code.digest()


def _key(piece: WeightSlice) -> str:
    return f"{piece.float_type.value} {piece.name}"


def _file_of(folder: Path, model: Path) -> Path:
    name = hashlib.blake2b(str(model.absolute()).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return folder / "hashes" / name


def _load(file: Path | None, model: Path) -> _Remembered:
    fresh = _Remembered(dllama_gpu.__version__, file_states(model), {})
    if file is None:
        return fresh
    try:
        found = msgspec.msgpack.decode(file.read_bytes(), type=_Remembered)
    except (OSError, msgspec.MsgspecError):
        return fresh
    return found if (found.release, found.files) == (fresh.release, fresh.files) else fresh


def _save(file: Path, remembered: _Remembered) -> None:
    """A cache that cannot be written costs time and nothing else."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f"{file.name}.{os.getpid()}")
        unfinished.write_bytes(msgspec.msgpack.encode(remembered))
        unfinished.replace(file)
