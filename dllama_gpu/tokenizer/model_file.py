"""The file `tokenizer.model`: a SentencePiece model (Llama 2, Mistral, Gemma) or tiktoken's list (Llama 3)."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from pathlib import Path

import sentencepiece

from dllama_gpu.errors import DllamaError
from dllama_gpu.formats.shown import shown_text, shown_value
from dllama_gpu.tokenizer.byte_pair import BytePairEncoder
from dllama_gpu.tokenizer.chat_kinds import CHAT_KINDS
from dllama_gpu.tokenizer.hf_settings import HfSettings, read_hf_settings
from dllama_gpu.tokenizer.pretokenizer import PRE_TOKENIZERS
from dllama_gpu.tokenizer.sentence_piece import SPACE
from dllama_gpu.tokenizer.t_conversion import byte_pair_scores, sentence_piece_scores, t_file_of
from dllama_gpu.tokenizer.t_file import TokenizerFile
from dllama_gpu.tokenizer.tokenizer import TextEncoder, Tokenizer
from dllama_gpu.tokenizer.vocabulary import SpacePrefix, TokenKind, Vocabulary, with_known_ends

TOKENIZER_MODEL = "tokenizer.model"
_LARGEST_FILE = 64 << 20  # bytes; Gemma's has 4 MB
_LARGEST_VOCABULARY = 1 << 22
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\n")
_BPE = 2  # `model_type` in sentencepiece's TrainerSpec

# Source: the tokenizers of Llama 3 and 3.1; the numbered ones go on up to 256 special tokens in all.
_LLAMA3_SPECIALS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    *(f"<|reserved_special_token_{number}|>" for number in range(3, 248)),
)


def is_tiktoken(data: bytes) -> bool:
    """Whether the beginning of a file is that of a list in tiktoken's form: base64, a space, a number."""
    return _TIKTOKEN_LINE.match(data) is not None


def tokenizer_from_model_file(path: Path) -> Tokenizer:
    """The tokenizer in a `tokenizer.model`, with what the JSON files beside it say.

    Raises DllamaError when the file is missing, damaged or neither kind.
    """
    data = _read(path)
    vocabulary, encoder, _ = _from_tiktoken(path, data) if is_tiktoken(data) else _from_sentence_piece(path, data)
    return Tokenizer(vocabulary, encoder)


def t_file_from_model_file(path: Path) -> TokenizerFile:
    """The `.t` file that stands for a `tokenizer.model`; see `tokenizer_from_model_file`.

    Raises DllamaError for a Unigram model too, which a `.t` file cannot express.
    """
    data = _read(path)
    vocabulary, _, scores = _from_tiktoken(path, data) if is_tiktoken(data) else _from_sentence_piece(path, data)
    if scores is None:
        raise DllamaError(f"{path} holds a Unigram vocabulary, which a .t file cannot express: it merges pairs")
    return t_file_of(vocabulary, scores)


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > _LARGEST_FILE:
            raise DllamaError(f"{path} has {size} bytes, more than a tokenizer can have ({_LARGEST_FILE})")
        return path.read_bytes()
    except OSError as error:
        raise DllamaError(f"cannot read the tokenizer {path}: {error.strerror}") from error


def _from_tiktoken(path: Path, data: bytes) -> tuple[Vocabulary, TextEncoder, list[float]]:
    tokens: list[bytes] = []
    for number, line in enumerate(data.splitlines()):
        if not line:
            continue
        text, _, rank = line.partition(b" ")
        try:
            token = base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise DllamaError(
                f"{path}: line {number + 1} does not begin with a token in base64; it is damaged"
            ) from error
        if rank != b"%d" % len(tokens) or not token:
            raise DllamaError(
                f"{path}: line {number + 1} gives the rank {shown_value(rank.decode('latin-1'))}, but {len(tokens)} "
                "comes next; the file is damaged"
            )
        tokens.append(token)
    n_ordinary = len(tokens)
    tokens += [text.encode() for text in _LLAMA3_SPECIALS]
    kinds = (*[TokenKind.NORMAL] * n_ordinary, *[TokenKind.CONTROL] * len(_LLAMA3_SPECIALS))
    settings = read_hf_settings(path.parent)
    vocabulary = Vocabulary(
        tokens=tuple(tokens),
        kinds=kinds,
        bos_id=n_ordinary,
        eos_ids=with_known_ends([n_ordinary + 1], tokens, kinds),
        add_bos=True,
        chat_template=settings.chat_template or CHAT_KINDS["llama3"],
    )
    order = list(range(n_ordinary))
    encoder = BytePairEncoder(tokens, order, PRE_TOKENIZERS["llama-bpe"])
    return vocabulary, encoder, byte_pair_scores(vocabulary, order)


class _ModelEncoder:
    """Text to ids by the library with the model's own normalization and space prefix."""

    def __init__(self, processor: sentencepiece.SentencePieceProcessor) -> None:
        self._processor = processor

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._processor.encode(text)
        return ids


def _from_sentence_piece(path: Path, data: bytes) -> tuple[Vocabulary, TextEncoder, list[float] | None]:
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        n_pieces = processor.vocab_size()
        if not 0 < n_pieces <= _LARGEST_VOCABULARY:
            raise ValueError(f"it holds {n_pieces} tokens")
        prefixed = processor.normalize("a").startswith(SPACE)
        tokens, kinds = _pieces(processor, n_pieces)
        own_scores = [processor.get_score(token_id) for token_id in range(n_pieces)]
        merges_pairs = _merges_pairs(data)
    except (RuntimeError, TypeError, ValueError, LookupError, OverflowError) as error:  # damage has many faces
        raise DllamaError(
            f"{path} is refused by the sentencepiece library ({shown_text(str(error))}); download it again"
        ) from error
    settings = read_hf_settings(path.parent)
    _add_tokens(path, settings, tokens, kinds)
    ids: dict[str, int] = {}
    for token_id, token in enumerate(tokens):
        ids.setdefault(token.decode("utf-8", "replace"), token_id)
    bos_id, eos_ids = settings.find_bos(ids), settings.find_eos(ids)
    bos_id = processor.bos_id() if bos_id is None and processor.bos_id() >= 0 else bos_id
    own_eos = [processor.eos_id()] if not eos_ids and processor.eos_id() >= 0 else []
    for token_id in (*([] if bos_id is None else [bos_id]), *eos_ids, *own_eos):
        if not 0 <= token_id < len(tokens):
            raise DllamaError(f"{path} has {len(tokens)} tokens, but the files beside it name the token {token_id}")
        kinds[token_id] = TokenKind.CONTROL
    vocabulary = Vocabulary(
        tokens=tuple(tokens),
        kinds=tuple(kinds),
        bos_id=bos_id,
        eos_ids=with_known_ends([*eos_ids, *own_eos], tokens, kinds),
        add_bos=bos_id is not None and settings.add_bos is not False,
        space_prefix=SpacePrefix.BY_ENCODER if prefixed else SpacePrefix.NONE,
        chat_template=settings.chat_template,
    )
    scores = None
    if merges_pairs:
        scores = sentence_piece_scores(vocabulary, [*own_scores, *[0.0] * (len(tokens) - n_pieces)])
    return vocabulary, _ModelEncoder(processor), scores


def _pieces(processor: sentencepiece.SentencePieceProcessor, n_pieces: int) -> tuple[list[bytes], list[TokenKind]]:
    tokens: list[bytes] = []
    kinds: list[TokenKind] = []
    for token_id in range(n_pieces):
        text = processor.id_to_piece(token_id)
        if processor.is_byte(token_id):
            tokens.append(bytes([int(text[3:5], 16)]))
            kinds.append(TokenKind.BYTE)
            continue
        tokens.append(text.replace(SPACE, " ").encode())
        if processor.is_unknown(token_id):
            kinds.append(TokenKind.UNKNOWN)
        elif processor.is_control(token_id):
            kinds.append(TokenKind.CONTROL)
        else:
            kinds.append(TokenKind.UNUSED if processor.is_unused(token_id) else TokenKind.NORMAL)
    return tokens, kinds


def _add_tokens(path: Path, settings: HfSettings, tokens: list[bytes], kinds: list[TokenKind]) -> None:
    """Takes over what was added to the model after training; texts of tokens that it has already only mark them."""
    for added in settings.added:
        if added.token_id > len(tokens):
            raise DllamaError(
                f"{path} has {len(tokens)} tokens, but the files beside it add {shown_value(added.text)} as token "
                f"{added.token_id}; one of them belongs to another model"
            )
        kind = TokenKind.CONTROL if added.special else TokenKind.USER_DEFINED
        if added.token_id == len(tokens):
            tokens.append(added.text.encode())
            kinds.append(kind)
        elif kinds[added.token_id] is TokenKind.NORMAL:
            kinds[added.token_id] = kind


def _merges_pairs(data: bytes) -> bool:
    """Whether the model merges pairs (BPE); the message classes for reading this demand one series of protobuf."""
    trainer = _fields(data).get(2)
    return isinstance(trainer, bytes) and _fields(trainer).get(3) == _BPE


def _fields(data: bytes) -> Mapping[int, int | bytes]:
    """The last value of each field of a serialized protobuf message that the library has parsed already."""
    found: dict[int, int | bytes] = {}
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while position < len(data):
        key = varint()
        match key & 7:
            case 0:
                found[key >> 3] = varint()
            case 1:
                position += 8
            case 5:
                position += 4
            case _:
                length = varint()
                found[key >> 3] = data[position : position + length]
                position += length
    return found
