"""Submits that are neither so long that a system resets the GPU, nor more than needed."""

from __future__ import annotations

import itertools

import pytest

from dllama_gpu.vulkan.dispatch import Barrier, Dispatch, Recorded
from dllama_gpu.vulkan.submits import SECONDS, in_submits, should_cut_anew


def items(*works: int) -> list[Recorded]:
    found: list[Recorded] = []
    for work in works:
        found += [Dispatch("shader", (1,), (), b"", (1, 1, 1), work=work), Barrier()]
    return found


def sizes(parts: list[list[Recorded]]) -> list[list[int]]:
    return [[item.work for item in part if isinstance(item, Dispatch)] for part in parts]


def test_parts_have_as_much_work_as_their_time_allows() -> None:
    work = items(3, 3, 0, 3, 3, 0, 0)
    assert sizes(in_submits(work, SECONDS / 2)) == [[3, 3, 0, 3, 3, 0, 0]]
    assert sizes(in_submits(work, 2 * SECONDS)) == [[3, 3, 0], [3, 3, 0, 0]]
    assert sizes(in_submits(work, 4 * SECONDS)) == [[3], [3, 0], [3], [3, 0, 0]]
    assert list(itertools.chain.from_iterable(in_submits(work, 100 * SECONDS))) == work
    assert in_submits([], None) == []


def test_what_was_never_run_is_cut_by_what_a_slow_gpu_does() -> None:
    assert len(in_submits(items(*[10**9] * 8), None)) == 1
    assert len(in_submits(items(*[10**11] * 8), None)) == 8


@pytest.mark.parametrize(
    ("n_submits", "seconds", "known", "wanted"),
    [
        (1, 0.1, None, False),
        (1, 0.9, None, False),
        (1, 1.5, None, True),
        (2, 0.1, None, True),
        (8, 4.0, None, False),
        (8, 1.0, None, True),
        (3, 9.0, 8.0, False),  # dispatches that are too long by themselves
        (3, 9.0, 2.0, True),
        (0, 0.0, None, False),
    ],
)
def test_a_segment_is_cut_anew_where_its_time_is_far_from_what_was_thought(
    n_submits: int, seconds: float, known: float | None, wanted: bool
) -> None:
    assert should_cut_anew(n_submits, seconds, known) is wanted
