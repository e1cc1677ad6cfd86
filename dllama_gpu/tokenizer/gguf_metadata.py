"""The key/value part of a GGUF file.

`gguf.GGUFReader` makes several NumPy views for every string: 2.4 s for a vocabulary of 49,152 tokens and their merges.
A tokenizer needs only this part, which is read here in one pass. Source: the GGUF specification (ggml, `docs/gguf.md`).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from dllama_gpu.errors import DllamaError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING = 8
_ARRAY = 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_U64 = struct.Struct("<Q")
_SMALLEST_PAIR = 8 + 4 + 1  # empty key, type, one byte


def read_gguf_metadata(path: Path) -> Mapping[str, Any]:
    """All metadata of a GGUF file by key; arrays are lists.

    Raises DllamaError, saying what is wrong where, when the file is missing, damaged or of another format.
    """
    try:
        if path.stat().st_size == 0:  # which cannot be mapped
            raise DllamaError(f"{path} is empty; get the file again")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data, path).metadata()
    except OSError as error:
        raise DllamaError(f"cannot read {path}: {error.strerror}") from error


class _Reader:
    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data = data
        self._path = path
        self._offset = 0

    def metadata(self) -> dict[str, Any]:
        if (magic := self._take(4, "the magic number")) != MAGIC:
            self._fail(f"begins with {magic!r} instead of {MAGIC!r}, so it is not a GGUF file")
        version = self._number("I", "the version")
        if version not in _VERSIONS:
            # A big-endian file shows its version in the upper bytes.
            self._fail(f"has GGUF version {version}; versions 2 and 3 in little-endian order can be read")
        self._number("Q", "the number of tensors")
        n_pairs = self._number("Q", "the number of metadata entries")
        if n_pairs > self._n_left // _SMALLEST_PAIR:
            self._fail(f"states {n_pairs} metadata entries, more than its {len(self._data)} bytes can hold")
        metadata: dict[str, Any] = {}
        for index in range(n_pairs):
            key = self._strings(1, f"the key of metadata entry {index}")[0]
            metadata[key] = self._value(self._number("I", f"the type of `{key}`"), key)
        return metadata

    @property
    def _n_left(self) -> int:
        return len(self._data) - self._offset

    def _value(self, type_id: int, key: str) -> Any:
        if type_id == _STRING:
            return self._strings(1, f"`{key}`")[0]
        if type_id in _SCALARS:
            return self._numbers(_SCALARS[type_id], 1, f"`{key}`")[0]
        if type_id != _ARRAY:
            self._fail(f"gives `{key}` the unknown type {type_id} before byte {self._offset}")
        item_type = self._number("I", f"the item type of `{key}`")
        length = self._number("Q", f"the length of `{key}`")
        if item_type == _STRING:
            return self._strings(length, f"`{key}`")
        if item_type in _SCALARS:
            return self._numbers(_SCALARS[item_type], length, f"`{key}`")
        return self._fail(f"holds items of type {item_type} in `{key}`; numbers and strings can be read")

    def _number(self, code: str, what: str) -> int:
        return int(self._numbers(code, 1, what)[0])

    def _numbers(self, code: str, count: int, what: str) -> list[Any]:
        return list(struct.unpack(f"<{count}{code}", self._take(count * struct.calcsize(f"<{code}"), what)))

    def _strings(self, count: int, what: str) -> list[str]:
        data, offset, end = self._data, self._offset, len(self._data)
        if count > self._n_left // 8:
            self._fail(f"ends too early: {what} holds {count} texts at byte {offset}, {end - offset} bytes are left")
        strings: list[str] = []
        read_length = _U64.unpack_from
        try:
            for _ in range(count):
                (length,) = read_length(data, offset)
                start = offset + 8
                offset = start + length
                if offset > end:
                    self._fail(f"ends too early: {what} holds {length} bytes at byte {start}, {end - start} are left")
                strings.append(data[start:offset].decode("utf-8"))
        except struct.error:
            self._fail(f"ends too early: {what} continues at byte {offset}, the file ends at {end}")
        except UnicodeDecodeError as error:
            self._fail(f"holds a text in {what} that is not UTF-8 ({error.reason} before byte {offset})")
        self._offset = offset
        return strings

    def _take(self, n_bytes: int, what: str) -> bytes:
        if n_bytes > self._n_left:
            self._fail(f"ends too early: {what} takes {n_bytes} bytes at byte {self._offset}, {self._n_left} are left")
        self._offset += n_bytes
        return self._data[self._offset - n_bytes : self._offset]

    def _fail(self, what: str) -> NoReturn:
        raise DllamaError(f"{self._path} {what}; get the file again")
