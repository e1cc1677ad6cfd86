from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGMLQuantizationType

from dllama_gpu.engine.loading import build_graph, generation_seq_len, open_with_tokenizer
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.check import check
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.tokenizer import gguf_vocabulary
from tests.support.models import small_spec, write_random_gguf
from tests.support.tiny import VOCAB_SIZE, write_tiny_gguf, write_tiny_model


def test_a_m_file_opens_with_its_tokenizer_and_may_have_more_rows_than_it(tmp_path: Path) -> None:
    files = write_tiny_model(tmp_path)
    with open_with_tokenizer(files.model, files.tokenizer) as model:
        assert model.spec.vocab_size == VOCAB_SIZE
        assert model.tokenizer.vocab_size == 258
        check(build_graph(model.source, GraphOptions()))


def test_a_gguf_file_brings_its_tokenizer(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    with open_with_tokenizer(tmp_path / "tiny.gguf") as model:
        assert model.tokenizer.decode(model.tokenizer.encode("those there")) == "those there"


def test_the_header_of_a_gguf_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr(gguf_vocabulary, "read_gguf_metadata", lambda path: pytest.fail("it is read a second time"))
    with open_with_tokenizer(tmp_path / "tiny.gguf") as model:
        assert model.tokenizer.vocab_size == 259


def test_a_gguf_file_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    sizes = {"dim": 64, "hidden_dim": 96, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 50}
    path = tmp_path / "bare.gguf"
    write_random_gguf(path, **sizes, max_seq_len=32, ggml_type=GGMLQuantizationType.F32, seed=1)
    with pytest.raises(DllamaError, match=r"bare\.gguf cannot be used as a tokenizer: it has no tokenizer"):
        open_with_tokenizer(path)


def test_another_tokenizer_takes_the_place_of_the_one_in_a_gguf_file(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    files = write_tiny_model(tmp_path)
    with open_with_tokenizer(tmp_path / "tiny.gguf", files.tokenizer) as model:
        assert len(model.tokenizer.encode("th")) == 2  # it knows no merge


def test_a_m_file_without_a_tokenizer_says_what_to_give(tmp_path: Path) -> None:
    files = write_tiny_model(tmp_path)
    with pytest.raises(DllamaError, match="--tokenizer"):
        open_with_tokenizer(files.model)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused_with_both_numbers(tmp_path: Path) -> None:
    files = write_tiny_model(tmp_path, n_extra_tokens=31)
    with pytest.raises(DllamaError, match=r"has 289 tokens, but the model .* knows only 288"):
        open_with_tokenizer(files.model, files.tokenizer)


@pytest.mark.parametrize(
    ("n_prompt", "max_tokens", "max_seq_len", "expected"),
    [
        (10, 5, None, 14),  # the last token is never fed
        (10, 1, None, 10),
        (60, 50, None, 64),
        (10, 50, 20, 20),
        (10, 500, 1000, 64),  # never above the model's own
    ],
)
def test_the_context_is_what_the_text_needs_within_the_models(
    n_prompt: int, max_tokens: int, max_seq_len: int | None, expected: int
) -> None:
    assert generation_seq_len(small_spec(max_seq_len=64), n_prompt, max_tokens, max_seq_len) == expected


def test_a_prompt_that_does_not_fit_says_whether_the_option_helps() -> None:
    spec = small_spec(max_seq_len=64)
    with pytest.raises(DllamaError, match="30 tokens, but the context holds 20; shorten it, or raise --max-seq-len"):
        generation_seq_len(spec, 30, 5, 20)
    with pytest.raises(DllamaError, match=r"65 tokens, but the context holds 64; shorten it$"):
        generation_seq_len(spec, 65, 5, None)
