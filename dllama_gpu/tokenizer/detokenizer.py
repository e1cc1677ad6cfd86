"""Ids to text, one token at a time."""

from __future__ import annotations

import codecs

from dllama_gpu.errors import DllamaError
from dllama_gpu.tokenizer.vocabulary import HIDDEN, Vocabulary


class IncrementalDetokenizer:
    """Turns tokens into text as they come, without ever splitting a UTF-8 character.

    Only the first bytes of a character that is still incomplete are held back (three at most). Bytes that cannot be
    UTF-8 become U+FFFD, as in Python's own decoder.
    """

    def __init__(self, vocabulary: Vocabulary, *, skip_special: bool = True) -> None:
        self._vocabulary = vocabulary
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that is complete with this token; special tokens end a pending character.

        Raises DllamaError when the vocabulary has no such id.
        """
        token = token_at(self._vocabulary, token_id)
        if self._vocabulary.kinds[token_id] not in HIDDEN:
            text = self._decoder.decode(token)
            # Python's decoder waits for the rest of an encoded surrogate, which cannot become a character.
            pending = self._decoder.getstate()[0]
            return text + self.flush() if pending[:1] == b"\xed" and pending[1:] >= b"\xa0" else text
        return self.flush() + ("" if self._skip_special else token.decode("utf-8", "replace"))

    def flush(self) -> str:
        """U+FFFD for a character that stayed incomplete, else nothing; afterwards all is as at the start."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def token_at(vocabulary: Vocabulary, token_id: int) -> bytes:
    """Bytes of one token. Raises DllamaError when the vocabulary has no such id."""
    if not 0 <= token_id < len(vocabulary.tokens):
        raise DllamaError(
            f"the tokenizer has no token {token_id}, its ids end at {len(vocabulary.tokens) - 1}; "
            "use the tokenizer that belongs to this model",
        )
    return vocabulary.tokens[token_id]
