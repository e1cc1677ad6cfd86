"""Text to ids and back: one interface for all vocabularies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from dllama_gpu.tokenizer.detokenizer import IncrementalDetokenizer, token_at
from dllama_gpu.tokenizer.special_text import SpecialText
from dllama_gpu.tokenizer.vocabulary import HIDDEN, PLAIN, SpacePrefix, TokenKind, Vocabulary, is_tag


class TextEncoder(Protocol):
    """Encodes text in which nothing is special."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text`."""


class Tokenizer:
    """A vocabulary with its encoder. Immutable; may be used by several threads at a time."""

    def __init__(self, vocabulary: Vocabulary, encoder: TextEncoder) -> None:
        self._vocabulary = vocabulary
        self._encoder = encoder
        tags: dict[str, int] = {}
        always: dict[str, int] = {}
        for token_id, kind in enumerate(vocabulary.kinds):
            if kind not in PLAIN and kind is not TokenKind.UNUSED:
                text = vocabulary.tokens[token_id].decode("utf-8", "replace")
                group = always if kind is TokenKind.USER_DEFINED and not is_tag(text) else tags
                group.setdefault(text, token_id)
        self._special_ids = tags
        self._specials = SpecialText({**always, **tags})
        self._always = SpecialText(always)

    @property
    def vocab_size(self) -> int:
        """Number of tokens; ids are 0 .. vocab_size - 1."""
        return len(self._vocabulary.tokens)

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text, if the vocabulary has one."""
        return self._vocabulary.bos_id

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer, the file's own choice first."""
        return self._vocabulary.eos_ids

    @property
    def add_bos(self) -> bool:
        """Whether the model expects `bos_id` before every text."""
        return self._vocabulary.add_bos

    @property
    def chat_template(self) -> str | None:
        """The stored chat template, as it is."""
        return self._vocabulary.chat_template

    @property
    def special_ids(self) -> Mapping[str, int]:
        """Ids by text of the tokens that `parse_special` recognizes: control tokens and tags such as `<think>`."""
        return self._special_ids

    def encode(self, text: str, *, add_bos: bool | None = None, parse_special: bool = True) -> list[int]:
        """Ids of `text`.

        `add_bos` puts `bos_id` first, unless the text begins with it already; None does what the model expects. With
        `parse_special` the texts of special tokens become these tokens, otherwise they are text like any other. Lone
        surrogates are read as U+FFFD.
        """
        text = _well_formed(text)
        return self.encode_parts((self._specials if parse_special else self._always).split(text), add_bos=add_bos)

    def split_special(self, text: str) -> list[str | int]:
        """The parts of `text` in order: special tokens as ids, what stands between them as str."""
        return list(self._specials.split(_well_formed(text)))

    def encode_parts(self, parts: Iterable[str | int], *, add_bos: bool | None = None) -> list[int]:
        """Ids of parts that are ids already or plain text, in which nothing is special; `add_bos` as for `encode`."""
        ids: list[int] = []
        after_special = True
        for part in parts:
            if isinstance(part, int):
                ids.append(part)
            elif part:
                prefixed = after_special and self._wants_prefix(part, is_first=not ids)
                ids.extend(self._encoder.encode(" " + part if prefixed else part))
            after_special = isinstance(part, int)
        bos_id = self._vocabulary.bos_id
        if (self.add_bos if add_bos is None else add_bos) and bos_id is not None and ids[:1] != [bos_id]:
            ids.insert(0, bos_id)
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of `ids`, control tokens left out unless `skip_special` is False; bytes that are not UTF-8 as U+FFFD.

        Raises DllamaError for an id outside the vocabulary.
        """
        stream = self.stream(skip_special=skip_special)
        pieces: list[str] = []
        prefix = self._vocabulary.space_prefix
        may_be_prefix = prefix is not SpacePrefix.NONE
        for token_id in ids:
            piece = stream.push(token_id)
            special = self._vocabulary.kinds[token_id] not in PLAIN
            if may_be_prefix and not special:
                piece = piece.removeprefix(" ")
            pieces.append(piece)
            if not special or prefix is not SpacePrefix.FIRST:
                may_be_prefix = special and prefix is not SpacePrefix.NONE
        return "".join(pieces) + stream.flush()

    def _wants_prefix(self, text: str, *, is_first: bool) -> bool:
        match self._vocabulary.space_prefix:
            case SpacePrefix.EACH:
                return True
            case SpacePrefix.FIRST:
                return is_first and not text.startswith((" ", "▁"))
            case _:
                return False

    def stream(self, *, skip_special: bool = True) -> IncrementalDetokenizer:
        """A detokenizer for tokens that come one by one; leading spaces stay, as the text continues an earlier one."""
        return IncrementalDetokenizer(self._vocabulary, skip_special=skip_special)

    def token_bytes(self, token_id: int) -> bytes:
        """What one token decodes to. Raises DllamaError for an id outside the vocabulary."""
        return token_at(self._vocabulary, token_id)

    def is_special(self, token_id: int) -> bool:
        """Whether a token steers the model and is not for the reader's eyes; False for ids outside the vocabulary."""
        return 0 <= token_id < self.vocab_size and self._vocabulary.kinds[token_id] in HIDDEN


def _well_formed(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
