"""PyTorch checkpoints (`.pth`) without PyTorch, and without running what is in them.

A checkpoint is an uncompressed zip archive: `NAME/data.pkl`, a pickle that describes the tensors, and `NAME/data/KEY`,
the bytes of one storage each. Pickles may call any function; the unpickler here knows only the handful of names of
which a dictionary of tensors is made, and those do nothing but note what they are given.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import struct
import zipfile
from dataclasses import dataclass
from typing import Any, NoReturn

from dllama_gpu.errors import DllamaError
from dllama_gpu.formats.mapped_file import MappedFile
from dllama_gpu.formats.shown import shown_text, shown_value

_LARGEST_PICKLE = 64 << 20
_MOST_TENSORS = 1 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_STORAGES = {"FloatStorage": ("F32", 4), "HalfStorage": ("F16", 2), "BFloat16Storage": ("BF16", 2)}


@dataclass(frozen=True)
class PthTensor:
    """One tensor: `offset` counts from the file's start, elements lie row by row."""

    name: str
    dtype: str
    """F32, F16 or BF16."""
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class _StorageType:
    dtype: str
    element_bytes: int


@dataclass(frozen=True)
class _Storage:
    type: _StorageType
    key: str


@dataclass(frozen=True)
class _Rebuilt:
    storage: _Storage
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_pth(file: MappedFile) -> dict[str, PthTensor]:
    """The tensors of a checkpoint by name. Raises DllamaError when it is damaged or holds anything but tensors."""
    try:
        with zipfile.ZipFile(file.path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            names = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
            if len(names) != 1:
                raise DllamaError(f"{file.path} is no PyTorch checkpoint: it holds no data.pkl")
            if entries[names[0]].file_size > _LARGEST_PICKLE:
                raise DllamaError(f"{file.path}: its data.pkl is larger than any description of tensors")
            data = archive.read(names[0])
    except DllamaError:
        raise
    except Exception as error:  # damaged archives fail in many ways, none of them ours
        raise DllamaError(
            f"{file.path} is no PyTorch checkpoint that can be read ({shown_text(str(error))}); repeat the download"
        ) from error
    found = _unpickle(file, data)
    prefix = names[0].removesuffix("data.pkl")
    places = {}
    for name, entry in entries.items():
        if name.startswith(f"{prefix}data/"):
            places[name.removeprefix(f"{prefix}data/")] = (_data_offset(file, entry), entry.file_size)
    return {name: _placed(file, name, tensor, places) for name, tensor in found.items()}


def _data_offset(file: MappedFile, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of an archive's entry start. Raises DllamaError when they are compressed or not all there."""
    start = entry.header_offset
    if entry.compress_type != zipfile.ZIP_STORED or not 0 <= start <= file.size - _LOCAL_HEADER.size - 4:
        raise DllamaError(
            f"{file.path}: {shown_text(entry.filename)} is compressed or out of place, not as PyTorch writes"
        )
    magic, name_length, extra_length = _LOCAL_HEADER.unpack_from(file.buffer, start)
    offset: int = start + _LOCAL_HEADER.size + name_length + extra_length
    if magic != b"PK\x03\x04" or offset + entry.file_size > file.size:
        raise DllamaError(f"{file.path}: {shown_text(entry.filename)} is not where the archive says; it is damaged")
    return offset


def _placed(file: MappedFile, name: str, tensor: _Rebuilt, places: dict[str, tuple[int, int]]) -> PthTensor:
    if tensor.storage.key not in places:
        raise DllamaError(f"{file.path}: the bytes of the tensor {name} are missing; the file is damaged")
    row_by_row = tuple(math.prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape)))
    if tensor.strides != row_by_row and math.prod(tensor.shape) > 1:
        raise DllamaError(f"{file.path}: the tensor {name} does not lie row by row; save it as contiguous first")
    start, available = places[tensor.storage.key]
    element = tensor.storage.type.element_bytes
    begin, n_bytes = tensor.first * element, math.prod(tensor.shape) * element
    if begin + n_bytes > available:
        raise DllamaError(f"{file.path}: the tensor {name} goes beyond its {available} bytes; the file is damaged")
    return PthTensor(name, tensor.storage.type.dtype, tensor.shape, start + begin, n_bytes)


def _unpickle(file: MappedFile, data: bytes) -> dict[str, _Rebuilt]:
    try:
        value = _TensorUnpickler(io.BytesIO(data), encoding="utf-8").load()
    except DllamaError as error:
        raise DllamaError(f"{file.path} {error}") from error
    except Exception as error:  # damaged pickles fail in many ways, none of them ours
        raise DllamaError(
            f"{file.path}: its data.pkl is damaged ({type(error).__name__}); repeat the download"
        ) from error
    if isinstance(value, dict) and isinstance(value.get("model"), dict):
        value = value["model"]
    if not isinstance(value, dict) or len(value) > _MOST_TENSORS:
        raise DllamaError(f"{file.path} holds {type(value).__name__} instead of tensors by name")
    tensors = {}
    for name, tensor in value.items():
        if not isinstance(name, str) or not name.isprintable() or len(name) > 256:
            raise DllamaError(f"{file.path}: a tensor is called {shown_value(name)}, which is no name")
        if isinstance(tensor, _Rebuilt):
            tensors[name] = tensor
    return tensors


class _TensorUnpickler(pickle.Unpickler):
    """Builds dictionaries, lists, numbers and texts, and notes of tensors; refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return _rebuild
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _rebuild_parameter
        if module != "torch" or name not in _STORAGES:
            _refuse(f"holds {shown_text(module)}.{shown_text(name)}, which is no part of a dictionary of tensors")
        return _StorageType(*_STORAGES[name])

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage" or not isinstance(pid[1], _StorageType):
            _refuse("refers to something that is no storage of numbers (F32, F16 and BF16 are read)")
        if not isinstance(pid[2], str):
            _refuse("refers to a storage without a name")
        return _Storage(pid[1], pid[2])


def _rebuild(storage: Any, first: Any, shape: Any, strides: Any, *_rest: Any) -> _Rebuilt:
    def sizes(value: Any) -> bool:
        return isinstance(value, tuple) and len(value) <= 8 and all(type(n) is int and 0 <= n < 1 << 40 for n in value)

    if not isinstance(storage, _Storage) or not sizes((first,)) or not sizes(shape) or not sizes(strides):
        _refuse("describes a tensor as PyTorch does not")
    if len(shape) != len(strides):
        _refuse("describes a tensor as PyTorch does not")
    return _Rebuilt(storage, first, shape, strides)


def _rebuild_parameter(tensor: Any, *_rest: Any) -> Any:
    return tensor


def _refuse(what: str) -> NoReturn:
    raise DllamaError(f"{what}; it was not read")
