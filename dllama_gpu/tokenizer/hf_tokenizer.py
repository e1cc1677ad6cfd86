"""A Hugging Face `tokenizer.json`, encoded by the `tokenizers` library itself.

Special and other added tokens are taken out of the library's hands: `Tokenizer` finds them where they may be, and
plain text never becomes one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from dllama_gpu.errors import DllamaError
from dllama_gpu.formats.json_file import read_json
from dllama_gpu.formats.shown import shown_text, shown_value
from dllama_gpu.tokenizer.byte_alphabet import decode_token
from dllama_gpu.tokenizer.hf_settings import LARGEST_JSON, AddedToken, HfSettings, added_token, read_hf_settings
from dllama_gpu.tokenizer.sentence_piece import SPACE
from dllama_gpu.tokenizer.t_conversion import byte_pair_scores, merge_order, sentence_piece_scores, t_file_of
from dllama_gpu.tokenizer.t_file import TokenizerFile
from dllama_gpu.tokenizer.tokenizer import Tokenizer
from dllama_gpu.tokenizer.vocabulary import (
    END_TEXTS,
    SpacePrefix,
    TokenKind,
    Vocabulary,
    with_known_ends,
)

TOKENIZER_JSON = "tokenizer.json"
_MOST_HOLES = 1 << 16
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class _Definition:
    """A checked `tokenizer.json`: pieces by id, `fields` as they are."""

    path: Path
    fields: Mapping[str, Any]
    pieces: Mapping[int, str]
    added: Mapping[int, AddedToken]
    settings: HfSettings

    @property
    def model(self) -> Mapping[str, Any]:
        return self.fields["model"]  # type: ignore[no-any-return]

    @property
    def is_unigram(self) -> bool:
        return bool(self.model["type"] == "Unigram")

    @property
    def is_byte_level(self) -> bool:
        """Whether pieces are written in the byte alphabet."""
        parts = (*_parts(self.fields.get("pre_tokenizer")), *_parts(self.fields.get("decoder")))
        return any(part.get("type") == "ByteLevel" for part in parts)


class LibraryEncoder:
    """Text to ids by the `tokenizers` library, in which nothing is special."""

    def __init__(self, definition: Mapping[str, Any], path: Path) -> None:
        """Raises DllamaError, naming the file, when the library refuses the definition."""
        import tokenizers  # only here: other kinds of files need not wait for it

        data = msgspec.json.encode(definition).decode()
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(data)
        except BaseException as error:  # the library panics, which is no Exception, at some definitions
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            raise DllamaError(
                f"{path} is refused by the tokenizers library ({shown_text(str(error))}); download it again"
            ) from error

    def encode(self, text: str) -> list[int]:
        """Ids of `text`."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def tokenizer_from_hf(path: Path) -> Tokenizer:
    """The tokenizer in the file `path` (a `tokenizer.json`), with what the files beside it say.

    Raises DllamaError when a file is missing, damaged or of a kind that is not supported.
    """
    definition = _read(path)
    return Tokenizer(_vocabulary(definition), LibraryEncoder(_without_added(definition), path))


def t_file_from_hf(path: Path) -> TokenizerFile:
    """The `.t` file that stands for a `tokenizer.json`; see `tokenizer_from_hf`.

    Raises DllamaError for a Unigram vocabulary too, which a `.t` file cannot express.
    """
    definition = _read(path)
    if definition.is_unigram:
        raise DllamaError(f"{path} holds a Unigram vocabulary, which a .t file cannot express: it merges pairs")
    LibraryEncoder(_without_added(definition), path)  # refuses what is no tokenizer
    vocabulary = _vocabulary(definition)
    texts = [definition.pieces.get(token_id, "") for token_id in range(len(vocabulary.tokens))]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in definition.model.get("merges", ())]
    order = merge_order(texts, vocabulary.kinds, merges, definition.model.get("ignore_merges") is True)
    if definition.is_byte_level:
        return t_file_of(vocabulary, byte_pair_scores(vocabulary, order))
    ranks = {token_id: -float(rank) for rank, token_id in enumerate(order)}
    scores = [ranks.get(token_id, -float(len(order))) for token_id in range(len(texts))]
    return t_file_of(vocabulary, sentence_piece_scores(vocabulary, scores))


def _read(path: Path) -> _Definition:
    fields = read_json(path, LARGEST_JSON)
    model = fields.get("model") if isinstance(fields, dict) else None
    if not isinstance(model, dict):
        raise DllamaError(f"{path} is no tokenizer.json of Hugging Face's tokenizers library: it has no model")
    kind = model.setdefault("type", "BPE" if "merges" in model else None)
    if kind not in ("BPE", "Unigram"):
        raise DllamaError(
            f"{path} holds a tokenizer of the type {shown_value(kind)}, but only BPE and Unigram are supported"
        )
    listed = fields.get("added_tokens") or []
    if not isinstance(listed, list):
        raise DllamaError(f"{path}: added_tokens is {shown_value(listed)}, but a list is wanted")
    added = {token.token_id: token for token in (added_token(entry, path) for entry in listed)}
    pieces = dict(_unigram_pieces(model, path) if kind == "Unigram" else _pair_pieces(model, path))
    pieces |= {token_id: token.text for token_id, token in added.items()}
    if not pieces or max(pieces) >= len(pieces) + _MOST_HOLES:
        raise DllamaError(f"{path} has {len(pieces)} tokens, but ids up to {max(pieces, default=0)}; it is damaged")
    return _Definition(path, fields, pieces, added, read_hf_settings(path.parent))


def _pair_pieces(model: Mapping[str, Any], path: Path) -> Iterator[tuple[int, str]]:
    vocab = model.get("vocab")
    if not isinstance(vocab, dict):
        raise DllamaError(f"{path}: the vocabulary is {shown_value(vocab)}, but an object is wanted")
    for text, token_id in vocab.items():
        if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
            raise DllamaError(
                f"{path}: the token {shown_value(text)} has the id {shown_value(token_id)}, which is none"
            )
        yield token_id, text
    merges = model.get("merges", [])
    pairs = merges if isinstance(merges, list) else [merges]
    for merge in pairs:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise DllamaError(f"{path}: the merge {shown_value(merge)} is no pair of tokens")


def _unigram_pieces(model: Mapping[str, Any], path: Path) -> Iterator[tuple[int, str]]:
    vocab = model.get("vocab")
    if not isinstance(vocab, list):
        raise DllamaError(f"{path}: the vocabulary is {shown_value(vocab)}, but a list is wanted")
    for token_id, entry in enumerate(vocab):
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
            raise DllamaError(f"{path}: token {token_id} is {shown_value(entry)}, but a text and a score are wanted")
        yield token_id, entry[0]


def _vocabulary(definition: _Definition) -> Vocabulary:
    settings, pieces = definition.settings, definition.pieces
    n_tokens = max(pieces) + 1
    ids = {text: token_id for token_id, text in pieces.items()}
    ids |= {token.text: token_id for token_id, token in definition.added.items()}
    bos_id, eos_ids = settings.find_bos(ids), settings.find_eos(ids)
    for role, token_id in (("BOS", bos_id), *(("EOS", eos_id) for eos_id in eos_ids)):
        if token_id is not None and token_id >= n_tokens:
            raise DllamaError(
                f"{definition.path} has {n_tokens} tokens, but the {role} id in the files beside it is {token_id}"
            )
    kinds = _kinds(definition, n_tokens, {bos_id, *eos_ids} - {None}, ids)
    tokens = _tokens(definition, kinds)
    return Vocabulary(
        tokens=tokens,
        kinds=kinds,
        bos_id=bos_id,
        eos_ids=with_known_ends(eos_ids, tokens, kinds),
        add_bos=bos_id is not None and _adds_bos(definition, bos_id),
        space_prefix=_space_prefix(definition.fields),
        chat_template=settings.chat_template,
    )


def _kinds(
    definition: _Definition, n_tokens: int, roles: set[int | None], ids: Mapping[str, int]
) -> tuple[TokenKind, ...]:
    kinds = [TokenKind.UNUSED] * n_tokens
    has_bytes = definition.model.get("byte_fallback") is True
    for token_id, text in definition.pieces.items():
        kinds[token_id] = TokenKind.BYTE if has_bytes and _BYTE.fullmatch(text) else TokenKind.NORMAL
    for token_id, token in definition.added.items():
        known_end = token.special or token.text.encode() in END_TEXTS
        kinds[token_id] = TokenKind.CONTROL if known_end else TokenKind.USER_DEFINED
    unknown = definition.model.get("unk_token")
    unknown_id = definition.model.get("unk_id") if definition.is_unigram else ids.get(unknown) if unknown else None
    if isinstance(unknown_id, int) and 0 <= unknown_id < n_tokens and unknown_id not in roles:
        is_end = definition.pieces.get(unknown_id, "").encode() in END_TEXTS  # GPT-2's does for both
        kinds[unknown_id] = TokenKind.CONTROL if is_end else TokenKind.UNKNOWN
    for role in roles:
        if role is not None:
            kinds[role] = TokenKind.CONTROL
    return tuple(kinds)


def _tokens(definition: _Definition, kinds: Sequence[TokenKind]) -> tuple[bytes, ...]:
    byte_level = definition.is_byte_level
    tokens = []
    for token_id, kind in enumerate(kinds):
        text = definition.pieces.get(token_id)
        if text is None:
            tokens.append(b"<unused:%d>" % token_id)
        elif kind is TokenKind.BYTE:
            tokens.append(bytes([int(text[3:5], 16)]))
        elif token_id in definition.added or kind is not TokenKind.NORMAL:
            tokens.append(text.encode())
        else:
            tokens.append(decode_token(text) if byte_level else text.replace(SPACE, " ").encode())
    return tuple(tokens)


def _adds_bos(definition: _Definition, bos_id: int) -> bool:
    """What the configuration says, else whether the last step of encoding puts BOS first."""
    if definition.settings.add_bos is not None:
        return definition.settings.add_bos
    text = definition.pieces.get(bos_id)
    for part in _parts(definition.fields.get("post_processor")):
        single = part.get("single")
        first = single[0] if isinstance(single, list) and single else None
        special = first.get("SpecialToken") if isinstance(first, dict) else None
        if isinstance(special, dict) and special.get("id") == text:
            return True
    return False


def _space_prefix(fields: Mapping[str, Any]) -> SpacePrefix:
    if any(part.get("type") == "Prepend" for part in _parts(fields.get("normalizer"))):
        return SpacePrefix.BY_ENCODER
    for part in _parts(fields.get("pre_tokenizer"), depth=1):
        if part.get("type") == "Metaspace":
            scheme = part.get("prepend_scheme", "always" if part.get("add_prefix_space", True) else "never")
            return {"first": SpacePrefix.FIRST, "always": SpacePrefix.BY_ENCODER}.get(str(scheme), SpacePrefix.NONE)
    return SpacePrefix.NONE


def _without_added(definition: _Definition) -> dict[str, Any]:
    """The definition for plain text: no token is special, nothing is put before or behind."""
    fields = dict(definition.fields) | {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    if _space_prefix(fields) is SpacePrefix.FIRST:  # `Tokenizer` knows what is first, the library sees parts
        fields["pre_tokenizer"] = _never_prefixed(fields["pre_tokenizer"])
    if definition.is_unigram:  # pieces match text here, whatever they are for
        vocab = [list(entry) for entry in definition.model["vocab"]]
        for token_id, token in definition.added.items():
            if token_id < len(vocab) and token_id != definition.model.get("unk_id"):
                vocab[token_id][0] = f"\ufdd0{token.text}"
        fields["model"] = dict(definition.model) | {"vocab": vocab}
    return fields


def _never_prefixed(step: Any) -> Any:
    if not isinstance(step, dict):
        return step
    if step.get("type") == "Metaspace":
        return dict(step) | {"prepend_scheme": "never", "add_prefix_space": False}
    inner = step.get("pretokenizers")
    return dict(step) | {"pretokenizers": list(map(_never_prefixed, inner))} if isinstance(inner, list) else step


def _parts(step: Any, depth: int = 4) -> Iterator[Mapping[str, Any]]:
    """A step of the library's pipeline, or that and the steps inside a sequence of such."""
    if isinstance(step, dict):
        yield step
        for inner in step.values() if depth else ():
            if isinstance(inner, list):
                for item in inner:
                    yield from _parts(item, depth - 1)
