"""Answers of a given form, through llguidance: a grammar becomes a mask of the tokens that may come next.

Source: https://github.com/guidance-ai/llguidance; its grammars are Lark's with JSON schemas inside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import llguidance
import numpy as np
import numpy.typing as npt

from dllama_gpu.errors import DllamaError
from dllama_gpu.formats.shown import shown_text
from dllama_gpu.tokenizer.tokenizer import Tokenizer

MAX_SCHEMA_CHARACTERS = 256 << 10
# Free white space lets a small model write blanks without end; one fixed form costs nothing.
_JSON_FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_ANY_OBJECT: dict[str, Any] = {"type": "object"}


class GrammarError(DllamaError):
    """A schema that is wrong or says something that cannot be held to."""


def json_rule(schema: Mapping[str, Any] | bool | None) -> str:
    """The right-hand side of a grammar rule for JSON that follows `schema` (None: any object), on one line.

    Raises GrammarError for a schema that is far too long.
    """
    if schema is None or schema is True:
        schema = _ANY_OBJECT
    if schema is False:
        raise GrammarError("the schema is false, which no answer can follow")
    text = json.dumps({**schema, "x-guidance": _JSON_FORM}, ensure_ascii=True)
    if len(text) > MAX_SCHEMA_CHARACTERS:
        raise GrammarError(f"the schema has {len(text)} characters, but at most {MAX_SCHEMA_CHARACTERS} are read")
    return f"%json {text}"


class GrammarConstraint:
    """One answer's way through a grammar. Used by one request, on one thread at a time."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int, end_ids: Sequence[int]) -> None:
        """`end_ids` are tokens that end an answer; the matcher knows the first one alone."""
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._end_ids = list(end_ids)
        self._bits = np.zeros((vocab_size + 31) // 32, np.uint32)

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Which tokens (vocab_size,) may come next, end tokens among them where the grammar allows an end.

        Raises DllamaError when the grammar turns out too complex.
        """
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        bits = np.unpackbits(self._bits.view(np.uint8), bitorder="little")
        allowed = bits[: self._vocab_size].astype(np.bool_)
        allowed[self._end_ids] = allowed[self._end_ids[0]]
        return allowed

    def advance(self, token: int) -> None:
        """The token was chosen. Raises DllamaError when the grammar does not allow it or becomes too complex."""
        self._matcher.consume_token(token)
        self._check()

    @property
    def is_complete(self) -> bool:
        """Whether nothing but an end can follow."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(f"the answer's grammar failed: {_first_line(self._matcher.get_error())}")


class Grammars:
    """Makes constraints for one vocabulary. May be used by several threads at a time."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        wrapper = llguidance.TokenizerWrapper(_Vocabulary(tokenizer))
        # A vocabulary without an end gets one behind its last token, which no mask ever shows.
        self._end_ids = list(tokenizer.eos_ids) or [tokenizer.vocab_size]
        self._mask_size = max(tokenizer.vocab_size, 1 + max(self._end_ids))
        # Releases before 1.7, the last for older Linux systems, take one end token only.
        self._tokenizer = llguidance.LLTokenizer(wrapper, n_vocab=self._mask_size, eos_token=self._end_ids[0])
        self._limits = llguidance.LLParserLimits(verbose_errors=False)

    def constraint(self, grammar: str) -> GrammarConstraint:
        """A constraint for a Lark grammar. Takes up to a second for a huge one.

        Raises GrammarError when it is wrong, says something that cannot be held to, or is too complex.
        """
        matcher = llguidance.LLMatcher(
            self._tokenizer, llguidance.LLMatcher.grammar_from_lark(grammar), log_level=0, limits=self._limits
        )
        if matcher.is_error():
            raise GrammarError(_first_line(matcher.get_error()))
        return GrammarConstraint(matcher, self._mask_size, self._end_ids)


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        size = tokenizer.vocab_size
        self._tokenizer = tokenizer
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(size)]
        self.special_token_ids = [token_id for token_id in range(size) if tokenizer.is_special(token_id)]
        self.bos_token_id = tokenizer.bos_id
        self.eos_token_id = tokenizer.eos_ids[0] if tokenizer.eos_ids else size
        if not tokenizer.eos_ids:
            self.tokens.append(b"</end>")
            self.special_token_ids.append(size)

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        return self._tokenizer.encode(text, add_bos=False, parse_special=False)


def _first_line(message: str) -> str:
    return shown_text(message.strip().partition("\n")[0]) or "no reason given"
