"""A content-addressed cache of weight slices on disk.

    FOLDER/slices/ab/abcd…      a slice, named by its BLAKE2b-256; its time of change is that of its last use
    FOLDER/partial-N/abcd…      what has arrived of a slice; N belongs to the one process that holds partial-N.lock

Every slice is hashed when it arrives and again whenever it is taken from the disk. What cannot be written to the disk
is kept in memory.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import filelock
import numpy as np
import numpy.typing as npt
import platformdirs

from dllama_gpu.errors import DllamaError
from dllama_gpu.net.messages import DIGEST_BYTES

Bytes = npt.NDArray[np.uint8]
Progress = Callable[[int], None]
"""Told how many bytes more are done."""

DEFAULT_LIMIT = 50 << 30
_CHUNK_BYTES = 4 << 20
_SMALL_BYTES = 64 << 10
_MOST_PROCESSES = 64


class DamagedSliceError(DllamaError):
    """The bytes that arrived are not those that the digest stands for."""


def default_folder() -> Path:
    """Where this system keeps caches: `~/.cache/dllama-gpu` on Linux."""
    return Path(platformdirs.user_cache_dir("dllama-gpu", appauthor=False))


def new_digest() -> hashlib.blake2b:
    """The hash that slices are named by."""
    return hashlib.blake2b(digest_size=DIGEST_BYTES)


@dataclass(frozen=True)
class HeldSlice:
    """A whole, verified slice: in a file or in memory."""

    n_bytes: int
    path: Path | None
    memory: Bytes | None = None

    def open(self) -> Bytes:
        """uint8 (n_bytes,): the memory, or the mapped file. Raises DllamaError when the file has gone."""
        if self.memory is not None:
            return self.memory
        assert self.path is not None
        try:
            with self.path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise DllamaError(f"a cached slice of the model, {self.path}, cannot be read ({error})") from error
        return np.frombuffer(mapped, np.uint8, self.n_bytes)


class SliceStore:
    """Slices in `folder`, at most `limit` bytes of them; with no folder everything stays in memory.

    `warn` is told, once, when the disk cannot be used. One store serves one process at a time; several processes may
    share a folder.
    """

    def __init__(self, folder: Path | None, limit: int = DEFAULT_LIMIT, warn: Callable[[str], None] = print) -> None:
        self._folder = folder
        self._limit = limit
        self._warn = warn
        self._partial: Path | None = None
        self._lock: filelock.BaseFileLock | None = None
        self._warned = False
        if folder is not None:
            try:
                (folder / "slices").mkdir(parents=True, exist_ok=True)
                self._partial = self._take_partial_folder(folder)
            except OSError as error:
                self.disk_failed(error)

    @property
    def on_disk(self) -> bool:
        """Whether slices are kept in files."""
        return self._partial is not None

    def find(self, digest: bytes, n_bytes: int, progress: Progress | None = None) -> HeldSlice | None:
        """The slice if it is there, hashed anew; a damaged one is thrown away."""
        path = self._path(digest)
        if path is None:
            return None
        try:
            if path.stat().st_size != n_bytes:
                raise DamagedSliceError(f"{path} has another size")
            if _hash_file(path, progress) != digest:
                raise DamagedSliceError(f"{path} has other content")
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, DamagedSliceError):
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        return HeldSlice(n_bytes, path)

    def arrived(self, digest: bytes, n_bytes: int) -> int:
        """Bytes of an unfinished slice that an earlier transfer left."""
        if self._partial is None:
            return 0
        try:
            size = (self._partial / digest.hex()).stat().st_size
        except OSError:
            return 0
        return size if size < n_bytes else 0

    def receive(self, digest: bytes, n_bytes: int, begin: int) -> SliceWriter:
        """A place for the bytes of a slice from `begin` on, which is 0 or what `arrived` said."""
        return SliceWriter(self, digest, n_bytes, begin, self._partial)

    def make_room(self, n_bytes: int, keep: Collection[bytes]) -> None:
        """Removes the slices used longest ago, except `keep`, until `n_bytes` more stay within the limit.

        What an interrupted transfer left counts like a slice, unless it is of `keep` and so among the `n_bytes`. Where
        room cannot be made, what comes is kept in memory.
        """
        if self._folder is None or self._partial is None:
            return
        kept = {digest.hex() for digest in keep}
        left_over = [path for path in self._partial.glob("*") if path.name not in kept]
        entries = []
        for path in (*(self._folder / "slices").glob("*/*"), *left_over):
            with contextlib.suppress(OSError):
                status = path.stat()
                entries.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in entries) + n_bytes
        for _, size, path in sorted(entries):
            if total <= self._limit:
                return
            if path.name not in kept:
                with contextlib.suppress(OSError):  # on Windows a file in use stays
                    path.unlink()
                    total -= size
        if total > self._limit:
            self._give_up_disk(f"this share of the model needs {total} bytes, --cache-size allows {self._limit}")

    def adopt(self, partial: Path, digest: bytes) -> Path:
        """Moves a finished file to its place. Raises OSError."""
        path = self._path(digest)
        assert path is not None
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(path)
        return path

    def disk_failed(self, error: OSError) -> None:
        """From now on what comes is kept in memory; what is on the disk can still be read."""
        self._give_up_disk("the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error))

    def _give_up_disk(self, reason: str) -> None:
        if not self._warned:
            self._warn(
                f"the cache {self._folder} cannot be used ({reason}); this run keeps its weights in memory, and the "
                "next one receives them again. Free some space, or change --cache-dir or --cache-size"
            )
        self._warned = True
        self.close()

    def close(self) -> None:
        """Lets another process have the partial files."""
        self._partial = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _path(self, digest: bytes) -> Path | None:
        if self._folder is None:
            return None
        name = digest.hex()
        return self._folder / "slices" / name[:2] / name

    def _take_partial_folder(self, folder: Path) -> Path:
        for number in range(_MOST_PROCESSES):
            lock = filelock.FileLock(folder / f"partial-{number}.lock")
            with contextlib.suppress(filelock.Timeout):
                lock.acquire(timeout=0)
                self._lock = lock
                partial = folder / f"partial-{number}"
                partial.mkdir(exist_ok=True)
                return partial
        raise OSError(errno.EBUSY, f"{_MOST_PROCESSES} processes use it")


class SliceWriter:
    """Takes the bytes of one slice as they arrive; a full disk moves them to memory."""

    def __init__(self, store: SliceStore, digest: bytes, n_bytes: int, begin: int, folder: Path | None) -> None:
        self._store = store
        self._digest = digest
        self._n_bytes = n_bytes
        self._done = begin
        self._hash = new_digest()
        self._path = None if folder is None else folder / digest.hex()
        self._file: BinaryIO | None = None
        self._memory: bytearray | mmap.mmap | None = None
        if self._path is None:
            self._memory = _allocate(n_bytes)
            return
        try:
            if begin:
                _hash_file(self._path, None, self._hash, begin)
            file = self._path.open("r+b" if begin else "wb")
            self._file = file
            file.seek(begin)
            file.truncate()
        except OSError as error:
            self._to_memory(error)

    def write(self, data: bytes | bytearray) -> None:
        """Takes the next bytes. Raises DllamaError when they are more than the slice has, or memory is out."""
        if self._done + len(data) > self._n_bytes:
            raise DllamaError(f"a slice of {self._n_bytes} bytes was sent with more")
        self._hash.update(data)
        if self._file is not None:
            try:
                self._file.write(data)
                self._file.flush()
            except OSError as error:
                self._to_memory(error)
        if self._memory is not None:
            self._memory[self._done : self._done + len(data)] = data
        self._done += len(data)

    @property
    def missing(self) -> int:
        """Bytes still to come."""
        return self._n_bytes - self._done

    def finish(self) -> HeldSlice:
        """The slice, when all its bytes are there. Raises DamagedSliceError, and forgets it, when they are wrong."""
        if self._hash.digest() != self._digest:
            self._discard()
            raise DamagedSliceError(f"a slice of {self._n_bytes} bytes arrived damaged")
        if self._file is not None and self._path is not None:
            try:
                self._file.close()
                return HeldSlice(self._n_bytes, self._store.adopt(self._path, self._digest))
            except OSError as error:
                self._to_memory(error)
        return HeldSlice(self._n_bytes, None, np.frombuffer(self._memory or b"", np.uint8))

    def abandon(self) -> None:
        """Leaves what arrived for the next time."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def _discard(self) -> None:
        self.abandon()
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _to_memory(self, error: OSError) -> None:
        """Reads back what was written and goes on without the file."""
        try:
            memory = _allocate(self._n_bytes)
            if self._done and self._path is not None:
                with self._path.open("rb") as file:
                    if file.readinto(memoryview(memory)[: self._done]) != self._done:
                        raise OSError(errno.EIO, "what was written cannot be read back")
        except OSError as second:
            raise DllamaError(f"the cache file {self._path} cannot be used ({second.strerror or second})") from None
        self._memory = memory
        self._discard()
        self._file = None
        self._store.disk_failed(error)


def _allocate(n_bytes: int) -> bytearray | mmap.mmap:
    """Memory that goes back to the system as soon as it is dropped, where there is enough of it to matter."""
    return bytearray(n_bytes) if n_bytes < _SMALL_BYTES else mmap.mmap(-1, n_bytes)


def _hash_file(path: Path, progress: Progress | None, into: hashlib.blake2b | None = None, n_bytes: int = -1) -> bytes:
    code = into or new_digest()
    with path.open("rb") as file:
        left = n_bytes
        while chunk := file.read(_CHUNK_BYTES if left < 0 else min(left, _CHUNK_BYTES)):
            code.update(chunk)
            left -= len(chunk) if left >= 0 else 0
            if progress is not None:
                progress(len(chunk))
    return code.digest()
