"""Byte-pair vocabularies, through tiktoken."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import tiktoken

from dllama_gpu.tokenizer.pretokenizer import PreTokenizer

_MAX_CHUNK = 1 << 16
# Where every family in `pretokenizer` cuts, whatever stands around: before a space and a Latin, Greek or Cyrillic
# letter, after a single line break, between a Chinese character and punctuation.
_SAFE_CUT = re.compile(r"\S(?= [A-Za-zÀ-ÖØ-öø-ʯΑ-ΡΣ-Ωα-ωА-я])|\S\n(?=[^\s/])|[一-龥](?=[、。，！？；：])")
_NO_TOKEN = -1


class BytePairEncoder:
    """Text to ids by merging the best-ranked pair of neighbours first, inside pre-tokenized words.

    tiktoken merges two neighbours when their join is a token, where the reference implementations look the pair up in
    the list of merges. For the vocabularies that training makes the two agree: a token's own bytes, merged by rank,
    end in the very pair that the list names for it.

    A text of more than 65,536 characters is encoded in chunks that end where a word ends, which changes nothing;
    only a stretch of that length without any such place is cut in the middle. This keeps time and the regular
    expression's stack bounded for any input.
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        merge_order: Sequence[int],
        pre_tokenizer: PreTokenizer,
        unknown_id: int | None = None,
    ) -> None:
        """`merge_order` lists the ids that plain text may become, best merge first; single bytes at any place.

        Bytes that no token spells become `unknown_id`, or nothing where that is None, as in the reference
        implementations (SmolLM2 has no token for 21 bytes: a few control characters and such as UTF-8 never uses).
        """
        ranks: dict[bytes, int] = {}
        ids: list[int] = []
        for token_id in merge_order:
            if ranks.setdefault(tokens[token_id], len(ids)) == len(ids):
                ids.append(token_id)
        for byte in range(256):
            if ranks.setdefault(bytes([byte]), len(ids)) == len(ids):
                ids.append(_NO_TOKEN if unknown_id is None else unknown_id)
        self._ids = ids
        self._may_drop = _NO_TOKEN in ids
        self._rank_is_id = all(token_id == rank for rank, token_id in enumerate(ids))
        self._encoding = tiktoken.Encoding(
            pre_tokenizer.name,
            pat_str=pre_tokenizer.pattern,
            mergeable_ranks=ranks,
            special_tokens={},
        )

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, in which nothing is special."""
        ranks = [rank for chunk in _chunks(text) for rank in self._encoding.encode_ordinary(chunk)]
        if self._rank_is_id:
            return ranks
        ids = list(map(self._ids.__getitem__, ranks))
        return [token_id for token_id in ids if token_id != _NO_TOKEN] if self._may_drop else ids


def _chunks(text: str) -> Iterator[str]:
    """`text` in parts of at most `_MAX_CHUNK` characters."""
    start = 0
    while len(text) - start > _MAX_CHUNK:
        end = _last_safe_cut(text, start, start + _MAX_CHUNK)
        yield text[start:end]
        start = end
    yield text[start:]


def _last_safe_cut(text: str, start: int, end: int) -> int:
    for begin in (max(start, end - 2048), start):
        cut = 0
        for match in _SAFE_CUT.finditer(text, begin, end):
            cut = match.end()
        if cut:
            return cut
    return end
