"""A vocabulary, wherever it comes from, as a `.t` file."""

from __future__ import annotations

from collections.abc import Sequence

from dllama_gpu.tokenizer.t_file import TokenizerFile
from dllama_gpu.tokenizer.t_vocabulary import NEVER_MADE, TAKEN_WHOLE
from dllama_gpu.tokenizer.vocabulary import PLAIN, TokenKind, Vocabulary, is_tag


def t_file_of(vocabulary: Vocabulary, scores: Sequence[float]) -> TokenizerFile:
    """The `.t` file of a vocabulary whose tokens have these scores.

    A vocabulary without BOS names its first control token, and does not ask for it to be put first.
    """
    bos_id = vocabulary.bos_id
    if bos_id is None:
        bos_id = vocabulary.kinds.index(TokenKind.CONTROL) if TokenKind.CONTROL in vocabulary.kinds else 0
    return TokenizerFile(
        tokens=vocabulary.tokens,
        scores=tuple(scores),
        bos_id=bos_id,
        eos_ids=vocabulary.eos_ids,
        add_bos=vocabulary.add_bos,
        chat_template=vocabulary.chat_template,
    )


def byte_pair_scores(vocabulary: Vocabulary, merge_order: Sequence[int]) -> list[float]:
    """Scores that stand for an order of merges, which a `.t` file does not hold: −rank.

    Tokens that no merge makes get scores that keep them out of all merges.
    """
    scores = list(map(_unranked_score, vocabulary.tokens, vocabulary.kinds))
    for rank, token_id in enumerate(merge_order):
        scores[token_id] = -float(rank)
    return scores


def sentence_piece_scores(vocabulary: Vocabulary, scores: Sequence[float]) -> list[float]:
    """SentencePiece's scores; equal ones of the byte tokens are the mark by which `t_vocabulary` knows such a file."""
    return [0.0 if kind is TokenKind.BYTE else score for score, kind in zip(scores, vocabulary.kinds, strict=True)]


def merge_order(
    texts: Sequence[str], kinds: Sequence[TokenKind], merges: Sequence[str], whole_words: bool
) -> list[int]:
    """Ids that text may become: single bytes, then what each merge (`"left right"`) makes, then words.

    `texts` and `merges` are in the byte alphabet. A token that no merge makes cannot come from text, unless
    `whole_words` says that the family takes words whole.
    """
    ids = {text: token_id for token_id, text in enumerate(texts) if kinds[token_id] in PLAIN}
    order = [token_id for text, token_id in ids.items() if len(text) == 1]
    order += [ids[made] for merge in merges if (made := merge.replace(" ", "", 1)) in ids]
    if whole_words:
        order += ids.values()
    return list(dict.fromkeys(order))


def _unranked_score(token: bytes, kind: TokenKind) -> float:
    added_text = kind is TokenKind.USER_DEFINED and not is_tag(token.decode("utf-8", "replace"))
    return TAKEN_WHOLE if added_text else NEVER_MADE
