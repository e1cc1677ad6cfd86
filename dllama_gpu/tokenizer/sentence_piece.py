"""SentencePiece vocabularies (Llama 2, Mistral), through sentencepiece.

The library loads a serialized `ModelProto`. It is written here field by field, because the message classes that come
with the library demand one release series of protobuf. Field numbers: `sentencepiece_model.proto`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import sentencepiece

from dllama_gpu.errors import DllamaError
from dllama_gpu.tokenizer.vocabulary import TokenKind

SPACE = "\u2581"
"""How pieces store a space: `▁`."""


class SentencePieceEncoder:
    """Text to ids by merging the best-scored pair of neighbours first; bytes stand for what is not in the vocabulary.

    No normalization, no space put in front: `Tokenizer` does that where the vocabulary asks for it. A `▁` in the text
    cannot be told from a space, as everywhere with SentencePiece.
    """

    def __init__(self, tokens: Sequence[bytes], kinds: Sequence[TokenKind], scores: Sequence[float]) -> None:
        """What tokens decode to, what they are and their scores, by id.

        Raises DllamaError when they do not make a usable vocabulary.
        """
        self._n_tokens = len(tokens)
        model = _model_proto(_pieces(tokens, kinds, scores))
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise DllamaError(f"sentencepiece refuses the vocabulary ({error}); get the tokenizer again") from error

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, in which nothing is special; what the vocabulary cannot spell at all is left out."""
        ids: list[int] = self._processor.encode(text)
        return [token_id for token_id in ids if token_id < self._n_tokens]


@dataclass(frozen=True)
class _Piece:
    text: str
    score: float
    kind: TokenKind


def _pieces(tokens: Sequence[bytes], kinds: Sequence[TokenKind], scores: Sequence[float]) -> list[_Piece]:
    """The vocabulary as the library wants it: sound and different texts, one UNKNOWN, all 256 bytes or none."""
    all_bytes = len({token for token, kind in zip(tokens, kinds, strict=True) if kind is TokenKind.BYTE}) == 256
    pieces: list[_Piece] = []
    texts: set[str] = set()
    for token, kind, score in zip(tokens, kinds, scores, strict=True):
        if kind is TokenKind.BYTE:
            text = f"<0x{token[0]:02X}>"
            kind = TokenKind.BYTE if all_bytes else TokenKind.CONTROL
        else:
            text = token.decode("utf-8", "replace").replace(" ", SPACE)
            if kind is not TokenKind.NORMAL:
                kind = TokenKind.CONTROL  # `Tokenizer` looks for these, the library must not
        if not text or "\0" in text or text in texts:
            text, kind = f"<dllama:{len(pieces)}>", TokenKind.CONTROL  # never made from text
        texts.add(text)
        pieces.append(_Piece(text, score, kind))
    pieces.append(_Piece("<dllama:unknown>", 0.0, TokenKind.UNKNOWN))
    return pieces


def _model_proto(pieces: Sequence[_Piece]) -> bytes:
    """A serialized `ModelProto`: BPE, identity normalization, spaces kept as they are."""
    has_bytes = any(piece.kind is TokenKind.BYTE for piece in pieces)
    trainer = b"".join(
        (
            _number(3, 2),  # model_type: BPE
            _number(4, len(pieces)),  # vocab_size
            _number(35, int(has_bytes)),  # byte_fallback
            _number(40, len(pieces) - 1),  # unk_id
            *(_number(field, -1) for field in (41, 42, 43)),  # bos_id, eos_id, pad_id: `Tokenizer` adds those
        ),
    )
    normalizer = b"".join(
        (
            _bytes(1, b"identity"),
            _number(3, 0),  # add_dummy_prefix
            _number(4, 0),  # remove_extra_whitespaces
            _number(5, 1),  # escape_whitespaces
        ),
    )
    return b"".join((*map(_piece, pieces), _bytes(2, trainer), _bytes(3, normalizer)))


def _piece(piece: _Piece) -> bytes:
    score = b"\x15" + struct.pack("<f", piece.score)  # field 2, four bytes
    return _bytes(1, _bytes(1, piece.text.encode()) + score + _number(3, piece.kind.value))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative numbers are written as 64-bit two's complement
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
