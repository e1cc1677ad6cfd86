"""A tokenizer out of a GGUF file's metadata, and a `.t` file out of the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dllama_gpu.errors import DllamaError
from dllama_gpu.formats.gguf_header import read_gguf_metadata
from dllama_gpu.formats.shown import shown_value
from dllama_gpu.tokenizer.byte_alphabet import decode_token
from dllama_gpu.tokenizer.byte_pair import BytePairEncoder
from dllama_gpu.tokenizer.pretokenizer import PreTokenizer, named_pre_tokenizer
from dllama_gpu.tokenizer.sentence_piece import SPACE, SentencePieceEncoder
from dllama_gpu.tokenizer.t_conversion import byte_pair_scores, merge_order, sentence_piece_scores, t_file_of
from dllama_gpu.tokenizer.t_file import TokenizerFile
from dllama_gpu.tokenizer.tokenizer import Tokenizer
from dllama_gpu.tokenizer.vocabulary import (
    END_TEXTS,
    PLAIN,
    SpacePrefix,
    TokenKind,
    Vocabulary,
    with_known_ends,
)

_BYTE_PAIR = "gpt2"
_SENTENCE_PIECE = "llama"
_KINDS = {kind.value: kind for kind in TokenKind}
_BOS_BY_DEFAULT = ("llama-bpe", "tekken")
_ANY_NUMBER = (int, float)


@dataclass(frozen=True)
class _BytePair:
    """`merge_order`: ids that text may become, best merge first."""

    merge_order: list[int]
    pre_tokenizer: PreTokenizer


@dataclass(frozen=True)
class _SentencePiece:
    scores: list[float]


def tokenizer_from_gguf(path: Path, metadata: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer inside a GGUF file, whose `metadata` need not be given, but is not read again if it is.

    Raises DllamaError when the file or its vocabulary cannot be used.
    """
    try:
        return tokenizer_from_metadata(read_gguf_metadata(path) if metadata is None else metadata)
    except _VocabularyError as error:
        raise DllamaError(f"{path} cannot be used as a tokenizer: {error}") from error


def t_file_from_gguf(path: Path, metadata: Mapping[str, Any] | None = None) -> TokenizerFile:
    """The `.t` file that stands for the tokenizer inside a GGUF file; see `tokenizer_from_gguf`."""
    try:
        return t_file_from_metadata(read_gguf_metadata(path) if metadata is None else metadata)
    except _VocabularyError as error:
        raise DllamaError(f"{path} cannot be converted: {error}") from error


def tokenizer_from_metadata(metadata: Mapping[str, Any]) -> Tokenizer:
    """A tokenizer from the `tokenizer.*` entries of a GGUF file. Raises DllamaError when they cannot be used."""
    vocabulary, scheme = _read(metadata)
    if isinstance(scheme, _SentencePiece):
        return Tokenizer(vocabulary, SentencePieceEncoder(vocabulary.tokens, vocabulary.kinds, scheme.scores))
    encoder = BytePairEncoder(
        vocabulary.tokens,
        scheme.merge_order,
        scheme.pre_tokenizer,
        vocabulary.unknown_id,
    )
    return Tokenizer(vocabulary, encoder)


def t_file_from_metadata(metadata: Mapping[str, Any]) -> TokenizerFile:
    """The `.t` file for the `tokenizer.*` entries of a GGUF file. Raises DllamaError when they cannot be used."""
    vocabulary, scheme = _read(metadata)
    if isinstance(scheme, _SentencePiece):
        return t_file_of(vocabulary, sentence_piece_scores(vocabulary, scheme.scores))
    return t_file_of(vocabulary, byte_pair_scores(vocabulary, scheme.merge_order))


class _VocabularyError(DllamaError):
    """A defect of the metadata, told without the file's name."""


def _read(metadata: Mapping[str, Any]) -> tuple[Vocabulary, _BytePair | _SentencePiece]:
    model = _get(metadata, "tokenizer.ggml.model", str, None)
    if model not in (_BYTE_PAIR, _SENTENCE_PIECE):
        raise _VocabularyError(
            f"its tokenizer model is {shown_value(model)}; byte-pair ({_BYTE_PAIR!r}) and SentencePiece "
            f"({_SENTENCE_PIECE!r}) vocabularies can be used"
            if model
            else "it has no tokenizer (`tokenizer.ggml.model`)"
        )
    texts = _list(metadata, "tokenizer.ggml.tokens", (str,), None)
    kind_numbers = _list(metadata, "tokenizer.ggml.token_type", (int,), [1] * len(texts))
    if len(kind_numbers) != len(texts):
        raise _VocabularyError(f"it has {len(texts)} tokens, but {len(kind_numbers)} token types")
    bos_id = _token_id(metadata, "bos", len(texts))
    eos_ids = [
        token_id for name in ("eos", "eot", "eom") if (token_id := _token_id(metadata, name, len(texts))) is not None
    ]
    kinds = _kinds(texts, kind_numbers, {bos_id, *eos_ids})
    scheme: _BytePair | _SentencePiece
    if model == _SENTENCE_PIECE:
        tokens = tuple(map(_sentence_piece_token, texts, kinds))
        scores = [float(score) for score in _list(metadata, "tokenizer.ggml.scores", _ANY_NUMBER, None)]
        if len(scores) != len(texts):
            raise _VocabularyError(f"it has {len(texts)} tokens, but {len(scores)} scores")
        scheme = _SentencePiece(scores)
        add_bos = True
    else:
        tokens = tuple(map(_byte_pair_token, texts, kinds))
        pre_tokenizer = named_pre_tokenizer(_get(metadata, "tokenizer.ggml.pre", str, None), tokens)
        merges = _list(metadata, "tokenizer.ggml.merges", (str,), None)
        scheme = _BytePair(merge_order(texts, kinds, merges, pre_tokenizer.whole_words), pre_tokenizer)
        add_bos = pre_tokenizer.name in _BOS_BY_DEFAULT
    prefixed = model == _SENTENCE_PIECE and _get(metadata, "tokenizer.ggml.add_space_prefix", bool, True)
    vocabulary = Vocabulary(
        tokens=tokens,
        kinds=kinds,
        bos_id=bos_id,
        eos_ids=with_known_ends(eos_ids, tokens, kinds),
        add_bos=bos_id is not None and _get(metadata, "tokenizer.ggml.add_bos_token", bool, add_bos),
        space_prefix=SpacePrefix.EACH if prefixed else SpacePrefix.NONE,
        chat_template=_get(metadata, "tokenizer.chat_template", str, None),
    )
    return vocabulary, scheme


def _kinds(texts: Sequence[str], kind_numbers: Sequence[int], role_ids: Set[int | None]) -> tuple[TokenKind, ...]:
    """The stored kinds, but a token with a role (BOS, EOS …) or a known end text is a control token.

    Some converters have marked those as normal or as user-defined, which would show them to the reader.
    """
    kinds = [_KINDS.get(number, TokenKind.NORMAL) for number in kind_numbers]
    for token_id, kind in enumerate(kinds):
        if token_id in role_ids or (kind is TokenKind.USER_DEFINED and texts[token_id].encode() in END_TEXTS):
            kinds[token_id] = TokenKind.CONTROL
    return tuple(kinds)


def _sentence_piece_token(text: str, kind: TokenKind) -> bytes:
    if kind is TokenKind.BYTE:
        try:
            return bytes([int(text.removeprefix("<0x").removesuffix(">"), 16)])
        except ValueError as error:
            raise _VocabularyError(f"its byte token {shown_value(text)} is not of the form '<0x0A>'") from error
    return text.replace(SPACE, " ").encode()


def _byte_pair_token(text: str, kind: TokenKind) -> bytes:
    return decode_token(text) if kind in PLAIN else text.encode()


def _get(metadata: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = metadata.get(key, default)
    if value is not default and not isinstance(value, kind):
        raise _VocabularyError(f"its entry `{key}` is {shown_value(value)}, not of type {kind.__name__}")
    return value


def _list(metadata: Mapping[str, Any], key: str, kinds: tuple[type, ...], default: list[Any] | None) -> list[Any]:
    value = metadata.get(key, default)
    if not isinstance(value, list) or not value:
        raise _VocabularyError(f"its entry `{key}` is missing or not a list")
    if not all(isinstance(item, kinds) for item in value):
        raise _VocabularyError(f"its entry `{key}` holds other things than {kinds[0].__name__} values")
    return value


def _token_id(metadata: Mapping[str, Any], role: str, n_tokens: int) -> int | None:
    key = f"tokenizer.ggml.{role}_token_id"
    token_id = _get(metadata, key, int, None)
    if token_id is None or 0 <= token_id < n_tokens:
        return None if token_id is None else int(token_id)
    raise _VocabularyError(f"its `{key}` is {token_id}, but it has only {n_tokens} tokens")
