"""A tokenizer out of a `.t` file, which says neither how text is cut nor which tokens are special.

The rules (also in `docs/tokenizers.md`):

1. **SentencePiece or byte-pair.** A SentencePiece vocabulary with byte fallback holds, at 256 ids in a row, the bytes
   0x00 to 0xFF in order and with one same score (or their spellings `<0x00>` to `<0xFF>`). A byte-pair vocabulary never
   does.
2. **Merge order.** The higher score merges first; converters write −id or −rank. A score of −1e10 or less is never
   merged, by the original neither; −2^101 marks text that was added as a whole (`convert gguf` writes that).
3. **Special tokens.** BOS and EOS; and every token that has the shape of a tag (`<…>`, `[…]`) and that no merge can
   make, because no two better-scored tokens join to it (`</div>` can be made in a vocabulary that learned it,
   `<|im_end|>` cannot). Where BOS lies in the upper half of the ids, all tokens from there on that no merge can make
   were added after training: tags are special, anything else is text. `<think>` and its like are shown to the reader.
4. **Cutting.** `pretokenizer.detect_pre_tokenizer` reads it from the vocabulary.
5. **Space prefix.** SentencePiece vocabularies get one, as Llama 2's and Mistral's do.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from dllama_gpu.tokenizer.byte_pair import BytePairEncoder
from dllama_gpu.tokenizer.pretokenizer import detect_pre_tokenizer
from dllama_gpu.tokenizer.sentence_piece import SPACE, SentencePieceEncoder
from dllama_gpu.tokenizer.t_file import TokenizerFile
from dllama_gpu.tokenizer.tokenizer import Tokenizer
from dllama_gpu.tokenizer.vocabulary import SpacePrefix, TokenKind, Vocabulary, is_tag, with_known_ends

NEVER_MADE = -(2.0**100)
"""Our score for a byte-pair token that text never becomes, or that is special."""
TAKEN_WHOLE = -(2.0**101)
"""Our score for a byte-pair token that was added as a whole: its text, wherever it stands, is this token."""
_LOWEST_MERGED = -1e10

_SHOWN_TAGS = frozenset(
    f"<{slash}{name}>".encode() for name in ("think", "tool_call", "tool_response") for slash in ("", "/")
)
_BYTES = [bytes([byte]) for byte in range(256)]
_SPELLED_BYTES = [b"<0x%02X>" % byte for byte in range(256)]


def tokenizer_from_t_file(file: TokenizerFile) -> Tokenizer:
    """A tokenizer by the rules above. Raises DllamaError when the vocabulary cannot be used."""
    first_byte = _byte_run(file)
    kinds = _kinds(file, first_byte)
    tokens = file.tokens
    if first_byte is not None:
        plain = [token.replace(SPACE.encode(), b" ") for token in tokens]
        tokens = (*plain[:first_byte], *_BYTES, *plain[first_byte + 256 :])
    vocabulary = Vocabulary(
        tokens=tokens,
        kinds=kinds,
        bos_id=file.bos_id,
        eos_ids=with_known_ends(file.eos_ids, tokens, kinds),
        add_bos=file.add_bos and file.bos_id is not None,
        space_prefix=SpacePrefix.NONE if first_byte is None else SpacePrefix.EACH,
        chat_template=file.chat_template,
    )
    if first_byte is not None:
        return Tokenizer(vocabulary, SentencePieceEncoder(tokens, kinds, file.scores))
    pre_tokenizer = detect_pre_tokenizer(tokens)
    return Tokenizer(
        vocabulary,
        BytePairEncoder(tokens, _merge_order(file.scores, kinds), pre_tokenizer, vocabulary.unknown_id),
    )


def _merge_order(scores: Sequence[float], kinds: Sequence[TokenKind]) -> list[int]:
    """Ids that text may become, best score first, equal scores by id."""
    merged = [
        token_id
        for token_id, kind in enumerate(kinds)
        if kind is TokenKind.NORMAL and scores[token_id] > _LOWEST_MERGED
    ]
    return sorted(merged, key=lambda token_id: -scores[token_id])


def _byte_run(file: TokenizerFile) -> int | None:
    """The id of byte 0x00 in a SentencePiece vocabulary, None for a byte-pair one."""
    for spellings in (_BYTES, _SPELLED_BYTES):
        for start in _positions(file.tokens, spellings[0]):
            run = slice(start, start + 256)
            if list(file.tokens[run]) != spellings:
                continue
            if spellings is _SPELLED_BYTES or all(left == right for left, right in pairwise(file.scores[run])):
                return start
    return None


def _positions(tokens: Sequence[bytes], token: bytes) -> list[int]:
    return [token_id for token_id, candidate in enumerate(tokens) if candidate == token]


def _kinds(file: TokenizerFile, first_byte: int | None) -> tuple[TokenKind, ...]:
    scores = dict(zip(file.tokens, file.scores, strict=True))
    n_tokens = len(file.tokens)
    added_from = file.bos_id if file.bos_id is not None and 2 * file.bos_id >= n_tokens else n_tokens
    kinds = [TokenKind.NORMAL] * n_tokens
    for token_id, (token, score) in enumerate(zip(file.tokens, file.scores, strict=True)):
        if first_byte is None and score == TAKEN_WHOLE:
            kinds[token_id] = TokenKind.USER_DEFINED
        elif (b">" in token or b"]" in token) and is_tag(token.decode("utf-8", "replace")):
            if not _can_be_made(token, scores):
                kinds[token_id] = _tag_kind(token)
        elif token_id >= added_from and score != NEVER_MADE and not _can_be_made(token, scores):
            kinds[token_id] = TokenKind.USER_DEFINED
    if first_byte is not None:
        kinds[first_byte : first_byte + 256] = [TokenKind.BYTE] * 256
    for control_id in (*(() if file.bos_id is None else (file.bos_id,)), *file.eos_ids):
        kinds[control_id] = TokenKind.CONTROL
    return tuple(kinds)


def _tag_kind(tag: bytes) -> TokenKind:
    if tag in _SHOWN_TAGS:
        return TokenKind.USER_DEFINED
    return TokenKind.UNKNOWN if tag == b"<unk>" else TokenKind.CONTROL


def _can_be_made(token: bytes, scores: dict[bytes, float]) -> bool:
    """Whether two tokens with better scores join to `token`."""
    score = scores[token]
    return any(
        scores.get(token[:cut], score) > score and scores.get(token[cut:], score) > score
        for cut in range(1, len(token))
    )
