"""The default number of threads."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dllama_gpu.cpu.processors import available_threads, count_cores, default_threads, parse_quota


def test_two_processors_of_one_core_count_once(tmp_path: Path) -> None:
    for processor, siblings in enumerate(["0,4", "1,5", "2,6", "3,7"] * 2):
        folder = tmp_path / f"cpu{processor}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n")
    assert count_cores(set(range(8)), tmp_path) == 4
    assert count_cores({0, 4, 1}, tmp_path) == 2
    assert count_cores({8, 9}, tmp_path) == 2, "processors without a known core count one each"


@pytest.mark.parametrize(
    ("text", "n_processors"),
    [
        ("max 100000\n", sys.maxsize),
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("10000 100000\n", 1),
        ("", sys.maxsize),
        ("1 0", sys.maxsize),
    ],
)
def test_a_container_has_its_quota(text: str, n_processors: int) -> None:
    assert parse_quota(text) == n_processors


def test_the_default_is_possible() -> None:
    assert 1 <= default_threads() <= available_threads()
