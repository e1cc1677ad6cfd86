"""The header of a safetensors file, with every length checked before it is believed.

Layout: u64 length N (little-endian), N bytes of JSON that map a tensor's name to its number format, shape and place
behind the header, then the tensors, which tile the rest of the file. The `safetensors` library offers no view of the
file's own bytes whose pages could be given back after use, which loading layer by layer needs.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import msgspec

from dllama_gpu.errors import DllamaError
from dllama_gpu.formats.mapped_file import MappedFile
from dllama_gpu.formats.shown import shown_value

_LARGEST_HEADER = 100_000_000  # bytes, the library's own limit
_MAX_DIMS = 8
_LONGEST_NAME = 256
_METADATA = "__metadata__"

ELEMENT_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
"""Bytes of an element, by the number format's name."""


@dataclass(frozen=True)
class SafetensorsTensor:
    """One entry of the header: `offset` counts from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


class _Entry(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def read_safetensors_header(file: MappedFile) -> dict[str, SafetensorsTensor]:
    """All tensors of a safetensors file by name, in the order of their places.

    Raises DllamaError, naming the file and what is wrong, when it is no safetensors file, or is damaged or truncated.
    """
    if file.size < 8:
        raise DllamaError(f"{file.path} has {file.size} bytes, too few for a safetensors file; repeat the download")
    n_bytes = struct.unpack_from("<Q", file.buffer, 0)[0]
    if n_bytes > _LARGEST_HEADER or file.buffer[8:9] != b"{":
        raise DllamaError(
            f"{file.path} is no safetensors file: it does not start with the length of a JSON header and the header"
        )
    start = 8 + n_bytes
    if start > file.size:
        raise DllamaError(
            f"{file.path} has {file.size} bytes, but its header alone ends at byte {start}; the file is truncated, "
            "repeat the download"
        )
    try:
        raw = msgspec.json.decode(file.buffer[8:start], type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DllamaError(f"{file.path}: the header is not the JSON that is wanted ({error})") from error
    raw.pop(_METADATA, None)
    return _placed(file, [_tensor(file, name, entry, start) for name, entry in raw.items()], start)


def _tensor(file: MappedFile, name: str, raw: msgspec.Raw, start: int) -> SafetensorsTensor:
    if len(name) > _LONGEST_NAME or not name.isprintable():
        raise DllamaError(f"{file.path}: a tensor is called {name[:40]!r}, which is too long or not printable")
    try:
        entry = msgspec.json.decode(raw, type=_Entry)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DllamaError(f"{file.path}: the tensor {name} is not described as it must be ({error})") from error
    if entry.dtype not in ELEMENT_BYTES:
        raise DllamaError(f"{file.path}: the tensor {name} has the unknown number format {shown_value(entry.dtype)}")
    if len(entry.shape) > _MAX_DIMS or any(not 0 <= size < 1 << 40 for size in entry.shape):
        raise DllamaError(f"{file.path}: the tensor {name} has the impossible shape {entry.shape[:_MAX_DIMS]}")
    begin, end = entry.data_offsets
    n_bytes = math.prod(entry.shape) * ELEMENT_BYTES[entry.dtype]
    if not 0 <= begin <= end or end - begin != n_bytes:
        raise DllamaError(
            f"{file.path}: the tensor {name} lies at bytes {begin} to {end}, but {entry.dtype} {entry.shape} takes "
            f"{n_bytes}; the file is damaged"
        )
    return SafetensorsTensor(name, entry.dtype, tuple(entry.shape), start + begin, n_bytes)


def _placed(file: MappedFile, tensors: list[SafetensorsTensor], start: int) -> dict[str, SafetensorsTensor]:
    """The tensors in the order of their places. Raises DllamaError when they do not tile the file behind `start`."""
    placed = {tensor.name: tensor for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.n_bytes))}
    end = start
    for tensor in placed.values():
        if tensor.offset != end:
            raise DllamaError(
                f"{file.path}: the tensor {tensor.name} starts at byte {tensor.offset}, but the one before it ends at "
                f"byte {end}; the file is damaged"
            )
        end += tensor.n_bytes
    if end > file.size:
        raise DllamaError(
            f"{file.path} has {file.size} bytes, but its tensors end at byte {end}; the file is truncated, repeat the "
            "download"
        )
    if end < file.size:
        raise DllamaError(
            f"{file.path} has {file.size - end} bytes behind its last tensor; the file is damaged, repeat the download"
        )
    return placed
