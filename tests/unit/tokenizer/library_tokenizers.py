"""Small `tokenizer.json` files of the families that matter, trained on the spot by the `tokenizers` library itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from dllama_gpu.tokenizer.pretokenizer import PRE_TOKENIZERS
from tests.unit.tokenizer.small_vocabularies import CORPUS

BOS, EOS, THINK = "<|begin_of_text|>", "<|eot_id|>", "<think>"


def _byte_level(pre_tokenizer: Any, **model: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS.splitlines(keepends=True), trainer)
    tokenizer.add_special_tokens([BOS, EOS])
    tokenizer.add_tokens([AddedToken(THINK, normalized=False), AddedToken("        ", normalized=False)])
    return tokenizer


def _split(family: str) -> Any:
    split = pre_tokenizers.Split(Regex(PRE_TOKENIZERS[family].pattern), "isolated", invert=False)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def llama3() -> Tokenizer:
    tokenizer = _byte_level(_split("llama-bpe"), ignore_merges=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def qwen() -> Tokenizer:
    tokenizer = _byte_level(_split("qwen2"))
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def smollm() -> Tokenizer:
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    return _byte_level(pre_tokenizers.Sequence(steps))


def deepseek() -> Tokenizer:
    digits = pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated", invert=False)
    asian = pre_tokenizers.Split(Regex(r"[一-龥぀-ゟ゠-ヿ]+"), "isolated", invert=False)
    words = pre_tokenizers.Split(
        Regex(
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        "isolated",
        invert=False,
    )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return _byte_level(pre_tokenizers.Sequence([digits, asian, words, byte_level]))


def _sentence_piece(model: Any, trainer: Any) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.train_from_iterator(CORPUS.splitlines(), trainer)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def _llama2_like() -> Tokenizer:
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=specials, show_progress=False)
    trained = _sentence_piece(models.BPE(), trainer)
    definition = json.loads(trained.to_str())
    definition["model"] |= {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    definition["added_tokens"] = definition["added_tokens"][:3]
    return Tokenizer.from_str(json.dumps(definition))


def llama2() -> Tokenizer:
    """With the prefix as a normalizer: before every stretch between special tokens."""
    tokenizer = _llama2_like()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    definition = json.loads(tokenizer.to_str())
    definition["pre_tokenizer"] = None
    return Tokenizer.from_str(json.dumps(definition))


def mistral() -> Tokenizer:
    """With the prefix before the text's beginning alone."""
    tokenizer = _llama2_like()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


def gemma() -> Tokenizer:
    """Without any prefix."""
    tokenizer = _llama2_like()
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return tokenizer


def unigram() -> Tokenizer:
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer = _sentence_piece(models.Unigram(), trainer)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    return tokenizer


FAMILIES: dict[str, Callable[[], Tokenizer]] = {
    maker.__name__: maker for maker in (llama3, qwen, smollm, deepseek, llama2, mistral, gemma, unigram)
}


@cache
def library_tokenizer(family: str) -> Tokenizer:
    return FAMILIES[family]()


def write_tokenizer_folder(folder: Path, family: str, **config: Any) -> Path:
    """Writes `tokenizer.json` and `tokenizer_config.json`; returns the path of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    byte_level = family in ("llama3", "qwen", "smollm", "deepseek")
    names = (
        {"bos_token": BOS, "eos_token": EOS} if byte_level else {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(names | config), encoding="utf-8")
    path = folder / "tokenizer.json"
    path.write_text(library_tokenizer(family).to_str(), encoding="utf-8")
    return path
