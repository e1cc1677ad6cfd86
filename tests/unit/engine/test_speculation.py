from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllama_gpu.engine.drafting import DraftWish, NgramDrafter
from dllama_gpu.engine.speculation import MAX_DRAFT, Speculation, draft_length
from dllama_gpu.engine.step_cost import StepCost


def guesses(tokens: Sequence[int], n: int = 4) -> list[int]:
    return NgramDrafter().draft([DraftWish(0, tokens, n)])[0]


def test_a_text_goes_on_as_after_the_same_tokens_before() -> None:
    assert guesses([1, 2, 3, 4, 5, 6, 9, 2, 3]) == [4, 5, 6, 9]


def test_a_longer_run_counts_more_and_of_equal_ones_the_latest() -> None:
    assert guesses([1, 2, 3, 70, 8, 2, 3, 60, 9, 1, 2, 3], n=1) == [70]
    assert guesses([7, 2, 3, 70, 8, 2, 3, 60, 9, 2, 3], n=1) == [60]


def test_a_loop_is_continued_for_as_long_as_wanted() -> None:
    assert guesses([1, 2, 3, 1, 2, 3, 1, 2], n=7) == [3, 1, 2, 3, 1, 2, 3]
    assert guesses([5, 5, 5, 5], n=3) == [5, 5, 5]


def test_without_a_run_that_was_there_before_nothing_is_guessed() -> None:
    assert guesses([1, 2, 3, 4]) == []
    assert guesses([1]) == []
    assert guesses([3, 1, 4, 1]) == []  # a single token says too little


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 10))
def test_an_index_that_grows_with_the_text_knows_what_a_new_one_knows(tokens: list[int], step: int) -> None:
    drafter = NgramDrafter()
    for n in range(1, len(tokens), step):
        drafter.draft([DraftWish(0, tokens[:n], 5)])
    assert drafter.draft([DraftWish(0, tokens, 5)])[0] == guesses(tokens, 5)


def test_another_text_in_the_same_slot_starts_from_nothing() -> None:
    drafter = NgramDrafter()
    drafter.draft([DraftWish(0, [1, 2, 3, 1, 2], 2)])
    drafter.forget(0)
    assert drafter.draft([DraftWish(0, [8, 9, 1, 2], 2)]) == [[]]


def test_guesses_that_cost_nothing_are_all_worth_it_and_those_that_cost_a_step_never() -> None:
    assert draft_length(0.5, 1, 1.0, 0.0, 8) == 8
    assert draft_length(0.9, 1, 0.0, 1.0, 8) == 0


def test_the_length_is_where_the_next_guess_no_longer_pays() -> None:
    # A step takes 10, a row 1 more: a guess must be right more often than 1 in 11.
    assert draft_length(0.5, 1, 10.0, 1.0, 8) == 3  # 0.5, 0.25, 0.125 > 1/11 > 0.0625
    assert draft_length(0.05, 1, 10.0, 1.0, 8) == 0
    # The same row is worth less where the step gives 10 tokens in 20.
    assert draft_length(0.7, 10, 10.0, 1.0, 8) == 1  # 0.7 > 0.5 > 0.49


def test_the_cost_of_a_step_is_a_line_over_its_rows() -> None:
    cost = StepCost()
    for n_rows in (1, 4, 1, 8, 2):
        cost.add(n_rows, 3.0 + 0.5 * n_rows)
    assert cost.line() == (pytest.approx(3.0), pytest.approx(0.5))


def test_the_cost_is_unknown_while_all_steps_are_alike() -> None:
    cost = StepCost()
    assert cost.line() is None
    for _ in range(10):
        cost.add(4, 1.0)
    assert cost.line() is None


class Always:
    """Guesses zeros; counts how many."""

    name = "zeros"

    def __init__(self) -> None:
        self.n_guesses = 0

    def draft(self, wishes: Sequence[DraftWish]) -> list[list[int]]:
        self.n_guesses += sum(wish.n for wish in wishes)
        return [[0] * wish.n for wish in wishes]

    def forget(self, slot: int) -> None:
        pass


def run(speculation: Speculation, n_steps: int, *, right: bool, base: float, row: float) -> tuple[int, int]:
    """Tokens and guesses of so many steps in which all guesses are right or all wrong."""
    n_tokens = n_drafted = 0
    for _ in range(n_steps):
        draft = speculation.draft([DraftWish(0, [1], MAX_DRAFT)], 1).get(0, [])
        speculation.measured(1 + len(draft), base + row * (1 + len(draft)))
        speculation.checked(0, len(draft), len(draft) if right else 0)
        n_drafted += len(draft)
        n_tokens += 1 + (len(draft) if right else 0)
    return n_tokens, n_drafted


def speculation() -> Speculation:
    made = Speculation(Always(), clock=lambda: 0.0)
    made.start(0)
    return made


def test_right_guesses_are_made_more_of() -> None:
    n_tokens, n_drafted = run(speculation(), 50, right=True, base=10.0, row=1.0)
    assert n_drafted > 50 * MAX_DRAFT * 0.8
    assert n_tokens == 50 + n_drafted


def test_wrong_guesses_are_given_up_but_for_a_trial_now_and_then() -> None:
    made = speculation()
    run(made, 100, right=False, base=10.0, row=1.0)
    _, n_drafted = run(made, 1000, right=False, base=10.0, row=1.0)
    assert 0 < n_drafted < 20


def test_a_text_that_begins_to_repeat_itself_is_noticed() -> None:
    made = speculation()
    run(made, 200, right=False, base=10.0, row=1.0)
    _, n_drafted = run(made, 600, right=True, base=10.0, row=1.0)
    assert n_drafted > 1000


def test_guesses_are_not_worth_it_where_rows_cost_as_much_as_steps() -> None:
    made = speculation()
    run(made, 100, right=True, base=0.0, row=1.0)
    _, n_drafted = run(made, 300, right=True, base=0.0, row=1.0)
    assert n_drafted < 60
