"""The tokenizer file `.t` of distributed-llama: reading and writing, byte for byte as the original does.

Layout, little-endian: u32 magic 0x567124, u32 header size counted from offset 0, (i32 key, i32 value) pairs, the chat
template's UTF-8, the EOS ids as i32, then per token f32 score, u32 length and that many bytes. The older magic 0x567123
is followed by five i32 (vocabulary size, longest token, BOS, EOS, padding) and the tokens. Source: `src/tokenizer.cpp`
and `converter/tokenizer-writer.py` of distributed-llama.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from dllama_gpu.errors import DllamaError

MAGIC = 0x567124
OLD_MAGIC = 0x567123
_VERSION = 1
_MAX_FILE_BYTES = 256 << 20  # the largest known vocabularies take 6 MB

_KEY_VERSION = 0
_KEY_VOCAB_SIZE = 1
_KEY_MAX_TOKEN_LENGTH = 2
_KEY_BOS_ID = 3
_KEY_EOS_ID = 4
_KEY_PAD_ID = 5
_KEY_CHAT_EOS_ID = 6
_KEY_CHAT_TEMPLATE = 7
_KEY_CHAT_STOP = 8
_KEY_N_EOS_TOKENS = 9
_KEY_ADD_BOS = 10
_NO_BOS = -1

_TOKEN_HEAD = struct.Struct("<fI")


@dataclass(frozen=True)
class TokenizerFile:
    """What a `.t` file holds; tokens and scores by id. `bos_id` None is a vocabulary without such a token."""

    tokens: tuple[bytes, ...]
    scores: tuple[float, ...]
    bos_id: int | None
    eos_ids: tuple[int, ...]
    add_bos: bool
    chat_template: str | None = None


def read_t_file(path: Path) -> TokenizerFile:
    """Reads a `.t` file. Raises DllamaError, saying what is wrong where, when it is not a sound one."""
    try:
        size = path.stat().st_size
        if size > _MAX_FILE_BYTES:
            raise DllamaError(
                f"{path} has {size} bytes, more than a tokenizer can have ({_MAX_FILE_BYTES}); give the `.t` file",
            )
        data = path.read_bytes()
    except OSError as error:
        raise DllamaError(f"cannot read the tokenizer {path}: {error.strerror}") from error
    return parse_t_file(data, str(path))


def parse_t_file(data: bytes, name: str) -> TokenizerFile:
    """Reads the bytes of a `.t` file; `name` is for messages. Raises DllamaError as `read_t_file` does."""
    reader = _Reader(data, name)
    magic = reader.u32("the magic number")
    if magic == MAGIC:
        return _parse_current(reader)
    if magic == OLD_MAGIC:
        return _parse_old(reader)
    raise DllamaError(
        f"{name} is not a tokenizer file: it begins with 0x{magic:08x} instead of 0x{MAGIC:x}; give a `.t` file",
    )


def _parse_current(reader: _Reader) -> TokenizerFile:
    header_size = reader.u32("the header size")
    n_values, rest = divmod(header_size - 8, 4)
    if header_size < 8 or rest or n_values % 2:
        reader.fail(f"states a header of {header_size} bytes, which is not 8 and a multiple of 8 more")
    header = reader.i32s(n_values, "the header")
    values: dict[int, int] = {}
    eos_ids: list[int] = []
    for key, value in zip(header[::2], header[1::2], strict=True):
        if key in (_KEY_EOS_ID, _KEY_CHAT_EOS_ID):
            eos_ids.append(value)
        elif key == _KEY_CHAT_STOP:
            reader.skip(value, "the chat stop text")
        elif not _KEY_VERSION <= key <= _KEY_ADD_BOS:
            reader.fail(f"has the unknown header key {key}")
        values[key] = value
    if values.get(_KEY_VERSION) != _VERSION:
        reader.fail(f"has format version {values.get(_KEY_VERSION)}, this program reads {_VERSION}")
    chat_template = None
    if values.get(_KEY_CHAT_TEMPLATE, 0) > 0:
        chat_template = reader.text(values[_KEY_CHAT_TEMPLATE], "the chat template")
    eos_ids += reader.i32s(values.get(_KEY_N_EOS_TOKENS, 0), "the EOS ids")
    return _with_tokens(
        reader,
        vocab_size=values.get(_KEY_VOCAB_SIZE, 0),
        max_token_length=values.get(_KEY_MAX_TOKEN_LENGTH, 0),
        bos_id=values.get(_KEY_BOS_ID, _NO_BOS),
        eos_ids=tuple(eos_ids),
        add_bos=values.get(_KEY_ADD_BOS, 1) == 1,
        chat_template=chat_template,
    )


def _parse_old(reader: _Reader) -> TokenizerFile:
    vocab_size, max_token_length, bos_id, eos_id, _pad_id = reader.i32s(5, "the header")
    return _with_tokens(
        reader,
        vocab_size=vocab_size,
        max_token_length=max_token_length,
        bos_id=bos_id,
        eos_ids=(eos_id,) if eos_id >= 0 else (),
        add_bos=True,
        chat_template=None,
    )


def _with_tokens(
    reader: _Reader,
    *,
    vocab_size: int,
    max_token_length: int,
    bos_id: int,
    eos_ids: tuple[int, ...],
    add_bos: bool,
    chat_template: str | None,
) -> TokenizerFile:
    if not 0 < vocab_size <= reader.n_left // (_TOKEN_HEAD.size + 1):
        reader.fail(f"states {vocab_size} tokens, {reader.n_left} bytes are left for them")
    if max_token_length < 1:
        reader.fail(f"states {max_token_length} bytes as the length of its longest token")
    stated = [("BOS", bos_id)] if bos_id != _NO_BOS else []
    for name, token_id in (*stated, *(("EOS", eos_id) for eos_id in eos_ids)):
        if not 0 <= token_id < vocab_size:
            reader.fail(f"states the {name} id {token_id}, outside of its {vocab_size} tokens")
    tokens, scores = reader.tokens(vocab_size, max_token_length)
    if reader.n_left:
        reader.fail(f"goes on for {reader.n_left} bytes after its {vocab_size} tokens")
    return TokenizerFile(tokens, scores, bos_id if stated else None, eos_ids, add_bos, chat_template)


class _Reader:
    """Walks through the bytes of a file; everything it returns was checked to be there."""

    def __init__(self, data: bytes, name: str) -> None:
        self._data = data
        self._name = name
        self._offset = 0

    @property
    def n_left(self) -> int:
        return len(self._data) - self._offset

    def u32(self, what: str) -> int:
        return int.from_bytes(self._take(4, what), "little")

    def i32s(self, count: int, what: str) -> tuple[int, ...]:
        data = self._take(4 * count, what)
        return struct.unpack(f"<{count}i", data)

    def skip(self, n_bytes: int, what: str) -> None:
        self._take(n_bytes, what)

    def text(self, n_bytes: int, what: str) -> str:
        offset = self._offset
        try:
            return self._take(n_bytes, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise DllamaError(
                f"the tokenizer {self._name} is damaged: {what} is not UTF-8 at byte {offset + error.start}; "
                "get or convert the file again",
            ) from error

    def tokens(self, count: int, max_length: int) -> tuple[tuple[bytes, ...], tuple[float, ...]]:
        """`count` tokens and their scores; one loop over local names, as there may be 150,000 of them."""
        data, offset, head = self._data, self._offset, _TOKEN_HEAD
        tokens: list[bytes] = []
        scores: list[float] = []
        for token_id in range(count):
            start = offset + head.size
            if start > len(data):
                self.fail(f"ends too early: it has {count} tokens, but stops inside token {token_id} at byte {offset}")
            score, length = head.unpack_from(data, offset)
            if not 1 <= length <= max_length:
                self.fail(f"gives token {token_id} at byte {offset} a length of {length}, outside of 1 to {max_length}")
            if not math.isfinite(score):
                self.fail(f"gives token {token_id} at byte {offset} the score {score}")
            offset = start + length
            if offset > len(data):
                self.fail(f"ends too early: token {token_id} at byte {start} has {length} bytes, not all are there")
            tokens.append(data[start:offset])
            scores.append(score)
        self._offset = offset
        return tuple(tokens), tuple(scores)

    def fail(self, what: str) -> NoReturn:
        raise DllamaError(f"the tokenizer {self._name} {what}; get or convert the file again")

    def _take(self, n_bytes: int, what: str) -> bytes:
        if not 0 <= n_bytes <= self.n_left:
            self.fail(f"ends too early: {what} takes {n_bytes} bytes at byte {self._offset}, {self.n_left} are left")
        self._offset += n_bytes
        return self._data[self._offset - n_bytes : self._offset]


def write_t_file(path: Path, file: TokenizerFile) -> None:
    """Writes a `.t` file. Raises DllamaError when it cannot be written."""
    data = format_t_file(file)
    try:
        path.write_bytes(data)
    except OSError as error:
        raise DllamaError(f"cannot write the tokenizer {path}: {error.strerror}") from error


def format_t_file(file: TokenizerFile) -> bytes:
    """The bytes of a `.t` file, keys in the original writer's order.

    Raises DllamaError for a token without bytes, which the format cannot hold.
    """
    if b"" in file.tokens:
        raise DllamaError(f"token {file.tokens.index(b'')} has no bytes, and a `.t` file cannot hold such a token")
    template = (file.chat_template or "").encode("utf-8")
    pairs = [
        (_KEY_BOS_ID, _NO_BOS if file.bos_id is None else file.bos_id),
        (_KEY_VERSION, _VERSION),
        (_KEY_VOCAB_SIZE, len(file.tokens)),
        (_KEY_MAX_TOKEN_LENGTH, max(map(len, file.tokens), default=0)),
        *([(_KEY_CHAT_TEMPLATE, len(template))] if template else []),
        (_KEY_N_EOS_TOKENS, len(file.eos_ids)),
        (_KEY_ADD_BOS, int(file.add_bos)),
    ]
    parts = [struct.pack("<II", MAGIC, 8 + 8 * len(pairs))]
    parts += [struct.pack("<ii", key, value) for key, value in pairs]
    parts += [template, struct.pack(f"<{len(file.eos_ids)}i", *file.eos_ids)]
    for token, score in zip(file.tokens, file.scores, strict=True):
        parts += [_TOKEN_HEAD.pack(score, len(token)), token]
    return b"".join(parts)
