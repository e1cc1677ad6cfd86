"""What a tokenizer knows of its tokens, whatever file it came from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum


class TokenKind(Enum):
    """What a token is for; the numbers are those of GGUF's `tokenizer.ggml.token_type`.

    ============  ==========================================================================================
    NORMAL        a piece of text
    UNKNOWN       stands for text that the vocabulary cannot spell
    CONTROL       steers the model (`<|im_start|>`, `</s>`): hidden from the reader, never made from user text
    USER_DEFINED  added as a whole after training: shown to the reader (`<think>`, runs of spaces)
    UNUSED        a placeholder
    BYTE          one byte, the last resort of SentencePiece vocabularies
    ============  ==========================================================================================
    """

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


PLAIN = (TokenKind.NORMAL, TokenKind.BYTE)
"""Kinds that text is spelled with."""
HIDDEN = (TokenKind.UNKNOWN, TokenKind.CONTROL, TokenKind.UNUSED)
"""Kinds that are not for the reader's eyes."""

_TAG = re.compile(r"<[^<>\s]+>|\[/?[A-Za-z0-9_]{2,}\]")


def is_tag(text: str) -> bool:
    """Whether a token's text has the shape of a special one: `<|eot_id|>`, `</s>`, `<think>`, `[INST]`."""
    return _TAG.fullmatch(text.strip()) is not None


END_TEXTS = (
    b"<|eot_id|>",
    b"<|eom_id|>",
    b"<|im_end|>",
    b"<|end_of_text|>",
    b"<|endoftext|>",
    b"</s>",
    b"<end_of_turn>",
    "<｜end▁of▁sentence｜>".encode(),
)
"""Tokens that are known to end a turn or a text."""


def with_known_ends(
    eos_ids: Iterable[int],
    tokens: Sequence[bytes],
    kinds: Sequence[TokenKind],
) -> tuple[int, ...]:
    """The file's own EOS ids in their order, then the control tokens among `END_TEXTS`.

    Files often name only one of several: Llama 3's base configuration leaves out `<|eot_id|>`, without which a chat
    never stops.
    """
    control = (token_id for token_id, kind in enumerate(kinds) if kind is TokenKind.CONTROL)
    known = [token_id for token_id in control if tokens[token_id] in END_TEXTS]
    return tuple(dict.fromkeys([*eos_ids, *known]))


class SpacePrefix(Enum):
    """Where a space belongs before a text that is encoded, to be taken away again after decoding.

    NONE: nowhere. EACH: before every stretch of text between special tokens (SentencePiece's `add_dummy_prefix`).
    FIRST: before the beginning alone, unless it is a space. BY_ENCODER: as EACH, but the encoder puts it there itself.
    """

    NONE = "none"
    EACH = "each"
    FIRST = "first"
    BY_ENCODER = "by_encoder"


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, and the few facts that go with them."""

    tokens: tuple[bytes, ...]
    """What each token decodes to; control tokens hold their own text."""
    kinds: tuple[TokenKind, ...]
    bos_id: int | None
    eos_ids: tuple[int, ...]
    """Any of these ends an answer; the first one is the file's own choice."""
    add_bos: bool
    space_prefix: SpacePrefix = SpacePrefix.NONE
    chat_template: str | None = None

    @property
    def unknown_id(self) -> int | None:
        """The token for text that cannot be spelled, if there is one."""
        return self.kinds.index(TokenKind.UNKNOWN) if TokenKind.UNKNOWN in self.kinds else None
