"""`dllama-gpu plan` on described clusters: no machine, no weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from dllama_gpu.cli.arguments import Parser
from dllama_gpu.cli.cluster_options import add_cluster_arguments
from tests.support.tiny import TinyModel
from tests.unit.cli.conftest import Run

EXAMPLE = Path(__file__).parents[3] / "examples" / "cluster.toml"
NAMES = ["desktop", "pi1", "pi2", "pi3", "pi4"]


def test_the_described_cluster_is_planned_on_standard_output(run: Run, tiny: TinyModel) -> None:
    done = run("plan", "--model", tiny.model, "--dry-run", EXAMPLE)
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert [line.split()[0] for line in lines[:7]] == ["node", *NAMES, "all"]
    assert sum(" - " in line for line in lines) == 10
    for label in ("decode", "prefill", "slowest", "best nodes", "advice"):
        assert sum(line.startswith(label + " ") for line in lines) == 1
    # A model this small is computed before the first byte of an exchange arrives.
    assert "leave out pi1, pi2, pi3 and pi4" in done.out


def test_shares_by_hand_sizes_and_formats_change_the_plan(run: Run, tiny: TinyModel) -> None:
    plain = run("plan", "--model", tiny.model, "--dry-run", EXAMPLE).out
    for more in (
        ["--ratio", "1,0,0,0,1"],
        ["--max-seq-len", 8],
        ["--slots", 3],
        ["--buffer-float-type", "f32"],
    ):
        changed = run("plan", "--model", tiny.model, "--dry-run", EXAMPLE, *more)
        assert changed.status == 0
        assert changed.out != plain
    by_hand = run("plan", "--model", tiny.model, "--dry-run", EXAMPLE, "--ratio", "1,0,0,0,1").out.splitlines()
    assert by_hand[2].split()[1:5] == ["0", "0", "0", "0"]


@pytest.mark.parametrize(
    ("ratio", "status", "sentence"),
    [
        ("1,x", 2, "--ratio: '1,x' is no list of shares like 4,1,1"),
        ("0,0", 2, "--ratio: '0,0' is no list of shares"),
        ("1,nan", 2, "--ratio: '1,nan' is no list of shares"),
        ("1,1", 1, "the ratio has 2 shares for 5 nodes; give one a node"),
    ],
)
def test_a_ratio_that_cannot_be_meant_is_refused(
    run: Run, tiny: TinyModel, ratio: str, status: int, sentence: str
) -> None:
    done = run("plan", "--model", tiny.model, "--dry-run", EXAMPLE, "--ratio", ratio)
    assert (done.status, done.out) == (status, "")
    assert sentence in done.err


def test_a_cluster_without_the_memory_says_how_much_is_missing(run: Run, tiny: TinyModel, tmp_path: Path) -> None:
    small = tmp_path / "small.toml"
    small.write_text('[[node]]\nname = "clock"\nmemory = "60kB"\nspeed = "1MB/s"\nprefill = "1MFLOPS"\n')
    done = run("plan", "--model", tiny.model, "--dry-run", small)
    assert done.status == 1
    assert "clock" in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "which cluster? --workers names machines, --dry-run a file"),
        (["--dry-run", EXAMPLE, "--workers", "pi1"], "--workers is about machines, --dry-run needs none"),
        (["--dry-run", EXAMPLE, "--max-memory", "1G"], "--max-memory is about machines, --dry-run needs none"),
        (["--dry-run", EXAMPLE, "--pin-threads"], "--pin-threads is about machines, --dry-run needs none"),
        (["--workers", "pi1", "--ratio", "1,1,1"], "--ratio has 3 shares, but there are 2 nodes"),
    ],
)
def test_a_cluster_is_either_measured_or_described(
    run: Run, tiny: TinyModel, options: list[object], sentence: str
) -> None:
    done = run("plan", "--model", tiny.model, *options)
    assert (done.status, done.out) == (2, "")
    assert sentence in done.err


@pytest.mark.parametrize("written", [["a:1", "b:2"], ["a:1,b:2"], ["a:1,", "b:2"]])
def test_workers_are_named_behind_spaces_or_commas(written: list[str]) -> None:
    parser = Parser("dllama-gpu plan")
    add_cluster_arguments(parser)
    assert parser.parse_args(["--workers", *written]).workers == ["a:1", "b:2"]
