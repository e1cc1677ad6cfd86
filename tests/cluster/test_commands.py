"""`dllama-gpu inference --workers …` with `dllama-gpu worker` processes, as a user starts them."""

from __future__ import annotations

import io
import json
import re
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from dllama_gpu.cli.main import main
from tests.support.tiny import write_tiny_experts, write_tiny_gguf
from tests.support.worker_command import WorkerCommand

KEY = "a key that is long enough"


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Callable[..., list[str]]]:
    """Starts workers with these options and gives their addresses."""
    started: list[WorkerCommand] = []

    def start(n_workers: int, *options: str) -> list[str]:
        new = [WorkerCommand(tmp_path / f"cache{number}", *options) for number in range(n_workers)]
        started.extend(new)
        return [worker.address for worker in new]

    yield start
    for worker in started:
        assert worker.stop() == 0


def inference(model: Path, addresses: Sequence[str], *options: str) -> int:
    arguments = ["inference", "--model", str(model), "--prompt", "the end", "--steps", "12", "--temperature", "0"]
    arguments += ["--nthreads", "1", "--ignore-eos", "--buffer-float-type", "f32"]
    return main([*arguments, *(["--workers", *addresses] if addresses else []), *options])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """F32 weights, so that the text must be the same."""
    path = tmp_path / "tiny.gguf"
    write_tiny_gguf(path)
    return path


def test_a_mixture_of_experts_with_a_q80_cache_writes_one_nodes_text(
    tmp_path: Path, workers: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "experts.gguf"
    write_tiny_experts(model)
    options = ["--kv-cache-type", "q80", "--device", "cpu"]
    assert inference(model, [], *options) == 0
    expected = capsys.readouterr().out
    addresses = workers(2)
    for ratio in (["--ratio", "2,1,1"], []):
        assert inference(model, addresses, *options, *ratio) == 0
        assert capsys.readouterr().out == expected


def test_the_text_is_that_of_one_node_and_every_node_is_accounted_for(
    model: Path, tmp_path: Path, workers: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert inference(model, [], "--trace", str(tmp_path / "alone.json")) == 0
    expected = capsys.readouterr().out
    assert lanes(tmp_path / "alone.json") == {"0 root": {"step", "compute"}}
    addresses = workers(2)
    f16 = ["--ratio", "1,1,1", "--buffer-float-type", "f16"]
    for options in (f16, ["--ratio", "2,1,1", "--trace", str(tmp_path / "trace.json")], []):
        assert inference(model, addresses, *options) == 0
        shown = capsys.readouterr()
        assert shown.out == expected
        for name in ("root", *addresses):
            assert re.search(rf"^share +{re.escape(name)}: heads ", shown.err, re.MULTILINE)
            assert re.search(rf"^node +{re.escape(name)}: a token computes .* kB, receives ", shown.err, re.MULTILINE)
        assert re.search(r"^slowest +\S+: it computes [0-9.]+ ms a token longer", shown.err, re.MULTILINE)
    assert "expected" in shown.err
    assert "in their caches" in shown.err, "the second start finds its weights"
    kinds = {"step", "compute", "wait", "exchange"}
    assert lanes(tmp_path / "trace.json") == {f"{rank} {name}": kinds for rank, name in enumerate(["root", *addresses])}


def lanes(path: Path) -> dict[str, set[str]]:
    """Names of the lanes in a trace, without their clocks' errors, and the kinds of what happens in each."""
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    names = {event["tid"]: event["args"]["name"].split(" (")[0] for event in events if event["name"] == "thread_name"}
    return {
        name: {event["cat"] for event in events if event["ph"] == "X" and event["tid"] == tid}
        for tid, name in names.items()
    }


def test_the_default_model_on_three_nodes_writes_the_text_of_one(
    smollm2_gguf: Path, workers: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for addresses in ([], workers(2)):
        arguments = ["inference", "--model", str(smollm2_gguf), "--prompt", "The capital of France is", "--steps", "16"]
        # Sums that cross the network unrounded differ from one node's in their order alone.
        arguments += ["--temperature", "0", "--nthreads", "1", "--buffer-float-type", "f32"]
        assert main([*arguments, *(["--workers", *addresses, "--ratio", "5,2,2"] if addresses else [])]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert "Paris" in texts[0]


def test_a_plan_is_measured_and_leaves_the_workers_free(
    model: Path, workers: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    addresses = workers(2)
    plan = ["plan", "--model", str(model), "--nthreads", "1", "--workers", *addresses]
    for options in ([], ["--ratio", "2,1,1"], ["--buffer-float-type", "f32", "--max-seq-len", "16"]):
        assert main([*plan, *options]) == 0
        shown = capsys.readouterr().out
        for name in ("root", *addresses):
            assert re.search(rf"^{re.escape(name)} .* GB/s +[0-9.]+ GFLOPS", shown, re.MULTILINE)
        ways = [f"root - {addresses[0]}", f"root - {addresses[1]}", " - ".join(addresses)]
        for way in ways:
            assert len(re.findall(rf"^{re.escape(way)} ", shown, re.MULTILINE)) == 2, "measured, and its traffic"
        assert re.search(r"^decode +[0-9.]+ tokens/s", shown, re.MULTILINE)
    assert main([*plan, "--max-memory", "1K", "--ratio", "1,1,1"]) == 1
    assert "root" in capsys.readouterr().err
    assert inference(model, addresses, "--ratio", "1,1,1") == 0


def test_perplexity_on_two_nodes(
    model: Path, tmp_path: Path, workers: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the three of them and the end of the story " * 4, encoding="utf-8")
    arguments = ["perplexity", "--model", str(model), "--file", str(text), "--window", "32", "--nthreads", "1"]
    found = []
    for more in ([], ["--workers", *workers(1), "--ratio", "1,1", "--buffer-float-type", "f32"]):
        assert main([*arguments, *more]) == 0
        found.append(float(re.search(r"perplexity +([0-9.]+)", capsys.readouterr().out)[1]))  # type: ignore[index]
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_a_key_lets_in_those_who_know_it(
    model: Path, tmp_path: Path, workers: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    key, other = tmp_path / "key", tmp_path / "other"
    for path, text in ((key, KEY), (other, KEY + "!")):
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
    addresses = workers(1, "--key-file", str(key))
    assert inference(model, addresses, "--ratio", "1,1", "--key-file", str(key)) == 0
    capsys.readouterr()
    for options in ([], ["--key-file", str(other)]):
        assert inference(model, addresses, "--ratio", "1,1", *options) == 1
        error = capsys.readouterr().err
        assert addresses[0] in error
        assert "key" in error


def test_a_worker_that_is_not_there_is_named(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    assert inference(model, [f"127.0.0.1:{port}"]) == 1
    assert f"127.0.0.1:{port}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ratio", "1,1"], "--ratio has a meaning with --workers only"),
        (["--key-file", "k"], "--key-file has a meaning with --workers only"),
        (["--max-memory", "1G"], "--max-memory has a meaning with --workers only"),
        (["--workers", "a:1", "--ratio", "1,1,1"], "--ratio has 3 shares, but there are 2 nodes"),
        (["--workers", "a:1", "--ratio", "1,x"], "no list of shares"),
        (["--workers", "a:1", "--ratio", "0,0"], "not all 0"),
        (["--workers", "a:1", "--worker-timeout", "0"], "out of range"),
        (["--workers", "a:1", "--max-memory", "much"], "is not a size"),
        (["--workers"], "expected at least one argument"),
    ],
)
def test_wrong_options_of_a_root_are_usage_errors(
    model: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert inference(model, [], *options) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("where", "said"), [("", "is a folder"), ("none/trace.json", "there is no folder")])
def test_a_trace_that_cannot_be_written_is_said_before_anything_is_loaded(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str, said: str
) -> None:
    assert inference(model, [], "--trace", str(tmp_path / where)) == 1
    error = capsys.readouterr().err
    assert said in error
    assert "weights" not in error


def test_a_chat_with_workers_says_what_one_node_says(
    model: Path,
    workers: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def chat(*options: str) -> str:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nb\n")))
        arguments = ["chat", "--model", str(model), "--temperature", "0", "--nthreads", "1", "--steps", "4"]
        assert main([*arguments, "--buffer-float-type", "f32", *options]) == 0
        return capsys.readouterr().out

    alone = chat()
    assert alone.count("\n") >= 2
    assert chat("--workers", *workers(2), "--ratio", "1,1,1") == alone
