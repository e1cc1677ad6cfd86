"""convert from folders and tokenizers, and inspect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.m_file import MFile
from dllama_gpu.tokenizer import open_tokenizer, read_t_file
from tests.support.hf_models import write_hf_folder
from tests.support.models import small_spec
from tests.support.pth_models import write_llama_folder
from tests.support.tiny import TinyModel
from tests.unit.cli.conftest import Run
from tests.unit.tokenizer.library_tokenizers import write_tokenizer_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Hugging Face folder with a tokenizer."""
    write_hf_folder(tmp_path / "hf", small_spec(vocab_size=640))
    write_tokenizer_folder(tmp_path / "hf", "smollm")
    return tmp_path / "hf"


def test_a_folder_converts_and_runs_as_itself(run: Run, folder: Path, tmp_path: Path) -> None:
    done = run("convert", "hf", folder, "-o", tmp_path / "a.m", "-o", tmp_path / "a.t", "--weights", "f32")
    assert (done.status, done.out.count("read back and compared")) == (0, 2)
    common = ["--prompt", "the river", "--steps", 12, "--temperature", 0, "--buffer-float-type", "f32"]
    converted = run("inference", "--model", tmp_path / "a.m", "--tokenizer", tmp_path / "a.t", *common)
    direct = run("inference", "--model", folder, "--weights", "f32", *common)
    assert converted.status == direct.status == 0
    assert converted.out == direct.out != ""


@pytest.mark.parametrize("weights", ["q40", "q80", "f16"])
def test_a_model_alone_is_converted_too(run: Run, folder: Path, tmp_path: Path, weights: str) -> None:
    done = run("convert", "hf", folder, tmp_path / "a.m", "--weights", weights)
    assert done.status == 0
    assert MFile(tmp_path / "a.m").spec.weight_type.value == weights
    assert [path.name for path in tmp_path.glob("a.*")] == ["a.m"]


def test_a_tokenizer_alone_is_converted(run: Run, folder: Path, tiny_gguf: Path, tmp_path: Path) -> None:
    for number, path in enumerate((folder, folder / "tokenizer.json", tiny_gguf)):
        assert run("convert", "tokenizer", path, "-o", tmp_path / f"{number}.t").status == 0
    text = "def total(values): return 1024"
    assert open_tokenizer(tmp_path / "0.t").encode(text) == open_tokenizer(folder).encode(text)
    assert (tmp_path / "0.t").read_bytes() == (tmp_path / "1.t").read_bytes()
    assert len(read_t_file(tmp_path / "2.t").tokens) == 259


def test_a_folder_from_meta_converts(run: Run, tmp_path: Path) -> None:
    write_llama_folder(tmp_path / "meta", small_spec(), n_files=2, embedding_axis=1)
    assert run("convert", "llama", tmp_path / "meta", tmp_path / "a.m", "--weights", "q80").status == 0
    assert MFile(tmp_path / "a.m").spec == small_spec(weight_type=FloatType.Q80)


def test_a_folder_that_is_none_is_explained(run: Run, tiny: TinyModel, tmp_path: Path) -> None:
    for path, sentence in ((tiny.model, "is a file; give the folder"), (tmp_path / "no", "does not exist; give the")):
        for kind in ("hf", "llama"):
            done = run("convert", kind, path, tmp_path / "a.m")
            assert done.status == 1
            assert sentence in done.err


def test_inspect_shows_a_folder(run: Run, folder: Path) -> None:
    done = run("inspect", folder)
    assert done.status == 0
    lines = {line[:27].strip(): line[27:].strip() for line in done.out.splitlines()}
    assert lines["architecture"] == "llama"
    assert lines["n_kv_heads"] == "2"
    assert lines["BOS"].endswith("'<|begin_of_text|>'")
    assert "and 9 more (--tensors lists them)" in done.out
    assert "layers.1.ffn_norm" in run("inspect", folder, "--tensors").out


def test_inspect_shows_files(run: Run, tiny: TinyModel, tiny_gguf: Path, folder: Path) -> None:
    model = run("inspect", tiny.model)
    assert "q40" in model.out
    assert "no tokenizer:" in model.out
    tokenizer = run("inspect", tiny.tokenizer)
    assert "258 tokens" in tokenizer.out
    assert "| {% for message in messages %}" in tokenizer.out
    assert "architecture" not in tokenizer.out
    assert "tokenizer.ggml.pre" in run("inspect", tiny_gguf, "--metadata").out
    assert "tokenizer" in run("inspect", folder / "tokenizer.json").out


def test_inspect_shows_what_cannot_be_run(run: Run, tmp_path: Path) -> None:
    from tests.support.tiny import write_tiny_gguf

    write_tiny_gguf(tmp_path / "x.gguf", architecture="mamba")
    done = run("inspect", tmp_path / "x.gguf")
    assert done.status == 0
    assert "cannot be run:" in done.out
    assert "'mamba', which is not supported" in done.out
    assert "token_embd.weight" in done.out


def test_inspect_refuses_what_is_neither(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("hello")
    (tmp_path / "empty").touch()
    for path, sentence in (
        (tmp_path / "x", "holds no tokenizer"),
        (tmp_path / "none", "does not exist"),
        (tmp_path / "empty", "is empty"),
        (tmp_path, "neither tokenizer.json nor"),
    ):
        done = run("inspect", path)
        assert done.status == 1
        assert sentence in done.err
    write_hf_folder(tmp_path / "damaged")
    config = json.loads((tmp_path / "damaged" / "config.json").read_text())
    (tmp_path / "damaged" / "config.json").write_text(json.dumps(config | {"hidden_size": 3}))
    assert run("inspect", tmp_path / "damaged").status == 1
