r"""How byte-pair vocabularies cut text into words before any merge: one regular expression a family.

tiktoken takes a single expression whose matches must cover the text. Families that were trained with several splits in
a row (each isolates its matches, and all pieces go on to the next) are written here as one expression that cuts at the
same places; `tests/unit/tokenizer/test_pretokenizer.py` compares each with the plain sequence of splits.

Sources: the `pre_tokenizer` entries of the models' `tokenizer.json`. Names: those of GGUF's `tokenizer.ggml.pre`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreTokenizer:
    """A family's way of cutting text."""

    name: str
    pattern: str
    """Regular expression for tiktoken; its matches cover every text."""
    whole_words: bool = False
    """A word that is a token is taken whole, whatever the merges would make of it (`ignore_merges`)."""


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS_AND_SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

_LLAMA3 = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}|{_SYMBOLS_AND_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}|{_SYMBOLS_AND_SPACES}"
_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# Every digit alone, then GPT-2. A digit ends the text as GPT-2 sees it, so spaces before one stay together.
_SMOLLM = r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"

_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# In DeepSeek's sequences a later split also cuts the matches of earlier ones, so characters of the later class
# (Asian scripts) make pieces of their own inside words, and a space stays alone before one of the other class.
_ASIAN = r"一-龥ࠀ-一가-퟿"
_DEEPSEEK_CODER = (
    rf"[\r\n]|[\s--[{_ASIAN}]]?[\p{{L}}--[{_ASIAN}]]+|[\s&&[{_ASIAN}]]?[\p{{L}}&&[{_ASIAN}]]+"
    rf"|[\s--[{_ASIAN}]]?[\p{{P}}--[{_ASIAN}]]+|[\s&&[{_ASIAN}]]?[\p{{P}}&&[{_ASIAN}]]+"
    r"|\s(?=[\p{L}\p{P}])|\p{N}"
    rf"|(?:(?!\s[\p{{L}}\p{{P}}])[[{_ASIAN}]--[\p{{L}}\p{{P}}\p{{N}}]])+"
    rf"|(?:(?!\s[\p{{L}}\p{{P}}])[^\r\n\p{{L}}\p{{P}}\p{{N}}{_ASIAN}])+"
)

# Up to three digits; Chinese and Japanese runs; then words, symbols and spaces inside and between those.
_CJK = r"一-龥぀-ゟ゠-ヿ"
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}|[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
    rf"|[^\r\n\p{{L}}\p{{P}}\p{{S}}\p{{N}}{_CJK}]?[[\p{{L}}\p{{M}}]--[{_CJK}]]+"
    rf"|[[{_CJK}]--[\p{{L}}\p{{P}}\p{{S}}]]?[[\p{{L}}\p{{M}}]&&[{_CJK}]]+"
    rf"| ?[[\p{{P}}\p{{S}}]--[{_CJK}]]+[\r\n]*|[[\p{{P}}\p{{S}}]&&[{_CJK}]]+"
    rf"|\s*[\r\n]+|\s+(?![^\s\p{{N}}{_CJK}])|\s+"
    rf"|(?:[^\s\p{{L}}\p{{M}}\p{{N}}\p{{P}}\p{{S}}{_CJK}](?![[\p{{L}}\p{{M}}]--[{_CJK}]]))+"
    rf"|(?:[[{_CJK}]--[\p{{L}}\p{{M}}\p{{P}}\p{{S}}]](?![[\p{{L}}\p{{M}}]&&[{_CJK}]]))+"
)

_FAMILIES = (
    (PreTokenizer("llama-bpe", _LLAMA3, whole_words=True), ("llama3", "llama-v3", "falcon3")),
    (PreTokenizer("dbrx", _LLAMA3), ("smaug-bpe", "chatglm-bpe")),
    (PreTokenizer("qwen2", _QWEN2), ("deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan")),
    (PreTokenizer("gpt-2", _GPT2), ("phi-2", "mpt", "olmo", "jais", "gigachat", "roberta-bpe")),
    (PreTokenizer("smollm", _SMOLLM), ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")),
    (PreTokenizer("tekken", _TEKKEN, whole_words=True), ()),
    (PreTokenizer("deepseek-coder", _DEEPSEEK_CODER), ()),
    (PreTokenizer("deepseek-v3", _DEEPSEEK_V3), ("hunyuan-dense",)),
)
PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    name: family for family, aliases in _FAMILIES for name in (family.name, *aliases)
}

_DIGITS = re.compile(rb" ?(\d+)")
_GLUED = re.compile(rb"[!-&(-/:-@\[-`{-~][A-Za-z]{2,}")
_DEEPSEEK_BOS = "<｜begin▁of▁sentence｜>".encode()


def named_pre_tokenizer(name: str | None, tokens: Iterable[bytes]) -> PreTokenizer:
    """The family that a GGUF file names in `tokenizer.ggml.pre`.

    A name that is missing, `default` or unknown is replaced by what the vocabulary itself shows, with a warning.
    """
    if name is not None and name in PRE_TOKENIZERS:
        return PRE_TOKENIZERS[name]
    family = detect_pre_tokenizer(tokens)
    _log.warning(
        "the tokenizer's splitting rule %r is not known here; its vocabulary looks like %r, which is used instead; "
        "text may be cut a little differently from how the model learned it",
        name,
        family.name,
    )
    return family


def detect_pre_tokenizer(tokens: Iterable[bytes]) -> PreTokenizer:
    """The family that a vocabulary was trained with, read from the vocabulary: merges never cross a cut.

    =========================  =======================  ===========================================================
    longest run of digits      symbol glued to letters  family (in brackets: where `<｜begin▁of▁sentence｜>` shows
    that is a token            (`.get`) is a token      that the vocabulary is DeepSeek's own)
    =========================  =======================  ===========================================================
    1                          yes                      qwen2
    1                          no                       smollm (deepseek-coder)
    2, 3                       yes                      llama-bpe (deepseek-v3)
    2, 3                       no                       gpt-2
    4 and more                 either                   gpt-2
    =========================  =======================  ===========================================================
    """
    n_tokens = n_glued = longest = 0
    deepseek_bos: int | None = None
    for token_id, token in enumerate(tokens):
        n_tokens += 1
        n_glued += _GLUED.fullmatch(token) is not None
        if (digits := _DIGITS.fullmatch(token)) is not None:
            longest = max(longest, len(digits[1]))
        if token == _DEEPSEEK_BOS:
            deepseek_bos = token_id
    glued = n_glued * 10_000 > n_tokens  # a handful of oddities among 50,000 tokens is not a habit
    if longest >= 4 or (longest > 1 and not glued):
        return PRE_TOKENIZERS["gpt-2"]
    if longest > 1:
        # Models distilled into Llama 3 carry DeepSeek's token too, but not first.
        return PRE_TOKENIZERS["deepseek-v3" if deepseek_bos == 0 else "llama-bpe"]
    if glued:
        return PRE_TOKENIZERS["qwen2"]
    return PRE_TOKENIZERS["smollm" if deepseek_bos is None else "deepseek-coder"]
