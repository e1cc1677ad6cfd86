"""A read-only file mapped into memory, with user mistakes explained."""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dllama_gpu.errors import DllamaError


class MappedFile:
    """Bytes of a file that are read from the disk when touched.

    Raises DllamaError from the constructor when there is no such file, or it is a folder, empty or unreadable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_dir():
            raise DllamaError(f"{path} is a folder; give the path of a file in it")
        try:
            if path.exists() and not path.is_file():
                raise DllamaError(f"{path} is a device or pipe; give the path of an ordinary file")
            with path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                if self.size == 0:
                    raise DllamaError(f"{path} is empty (0 bytes); the download or copy that made it failed, repeat it")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise DllamaError(f"{path} does not exist; check the path") from None
        except OSError as error:
            raise DllamaError(f"{path} cannot be read ({error.strerror or error})") from error
        self._bytes: npt.NDArray[np.uint8] | None = np.frombuffer(self._map, dtype=np.uint8)

    @property
    def buffer(self) -> mmap.mmap:
        """The mapping, for `struct.unpack_from` and for slices that are copied."""
        return self._map

    def view(self, offset: int, n_bytes: int) -> npt.NDArray[np.uint8]:
        """uint8 [n_bytes] from `offset` on, without a copy. Raises ValueError after `close` or outside the file."""
        if self._bytes is None:
            raise ValueError(f"{self.path} is closed")
        if not 0 <= offset <= offset + n_bytes <= self.size:
            raise ValueError(f"bytes {offset} to {offset + n_bytes} are not inside {self.path} ({self.size} bytes)")
        return self._bytes[offset : offset + n_bytes]

    def release(self, offset: int, n_bytes: int) -> None:
        """Lets the operating system drop these pages from memory; they are read again when touched again.

        Does nothing where the system offers no such advice (Windows).
        """
        if self._bytes is None or n_bytes == 0 or not hasattr(mmap, "MADV_DONTNEED"):
            return
        start = offset - offset % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_DONTNEED, start, offset + n_bytes - start)

    def close(self) -> None:
        """Unmaps the file. While arrays of it are still alive, the mapping stays until the last of them is gone."""
        self._bytes = None
        with contextlib.suppress(BufferError):  # a view is alive: unmapping under it would crash the process
            self._map.close()
