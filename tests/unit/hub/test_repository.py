"""Choosing the files of a repository, and the command that fetches them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from dllama_gpu.cli.main import main
from dllama_gpu.errors import DllamaError
from dllama_gpu.hub.catalogue import HUB_MODELS, part_names
from dllama_gpu.hub.client import HubClient
from dllama_gpu.hub.repository import HubName, parse_hub_name, select_files
from tests.support.hf_models import write_hf_folder
from tests.support.hub_server import Hub, Served, serve_hub
from tests.support.models import small_spec
from tests.support.tiny import write_tiny_gguf, write_tiny_model
from tests.unit.tokenizer.library_tokenizers import write_tokenizer_folder

_INDEX = "model.safetensors.index.json"
_SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
_PARTS = ["a-Q8_0-00001-of-00002.gguf", "a-Q8_0-00002-of-00002.gguf"]
SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub({}) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running


def listing(files: Sequence[object]) -> dict[str, object]:
    return {"sha": SHA, "siblings": [{"rfilename": file} for file in files]}


def put(hub: Hub, repository: str, folder: Path) -> None:
    """Serves a folder as a repository."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    hub.listings[repository] = listing([path.name for path in files])
    for path in files:
        git = path.suffix not in (".safetensors", ".gguf", ".m")
        hub.files[f"{repository}/{path.name}"] = Served(path.read_bytes(), "git" if git else None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf:org/repo", HubName("org/repo")),
        ("hf:org/repo-1.5_b:a/b.Q4_0.gguf", HubName("org/repo-1.5_b", "a/b.Q4_0.gguf")),
    ],
)
def test_names_are_read(text: str, expected: HubName) -> None:
    assert parse_hub_name(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "org/repo",
        "hf:",
        "hf:repo",
        "hf:a/b/c",
        "hf:../x",
        "hf:a/..",
        "hf:a/b:../x",
        "hf:a/b:/etc/x",
        "hf:a/b:c\n",
        "hf:a b/c",
    ],
)
def test_names_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(DllamaError, match="is no name"):
        parse_hub_name(text)


@pytest.mark.parametrize(
    ("files", "name", "expected", "model"),
    [
        (
            ["README.md", "config.json", "model.safetensors", "tokenizer.json", "onnx/model.onnx", "x.gguf"],
            None,
            ["config.json", "tokenizer.json", "model.safetensors"],
            None,
        ),
        (
            ["config.json", _INDEX, *_SHARDS, "consolidated.safetensors", "pytorch_model.bin"],
            None,
            ["config.json", _INDEX, *_SHARDS],
            None,
        ),
        (["a.Q8_0.gguf", "a.Q4_K_M.gguf", "a.Q4_0.gguf"], None, ["a.Q4_0.gguf"], "a.Q4_0.gguf"),
        (["a-q4_k_m.gguf", "a-f16.gguf", "mmproj-a-q8_0.gguf"], None, ["a-q4_k_m.gguf"], "a-q4_k_m.gguf"),
        (["a-Q8_0-00002-of-00002.gguf", "a-Q8_0-00001-of-00002.gguf", "a-Q6_K.gguf"], None, _PARTS, _PARTS[0]),
        ([*_PARTS, "a-Q4_0.gguf"], _PARTS[1], _PARTS, _PARTS[0]),
        (["a.gguf", "b/c.Q6_K.gguf"], "b/c.Q6_K.gguf", ["b/c.Q6_K.gguf"], "b/c.Q6_K.gguf"),
        (["../../evil.gguf", "/abs.gguf", "a\\b.gguf", 3, "ok.gguf"], None, ["ok.gguf"], "ok.gguf"),
    ],
)
def test_files_are_chosen(
    hub: Hub, files: list[object], name: str | None, expected: list[str], model: str | None
) -> None:
    hub.listings["org/repo"] = listing(files)
    selection = select_files(HubClient(), HubName("org/repo", name))
    assert (list(selection.files), selection.model, selection.revision) == (expected, model, SHA)


@pytest.mark.parametrize(
    ("answer", "name", "message"),
    [
        (listing(["README.md"]), None, "neither safetensors with a config.json nor GGUF files"),
        (listing(["a-00001-of-00002.gguf"]), None, r"no file a-00002-of-00002\.gguf, one of 2 parts"),
        (listing(["a-99999-of-99999.gguf"]), "a-99999-of-99999.gguf", r"no file a-00001-of-99999\.gguf"),
        (listing(["a-00000-of-00000.gguf"]), "a-00000-of-00000.gguf", "one of 0 parts"),
        (listing(["a.gguf"]), "b.gguf", r"has no file b\.gguf; it has a\.gguf"),
        (b"<html>", None, "something that is no JSON"),
        ([1], None, "does not say which files"),
        ({"siblings": 3}, None, "does not say which files"),
        (None, None, r"does not have it \(HTTP 404\)"),
    ],
)
def test_repositories_without_a_model_are_explained(hub: Hub, answer: object, name: str | None, message: str) -> None:
    hub.listings["org/repo"] = answer
    with pytest.raises(DllamaError, match=message):
        select_files(HubClient(), HubName("org/repo", name))


def test_a_repository_with_safetensors_is_fetched_and_runs(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_hf_folder(tmp_path / "made", small_spec(vocab_size=640), n_files=2)
    write_tokenizer_folder(tmp_path / "made", "smollm")
    put(hub, "org/repo", tmp_path / "made")
    assert main(["download", "hf:org/repo", "--into", str(tmp_path / "models")]) == 0
    (model,) = capsys.readouterr().out.splitlines()
    assert model == str(tmp_path / "models" / "org--repo")
    assert main(["inference", "--model", model, "--prompt", "the river", "--steps", "3", "--no-benchmark"]) == 0
    assert all(f"/resolve/{SHA}/" in path for _, path, _, _ in hub.requests if not path.startswith("/api/"))


def test_a_gguf_file_is_fetched_and_runs(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "made").mkdir()
    write_tiny_gguf(tmp_path / "made" / "tiny.F32.gguf")
    put(hub, "org/repo", tmp_path / "made")
    assert main(["download", "hf:org/repo:tiny.F32.gguf", "--into", str(tmp_path)]) == 0
    (model,) = capsys.readouterr().out.splitlines()
    assert main(["inference", "--model", model, "--prompt", "the", "--steps", "3", "--no-benchmark"]) == 0


def test_files_of_one_name_in_several_folders_are_not_mistaken(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = {"q4/model.gguf": b"GGUF four", "q8/model.gguf": b"GGUF eight"}
    hub.listings["org/repo"] = listing(list(contents))
    hub.files |= {f"org/repo/{name}": Served(content) for name, content in contents.items()}
    for name, content in contents.items():
        assert main(["download", f"hf:org/repo:{name}", "--into", str(tmp_path)]) == 0
        (path,) = capsys.readouterr().out.splitlines()
        assert Path(path).read_bytes() == content


def test_room_for_all_files_is_asked_for_before_the_first(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(2 << 20)
    hub.listings["org/repo"] = listing(_PARTS)
    hub.files |= {f"org/repo/{name}": Served(data) for name in _PARTS}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=(64 << 20) + 3 * (1 << 20)))
    assert main(["download", "hf:org/repo", "--into", str(tmp_path)]) == 1
    assert "with the other files of its model needs 0.00 GB more" in capsys.readouterr().err
    assert hub.n_bytes_asked() == 0


def test_commands_take_a_name_of_the_hub_for_a_model(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLLAMA_GPU_MODELS", str(tmp_path / "models"))
    (tmp_path / "made").mkdir()
    write_tiny_gguf(tmp_path / "made" / "tiny.F32.gguf")
    put(hub, "org/repo", tmp_path / "made")
    command = ["inference", "--prompt", "the", "--steps", "3", "--temperature", "0", "--no-benchmark", "--model"]
    assert main([*command, str(tmp_path / "made" / "tiny.F32.gguf")]) == 0
    wanted = capsys.readouterr().out
    for name in ("hf:org/repo", "hf:org/repo:tiny.F32.gguf"):
        assert main([*command, name]) == 0
        assert capsys.readouterr().out == wanted
    assert (tmp_path / "models" / "org--repo" / "tiny.F32.gguf").is_file()
    assert main([*command, "hf:org/none"]) == 1
    assert "org/none: 127.0.0.1" in capsys.readouterr().err


def test_what_is_here_runs_without_the_hub(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_hf_folder(tmp_path / "made")
    (tmp_path / "made" / "x.Q4_0.gguf").write_bytes(b"GGUF")
    put(hub, "org/repo", tmp_path / "made")
    for name in ("hf:org/repo", "hf:org/repo:x.Q4_0.gguf"):
        assert main(["download", name, "--into", str(tmp_path)]) == 0
    paths = capsys.readouterr().out
    hub.listings.clear()
    hub.files.clear()
    for name in ("hf:org/repo", "hf:org/repo:x.Q4_0.gguf"):
        assert main(["download", name, "--into", str(tmp_path)]) == 0
    assert capsys.readouterr().out == paths
    (tmp_path / "org--repo" / "config.json").write_text("{}")
    assert main(["download", "hf:org/repo", "--into", str(tmp_path)]) == 1


@pytest.mark.parametrize("name", ["llama3-2-1b-instruct-q40", "QWEN3_14B_Q40", "qwen3-30b-a3b-q40"])
def test_a_model_of_the_catalogue_is_put_together(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    model = next(known for known in HUB_MODELS if known.name == name.lower().replace("-", "_"))
    tiny = write_tiny_model(tmp_path)
    data = tiny.model.read_bytes()
    step = -(-len(data) // len(model.model_files))
    for number, part in enumerate(model.model_files):
        hub.files[f"{model.repository}/{part}"] = Served(data[number * step : (number + 1) * step])
    hub.files[f"{model.repository}/{model.tokenizer_file}"] = Served(tiny.tokenizer.read_bytes())
    assert main(["download", name, "--into", str(tmp_path / "models")]) == 0
    weights, tokenizer = capsys.readouterr().out.splitlines()
    assert Path(weights).read_bytes() == data
    assert weights.endswith(f"models/{model.name}/dllama_model_{model.name}.m".replace("/", str(Path("/"))))
    command = ["inference", "--model", weights, "--tokenizer", tokenizer, "--prompt", "the", "--steps", "2"]
    assert main(command) == 0


def test_an_unknown_name_is_answered_with_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "qwen3-8b-q41"]) == 1
    assert "there is no model 'qwen3-8b-q41' to download (did you mean qwen3_8b_q40?)" in capsys.readouterr().err


def test_sizes_in_the_catalogue_are_those_of_the_published_files() -> None:
    published = {
        "llama3_1_8b_instruct_q40": 6.32e9,
        "llama3_1_405b_instruct_q40": 238e9,
        "llama3_2_1b_instruct_q40": 1.7e9,
        "llama3_2_3b_instruct_q40": 3.4e9,
        "llama3_3_70b_instruct_q40": 40e9,
        "deepseek_r1_distill_llama_8b_q40": 6.32e9,
        "qwen3_0.6b_q40": 0.9e9,
        "qwen3_1.7b_q40": 2.2e9,
        "qwen3_8b_q40": 6.7e9,
        "qwen3_14b_q40": 10.9e9,
        "qwen3_30b_a3b_q40": 17.0e9,
    }
    assert {model.name for model in HUB_MODELS} == set(published)
    for model in HUB_MODELS:
        assert model.shape.file_size == pytest.approx(published[model.name], rel=0.09), model.name
        needs = [model.shape.memory_per_node(n) for n in (1, 2, 4, 8)]
        assert needs == sorted(needs, reverse=True)


def test_parts_are_named_as_split_does() -> None:
    assert part_names("x_", 3) == ("x_aa", "x_ab", "x_ac")
    assert part_names("x", 56)[-1] == "xcd"
    assert [len(model.model_files) for model in HUB_MODELS if len(model.model_files) > 1] == [56, 11, 2, 5]
