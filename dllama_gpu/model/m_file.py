"""Reading and writing `.m` files tensor by tensor."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from dllama_gpu.errors import DllamaError
from dllama_gpu.formats.mapped_file import MappedFile
from dllama_gpu.model import m_format
from dllama_gpu.model.m_format import HeaderKey
from dllama_gpu.model.source import TensorInfo
from dllama_gpu.model.spec import ModelSpec

_LARGEST_HEADER = 8 + 8 * 256  # bytes; 22 keys exist


class MFile:
    """A memory-mapped `.m` file; a `ModelSource` whose `read` never copies.

    Raises DllamaError from the constructor when the file is missing, damaged, truncated or of another format.
    """

    def __init__(self, path: Path) -> None:
        self._file = MappedFile(path)
        try:
            header, header_size = _read_header(self._file)
            self._spec = m_format.spec_from_header(header, path)
            _check_size(self._file, header_size + m_format.tensors_size(self._spec))
        except DllamaError:
            self._file.close()
            raise
        self._tensors: dict[str, TensorInfo] = {}
        self._offsets: dict[str, int] = {}
        offset = header_size
        for info in m_format.tensor_layout(self._spec):
            self._tensors[info.name] = info
            self._offsets[info.name] = offset
            offset += info.n_bytes

    @property
    def path(self) -> Path:
        """The file, for messages."""
        return self._file.path

    @property
    def spec(self) -> ModelSpec:
        """Shape of the model."""
        return self._spec

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by canonical name, in file order."""
        return MappingProxyType(self._tensors)

    def read(self, name: str) -> npt.NDArray[np.uint8]:
        """A view of one tensor's blocks as uint8 [n_rows, row_bytes]. Raises KeyError for an unknown name."""
        info = self._tensors[name]
        return self._file.view(self._offsets[name], info.n_bytes).reshape(info.n_rows, info.row_bytes)

    def release(self, name: str) -> None:
        """Tells the operating system that this tensor's mapped pages are not needed for now."""
        self._file.release(self._offsets[name], self._tensors[name].n_bytes)

    def close(self) -> None:
        """Unmaps the file; arrays returned by `read` must not be used afterwards."""
        self._file.close()


def _read_header(file: MappedFile) -> tuple[dict[HeaderKey, int], int]:
    """The header's pairs (the last one wins where a key comes twice) and the offset of the first tensor."""
    path = file.path
    if file.size < 8:
        raise DllamaError(f"{path} has {file.size} bytes, too few for a model file; repeat the download or conversion")
    magic, header_size = struct.unpack_from("<II", file.buffer, 0)
    if magic in m_format.OLD_MAGICS:
        raise DllamaError(f"{path} is a .m file of an old format ({magic:#x}); convert the model again")
    if magic != m_format.MAGIC:
        raise DllamaError(f"{path} is no .m file: it starts with {magic:#010x} instead of {m_format.MAGIC:#010x}")
    if header_size % 8 or not 8 <= header_size <= _LARGEST_HEADER:
        raise DllamaError(
            f"{path}: the header size at byte 4 is {header_size}, but a multiple of 8 up to {_LARGEST_HEADER} is "
            "wanted; the file is damaged"
        )
    if header_size > file.size:
        raise DllamaError(
            f"{path} ends after {file.size} bytes, inside its header of {header_size} bytes; "
            "repeat the download or conversion"
        )
    header: dict[HeaderKey, int] = {}
    for offset in range(8, header_size, 8):
        key, value = struct.unpack_from("<ii", file.buffer, offset)
        if key not in set(HeaderKey):
            raise DllamaError(
                f"{path}: the header key at byte {offset} is {key}, but only 0 to {max(HeaderKey)} are known; "
                "the file is damaged or of a newer format"
            )
        header[HeaderKey(key)] = value
    return header, header_size


def _check_size(file: MappedFile, expected: int) -> None:
    difference = file.size - expected
    if difference == 0:
        return
    what = f"{-difference} bytes are missing" if difference < 0 else f"{difference} bytes are too many"
    raise DllamaError(
        f"{file.path} has {file.size} bytes, but its header describes {expected}: {what}; "
        "repeat the download or conversion"
    )


class MFileWriter:
    """Writes a `.m` file under a temporary name and gives it its own name when it is complete.

    Use as a context manager; leaving it by an exception deletes what was written, so that no half file is ever seen.

    Raises DllamaError when the format cannot express `spec`, when a tensor is missing, out of order or of the wrong
    shape, and when the disk refuses.
    """

    def __init__(self, path: Path, spec: ModelSpec) -> None:
        self.path = path
        self.spec = replace(spec, tied_embeddings=False)
        pairs = m_format.header_from_spec(self.spec, path)
        self._layout = list(m_format.tensor_layout(self.spec))
        self._index = 0
        self._rows_written = 0
        self._partial_path = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            self._file: BinaryIO = self._partial_path.open("xb")
        except OSError as error:
            raise DllamaError(f"{self.path} cannot be created ({error.strerror or error})") from error
        self._put(struct.pack("<II", m_format.MAGIC, 8 + 8 * len(pairs)))
        for key, value in pairs:
            self._put(struct.pack("<ii", key, value))

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The tensors to write, in the order in which they must come."""
        return MappingProxyType({info.name: info for info in self._layout})

    def write(self, name: str, rows: npt.NDArray[np.uint8]) -> None:
        """Appends rows, uint8 [n, row_bytes], of the tensor `name`; a tensor may come in several pieces."""
        if self._index == len(self._layout):
            raise DllamaError(f"{self.path}: tensor {name} was given, but all tensors are already written")
        info = self._layout[self._index]
        if name != info.name:
            raise DllamaError(f"{self.path}: tensor {name} was given, but {info.name} is next")
        rows_left = info.n_rows - self._rows_written
        if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != info.row_bytes or len(rows) > rows_left:
            raise DllamaError(
                f"{self.path}: tensor {name} was given as {rows.dtype} {list(rows.shape)}, but at most {rows_left} "
                f"rows of uint8 [{info.row_bytes}] ({info.float_type.value}) are wanted"
            )
        self._put(np.ascontiguousarray(rows).data)
        self._rows_written += len(rows)
        if self._rows_written == info.n_rows:
            self._index += 1
            self._rows_written = 0

    def __enter__(self) -> MFileWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._discard()

    def _put(self, data: bytes | memoryview) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            self._discard()
            raise self._refused(error) from error

    def _finish(self) -> None:
        if self._index < len(self._layout):
            info = self._layout[self._index]
            raise DllamaError(f"{self.path}: tensor {info.name} is missing, so the file was not made")
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._partial_path.replace(self.path)
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> DllamaError:
        """What is told of a write that failed: the file that was wanted, not the passing one."""
        if error.errno == errno.ENOSPC:
            return DllamaError(
                f"the disk became full while {self.path} was written; free some space, or give a folder on another disk"
            )
        return DllamaError(f"{self.path} cannot be written ({error.strerror or error})")

    def _discard(self) -> None:
        with contextlib.suppress(OSError):  # a buffered rest may not fit on the disk, but it is not wanted any more
            self._file.close()
        self._partial_path.unlink(missing_ok=True)
