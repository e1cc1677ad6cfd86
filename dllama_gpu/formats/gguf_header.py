"""The header of a GGUF file: metadata and tensor table, with every length checked before it is believed.

The `gguf` package has a reader, but it makes several array objects of every string and number, which takes seconds
where this takes 50 ms (a vocabulary of 49 thousand tokens), and it follows a damaged length without end. Its tables of
types and block sizes are used.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeAlias

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from dllama_gpu.errors import DllamaError
from dllama_gpu.formats.mapped_file import MappedFile
from dllama_gpu.formats.shown import shown_value

MetadataValue: TypeAlias = int | float | bool | str | list[int] | list[float] | list[bool] | list[str]

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_LARGEST_ALIGNMENT = 1 << 20
_MAX_DIMS = 4
_LONGEST_NAME = 256
_SMALLEST_FIELD = 13  # bytes: key length, type and a one-byte value
_SMALLEST_TENSOR = 24  # bytes: name length, number of dimensions, type and offset

_SCALARS = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
    GGUFValueType.BOOL: "?",
}


@dataclass(frozen=True)
class GgufTensor:
    """One entry of the tensor table: `shape` is (out, in) for a matrix, `offset` counts from the file's start."""

    name: str
    shape: tuple[int, ...]
    ggml_type: GGMLQuantizationType
    offset: int
    n_bytes: int
    part: int = 0
    """Which file of a split model it is in, from 0."""

    @property
    def n_elements(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """What stands before the weights."""

    metadata: dict[str, MetadataValue]
    tensors: dict[str, GgufTensor]


def read_gguf_header(file: MappedFile) -> GgufHeader:
    """Reads metadata and tensor table, and checks that every tensor lies inside the file.

    Raises DllamaError, saying where, when the file is no GGUF file, or is damaged or truncated.
    """
    reader = _Reader(file)
    if file.buffer[:4] != MAGIC:
        raise DllamaError(f"{file.path} is no GGUF file: it starts with {file.buffer[:4]!r} instead of {MAGIC!r}")
    reader.position = 4
    version = reader.integer("<I", "the version")
    if version & 0xFFFF == 0 and version:
        raise DllamaError(f"{file.path} is a big-endian GGUF file; only little-endian files can be read")
    if version not in _VERSIONS:
        raise DllamaError(f"{file.path} has GGUF version {version}, but only versions 2 and 3 can be read")
    n_tensors = reader.count("the number of tensors", _SMALLEST_TENSOR)
    n_fields = reader.count("the number of metadata fields", _SMALLEST_FIELD)
    metadata: dict[str, MetadataValue] = {}
    for _ in range(n_fields):
        key = reader.name("a metadata key")
        if key in metadata:
            reader.fail(f"the metadata field {key} comes twice")
        metadata[key] = reader.value(f"the metadata field {key}")
    entries = [reader.tensor_entry() for _ in range(n_tensors)]
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 1 <= alignment <= _LARGEST_ALIGNMENT or alignment & (alignment - 1):
        raise DllamaError(f"{file.path}: general.alignment is {shown_value(alignment)}, but a power of two is wanted")
    data_start = -(-reader.position // alignment) * alignment
    return GgufHeader(metadata, _place_tensors(file, entries, data_start, alignment))


def read_gguf_metadata(path: Path) -> dict[str, MetadataValue]:
    """The metadata of a GGUF file by key. Raises DllamaError as `read_gguf_header` and `MappedFile` do."""
    file = MappedFile(path)
    try:
        return read_gguf_header(file).metadata
    finally:
        file.close()


def _place_tensors(
    file: MappedFile, entries: list[GgufTensor], data_start: int, alignment: int
) -> dict[str, GgufTensor]:
    """Tensors by name in file order, with offsets from the file's start. Raises DllamaError where they cannot be so."""
    tensors: dict[str, GgufTensor] = {}
    end_of_previous = data_start
    for entry in sorted(entries, key=lambda entry: entry.offset):
        if entry.name in tensors:
            raise DllamaError(f"{file.path}: the tensor {entry.name} comes twice; the file is damaged")
        offset = data_start + entry.offset
        if entry.offset % alignment or offset < end_of_previous:
            raise DllamaError(
                f"{file.path}: the tensor {entry.name} at byte {offset} is not aligned to {alignment} bytes or "
                "overlaps the one before it; the file is damaged"
            )
        end_of_previous = offset + entry.n_bytes
        if end_of_previous > file.size:
            raise DllamaError(
                f"{file.path} has {file.size} bytes, but the tensor {entry.name} ends at byte {end_of_previous}; "
                "the file is truncated, repeat the download"
            )
        tensors[entry.name] = GgufTensor(entry.name, entry.shape, entry.ggml_type, offset, entry.n_bytes)
    return tensors


class _Reader:
    """Reads little-endian values one after another and never past the end of the file."""

    def __init__(self, file: MappedFile) -> None:
        self._file = file
        self._buffer = file.buffer
        self.position = 0

    def fail(self, problem: str) -> NoReturn:
        """Raises DllamaError with the place reached."""
        raise DllamaError(f"{self._file.path}: {problem} (near byte {self.position}); the file is damaged or truncated")

    def _advance(self, n_bytes: int, what: str) -> int:
        """Moves past `n_bytes` and returns where they start."""
        start = self.position
        if n_bytes > self._file.size - start:
            self.fail(f"{what} needs {n_bytes} bytes, but the file ends at byte {self._file.size}")
        self.position = start + n_bytes
        return start

    def integer(self, layout: str, what: str) -> int:
        """One integer of a `struct` layout."""
        start = self._advance(struct.calcsize(layout), what)
        value: int = struct.unpack_from(layout, self._buffer, start)[0]
        return value

    def count(self, what: str, smallest_item: int) -> int:
        """A number of items, each of at least `smallest_item` bytes, that fit into the rest of the file."""
        value = self.integer("<Q", what)
        if value > (self._file.size - self.position) // smallest_item:
            self.fail(f"{what} is {value}, more than the file has room for")
        return value

    def string(self, what: str) -> str:
        """A UTF-8 string with its length before it."""
        length = self.count(f"the length of {what}", 1)
        start = self._advance(length, what)
        return self._decode(self._buffer[start : start + length], what)

    def name(self, what: str) -> str:
        """A string that will stand in messages: of one printable line."""
        name = self.string(what)
        if len(name) > _LONGEST_NAME or not name.isprintable():
            self.fail(f"{what} is {name[:40]!r}, which is too long or not printable")
        return name

    def value(self, what: str) -> MetadataValue:
        """A metadata value with its type before it."""
        value_type = self._value_type(what)
        if value_type is GGUFValueType.STRING:
            return self.string(what)
        if value_type is not GGUFValueType.ARRAY:
            value: MetadataValue = self._scalars(value_type, 1, what)[0]
            return value
        item_type = self._value_type(what)
        if item_type is GGUFValueType.STRING:
            return self._strings(self.count(f"the length of {what}", 8), what)
        if item_type is GGUFValueType.ARRAY:
            self.fail(f"{what} is an array of arrays, which no model uses")
        length = self.count(f"the length of {what}", np.dtype(_SCALARS[item_type]).itemsize)
        return self._scalars(item_type, length, what)

    def tensor_entry(self) -> GgufTensor:
        """One entry of the tensor table; its offset still counts from the start of the weights."""
        name = self.name("a tensor's name")
        what = f"the tensor {name}"
        n_dims = self.integer("<I", what)
        if not 1 <= n_dims <= _MAX_DIMS:
            self.fail(f"{what} has {n_dims} dimensions, but 1 to {_MAX_DIMS} are possible")
        shape = tuple(self.integer("<Q", what) for _ in range(n_dims))[::-1]
        if any(not 1 <= size < 1 << 40 for size in shape):
            self.fail(f"{what} has the impossible shape {list(shape)}")
        code = self.integer("<I", what)
        if code not in _GGML_TYPE_CODES:
            self.fail(f"{what} has the unknown type {code}")
        ggml_type = GGMLQuantizationType(code)
        block_size, block_bytes = GGML_QUANT_SIZES[ggml_type]
        if shape[-1] % block_size:
            self.fail(f"{what} has rows of {shape[-1]}, no multiple of the {block_size} of type {ggml_type.name}")
        n_bytes = math.prod(shape) // block_size * block_bytes
        return GgufTensor(name, shape, ggml_type, self.integer("<Q", what), n_bytes)

    def _value_type(self, what: str) -> GGUFValueType:
        code = self.integer("<I", f"the type of {what}")
        if code not in _VALUE_TYPE_CODES:
            self.fail(f"{what} has the unknown type {code}")
        return GGUFValueType(code)

    def _scalars(self, value_type: GGUFValueType, length: int, what: str) -> list[int] | list[float] | list[bool]:
        dtype = np.dtype(_SCALARS[value_type])
        start = self._advance(length * dtype.itemsize, what)
        values: list[int] = np.frombuffer(self._buffer[start : self.position], dtype=dtype).tolist()
        return values

    def _strings(self, length: int, what: str) -> list[str]:
        """An array of strings: a vocabulary may have hundreds of thousands, so this loop is kept tight."""
        buffer, size = self._buffer, self._file.size
        read_length = struct.Struct("<Q").unpack_from
        position = self.position
        raw: list[bytes] = []
        for _ in range(length):
            if position + 8 > size:
                self.position = position
                self._advance(8, what)
            start = position + 8
            position = start + read_length(buffer, position)[0]
            if position > size:
                self.position = start
                self._advance(position - start, what)
            raw.append(buffer[start:position])
        self.position = position
        return [self._decode(item, what) for item in raw]

    def _decode(self, raw: bytes, what: str) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8: {raw[:40]!r}")


_VALUE_TYPE_CODES = frozenset(value_type.value for value_type in GGUFValueType)
_GGML_TYPE_CODES = frozenset(ggml_type.value for ggml_type in GGMLQuantizationType if ggml_type in GGML_QUANT_SIZES)
