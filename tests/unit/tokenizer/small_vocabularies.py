"""Small vocabularies, trained on the spot, and a byte-pair oracle that follows the list of merges literally."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import regex
import sentencepiece

from dllama_gpu.tokenizer.byte_alphabet import BYTE_TO_CHARACTER
from dllama_gpu.tokenizer.pretokenizer import PRE_TOKENIZERS
from dllama_gpu.tokenizer.t_file import TokenizerFile

CORPUS = (
    "The lighthouse keeper counted 1024 ships in 1987, and 365 more in 2024; he'd never seen so many. "
    "She said that they've been waiting there, where the river bends, since the day before yesterday.\n"
    "def total(values):\n    result = 0\n    for value in values:\n        result += value.amount\n"
    "    return result\n\n"
    "    self.assertEqual(total(values), 100)\n        print(value.total, result.value)\n"
    '<div class="note">\n  <p>Überall grünt es, déjà vu à la carte; '
    "привет, мир! 今天天气很好，我们去公园。</p>\n</div>\n"
    "Then the keeper of the lighthouse went there, and the others went with her to the other end of the river.\n"
) * 3


@dataclass(frozen=True)
class BytePairVocabulary:
    """A trained vocabulary: merges are pairs of byte strings, best first."""

    merges: tuple[tuple[bytes, bytes], ...]

    @property
    def tokens(self) -> list[bytes]:
        """All single bytes, then what the merges make."""
        return [bytes([byte]) for byte in range(256)] + [left + right for left, right in self.merges]

    def encode(self, words: Sequence[str]) -> list[bytes]:
        """Tokens of pre-split words, by merging the neighbours that come first in the list of merges."""
        ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        return [token for word in words for token in merge_word(word.encode(), ranks)]


def merge_word(word: bytes, ranks: dict[tuple[bytes, bytes], int]) -> list[bytes]:
    parts = [bytes([byte]) for byte in word]
    while True:
        pairs = [ranks.get(pair, len(ranks)) for pair in pairwise(parts)]
        if not pairs or min(pairs) == len(ranks):
            return parts
        at = pairs.index(min(pairs))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def split_words(family: str, text: str) -> list[str]:
    """What a family's expression cuts, by another engine of regular expressions than tiktoken's."""
    return [match.group() for match in regex.finditer(PRE_TOKENIZERS[family].pattern, text, regex.V1)]


@cache
def train_byte_pair(family: str, n_merges: int = 400) -> BytePairVocabulary:
    words = Counter(word.encode() for word in split_words(family, CORPUS))
    parts = {word: [bytes([byte]) for byte in word] for word in words}
    ranks: dict[tuple[bytes, bytes], int] = {}
    while len(ranks) < n_merges:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, count in words.items():
            for pair in pairwise(parts[word]):
                pairs[pair] += count
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        ranks[best] = len(ranks)
        for word, old in parts.items():
            if best in pairwise(old):
                parts[word] = merge_word(word, ranks)
    return BytePairVocabulary(tuple(ranks))


def stored(token: bytes) -> str:
    """A byte-level token as vocabularies store it."""
    return "".join(BYTE_TO_CHARACTER[byte] for byte in token)


def byte_pair_metadata(
    vocabulary: BytePairVocabulary, family: str | None, specials: Sequence[str], **extra: Any
) -> dict[str, Any]:
    """GGUF metadata with the specials (all control tokens) at the end and BOS first among them."""
    tokens = vocabulary.tokens
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [*map(stored, tokens), *specials],
        "tokenizer.ggml.token_type": [1] * len(tokens) + [3] * len(specials),
        "tokenizer.ggml.merges": [f"{stored(left)} {stored(right)}" for left, right in vocabulary.merges],
        "tokenizer.ggml.bos_token_id": len(tokens),
        "tokenizer.ggml.eos_token_id": len(tokens) + 1,
        **({} if family is None else {"tokenizer.ggml.pre": family}),
        **extra,
    }


def write_gguf(path: Path, metadata: Mapping[str, Any]) -> None:
    """A GGUF file that holds this metadata and no tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        match value:
            case list():
                writer.add_array(key, value)
            case str():
                writer.add_string(key, value)
            case bool():
                writer.add_bool(key, value)
            case _:
                writer.add_uint32(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def byte_pair_t_file(vocabulary: BytePairVocabulary, specials: Sequence[str]) -> TokenizerFile:
    """A `.t` file as the original's converter writes it from a Hugging Face tokenizer: scores −id, specials last."""
    tokens = (*vocabulary.tokens, *(special.encode() for special in specials))
    n_regular = len(vocabulary.tokens)
    scores = tuple(-float(token_id) for token_id in range(len(tokens)))
    return TokenizerFile(tokens, scores, bos_id=n_regular, eos_ids=(n_regular + 1,), add_bos=True)


@cache
def train_sentence_piece(*, byte_fallback: bool = True) -> bytes:
    """A serialized model like Llama 2's: `<unk> <s> </s>`, 256 bytes, pieces with scores 0, −1, −2 …"""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=700 if byte_fallback else 400,
        byte_fallback=byte_fallback,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.99,
        minloglevel=2,
    )
    return model.getvalue()


def sentence_piece_metadata(model: bytes, **extra: Any) -> dict[str, Any]:
    """GGUF metadata of a SentencePiece model, as llama.cpp's converter writes it."""
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids = range(library.vocab_size())
    kinds = [
        2 if library.is_unknown(i) else 3 if library.is_control(i) else 6 if library.is_byte(i) else 1 for i in ids
    ]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [library.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [library.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": library.bos_id(),
        "tokenizer.ggml.eos_token_id": library.eos_id(),
        **extra,
    }
