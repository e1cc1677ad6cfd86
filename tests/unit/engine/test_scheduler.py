from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dllama_gpu.engine.scheduler import (
    Portion,
    Running,
    Slot,
    SlotChoice,
    StepLimits,
    choose_slot,
    common_prefix,
    is_worth_waiting,
    next_in_queue,
    plan_step,
    prompt_rows_within,
    share_rows,
)

LIMITS = StepLimits(max_rows=128, max_logit_rows=16, prompt_rows_beside_texts=64)


def text(slot: int, n_draft: int = 0, last_step: int = 0) -> Running:
    return Running(slot, 1, n_draft, last_step)


def prompt(slot: int, n_missing: int, last_step: int = 0) -> Running:
    return Running(slot, n_missing, 0, last_step)


@st.composite
def many_running(draw: st.DrawFn) -> list[Running]:
    n = draw(st.integers(1, 20))
    return [
        Running(
            slot,
            missing := draw(st.sampled_from([1, 1, 1, 2, 15, 16, 17, 300])),
            draw(st.integers(0, 8)) if missing == 1 else 0,
            draw(st.integers(-1, 9)),
        )
        for slot in range(n)
    ]


limits = st.builds(StepLimits, st.integers(1, 150), st.integers(1, 40), st.integers(1, 150))


@given(many_running(), limits)
def test_a_step_keeps_its_limits_and_always_brings_someone_further(running: list[Running], limits: StepLimits) -> None:
    portions = plan_step(running, limits)
    by_slot = {one.slot: one for one in running}
    assert portions
    assert len({portion.slot for portion in portions}) == len(portions)
    assert sum(portion.n_rows + portion.n_draft for portion in portions) <= limits.max_rows
    assert sum((1 + portion.n_draft) * portion.wants_logits for portion in portions) <= limits.max_logit_rows
    for portion in portions:
        one = by_slot[portion.slot]
        assert 1 <= portion.n_rows <= one.n_missing
        assert 0 <= portion.n_draft <= one.n_draft
        assert portion.wants_logits == (portion.n_rows == one.n_missing)
    prompt_rows = sum(portion.n_rows for portion in portions if not by_slot[portion.slot].is_decoding)
    if any(one.is_decoding for one in running):
        assert prompt_rows <= limits.prompt_rows_beside_texts


@given(many_running(), limits)
def test_texts_that_waited_longest_come_first(running: list[Running], limits: StepLimits) -> None:
    served = {portion.slot for portion in plan_step(running, limits)}
    texts = [one for one in running if one.is_decoding]
    for left_out in (one for one in texts if one.slot not in served):
        assert all(one.last_step <= left_out.last_step for one in texts if one.slot in served)


def test_a_long_prompt_does_not_keep_texts_from_their_rows() -> None:
    assert plan_step([prompt(0, 1000), text(1), text(2)], LIMITS) == (
        Portion(0, 64, 0, wants_logits=False),
        Portion(1, 1, 0, wants_logits=True),
        Portion(2, 1, 0, wants_logits=True),
    )


def test_a_prompt_alone_gets_the_whole_step() -> None:
    assert plan_step([prompt(0, 1000)], LIMITS) == (Portion(0, 128, 0, wants_logits=False),)


def test_a_short_prompt_is_not_held_up_by_a_long_one() -> None:
    assert plan_step([prompt(0, 1000), prompt(1, 20)], LIMITS) == (
        Portion(0, 108, 0, wants_logits=False),
        Portion(1, 20, 0, wants_logits=True),
    )


def test_of_equal_prompts_the_older_ones_are_finished_first() -> None:
    running = [Running(slot, 100, order=order) for slot, order in ((0, 2), (1, 0), (2, 1))]
    assert plan_step(running, LIMITS) == (
        Portion(1, 100, 0, wants_logits=True),
        Portion(2, 28, 0, wants_logits=False),
    )


def test_a_long_prompt_gets_its_half_whatever_comes_after_it() -> None:
    running = [Running(0, 1000, order=0), *(Running(slot, 60, order=slot) for slot in range(1, 9))]
    assert plan_step(running, LIMITS)[0] == Portion(0, 64, 0, wants_logits=False)


def test_guesses_get_what_others_leave_in_turns() -> None:
    few = StepLimits(max_rows=8, max_logit_rows=8, prompt_rows_beside_texts=8)
    portions = plan_step([text(0, 8), text(1, 8), text(2)], few)
    assert [portion.n_draft for portion in portions] == [3, 2, 0]


def test_more_texts_than_rows_take_turns() -> None:
    few = StepLimits(max_rows=2, max_logit_rows=2, prompt_rows_beside_texts=2)
    running = [text(0, last_step=7), text(1, last_step=5), text(2, last_step=6)]
    assert [portion.slot for portion in plan_step(running, few)] == [1, 2]


def test_the_last_row_of_a_prompt_waits_for_room_for_its_logits() -> None:
    tight = StepLimits(max_rows=64, max_logit_rows=1, prompt_rows_beside_texts=64)
    assert plan_step([text(0), prompt(1, 10)], tight) == (
        Portion(0, 1, 0, wants_logits=True),
        Portion(1, 9, 0, wants_logits=False),
    )


@given(st.lists(st.integers(1, 400), max_size=12), st.integers(0, 300))
def test_rows_are_shared_without_waste(wanted: list[int], n_rows: int) -> None:
    given_rows = share_rows(wanted, n_rows)
    assert sum(given_rows) == min(n_rows, sum(wanted))
    assert all(0 <= given <= want for given, want in zip(given_rows, wanted, strict=True))
    if wanted:
        assert given_rows[0] >= min(wanted[0], n_rows // 2)


def test_prompts_get_the_rows_that_the_time_allows_in_whole_tiles() -> None:
    assert prompt_rows_within(0.1, None, 128) == 128
    assert prompt_rows_within(0.1, (0.0, 0.002), 128) == 48
    assert prompt_rows_within(0.1, (0.03, 0.002), 128) == 32
    assert prompt_rows_within(0.1, (0.2, 0.002), 128) == 16
    assert prompt_rows_within(0.1, (0.0, 1e-6), 128) == 128
    assert prompt_rows_within(0.1, (0.0, 1.0), 5) == 5


def test_the_oldest_comes_first_but_clients_take_turns() -> None:
    assert next_in_queue(["a", "a", "b"], []) == 0
    assert next_in_queue(["a", "a", "b"], ["a"]) == 2
    assert next_in_queue(["a", "a", "b"], ["a", "b"]) == 0


def test_a_prompt_takes_the_free_slot_that_holds_most_of_its_beginning() -> None:
    slots = [Slot([1, 2, 9], True), Slot([1, 2, 3, 8], True), Slot([1, 2, 3, 4], False), Slot([], True)]
    assert choose_slot([1, 2, 3, 4, 5], slots) == SlotChoice(1, 3)


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    assert choose_slot([1, 2, 3], [Slot([1, 2, 3, 4], True)]) == SlotChoice(0, 2)
    assert choose_slot([1], [Slot([1], True)]) == SlotChoice(0, 0)


def test_a_long_chat_is_not_given_up_for_a_short_beginning_in_common() -> None:
    chat = Slot(list(range(500)), True, last_step=3)
    assert choose_slot([0, 1, 2, 700], [chat, Slot([], True)]) == SlotChoice(1, 0)
    assert choose_slot([0, 1, 2, 700], [chat]) == SlotChoice(0, 3)
    assert choose_slot([*range(500), 1], [chat, Slot([], True)]) == SlotChoice(0, 500)


def test_of_slots_that_hold_nothing_of_it_the_one_unused_for_longest_is_taken() -> None:
    slots = [Slot([5, 5], True, last_step=9), Slot([6, 6], True, last_step=4), Slot([7, 7], True, last_step=6)]
    assert choose_slot([1, 2], slots) == SlotChoice(1, 0)


def test_without_a_free_slot_there_is_no_choice() -> None:
    assert choose_slot([1], [Slot([1], False)]) is None


SYSTEM = list(range(100, 160))


def test_a_beginning_in_a_busy_slot_is_copied_where_that_can_be_done() -> None:
    slots = [Slot([*SYSTEM, 1, 2], False), Slot([7] * 9, True), Slot([], True)]
    assert choose_slot([*SYSTEM, 5], slots, can_copy=True) == SlotChoice(2, 60, 0)
    assert choose_slot([*SYSTEM, 5], slots) == SlotChoice(2, 0)


def test_a_chat_that_shares_its_beginning_is_copied_from_and_kept() -> None:
    slots = [Slot([*SYSTEM, *range(400)], True), Slot([9], True)]
    assert choose_slot([*SYSTEM, 7], slots, can_copy=True) == SlotChoice(1, 60, 0)
    assert choose_slot([*SYSTEM, 7], slots[:1], can_copy=True) == SlotChoice(0, 60)


def test_what_a_slot_holds_itself_is_not_copied_nor_is_a_little() -> None:
    assert choose_slot([*SYSTEM, 7], [Slot([*SYSTEM, 1], True), Slot([], True)], can_copy=True) == SlotChoice(0, 60)
    slots = [Slot(SYSTEM[:20], False), Slot([], True)]
    assert choose_slot([*SYSTEM, 7], slots, can_copy=True) == SlotChoice(1, 0)


def test_a_request_waits_for_a_beginning_that_is_being_computed() -> None:
    assert is_worth_waiting([*SYSTEM, 1], SlotChoice(0, 10), [[5], [*SYSTEM, 2]])
    assert not is_worth_waiting([*SYSTEM, 1], SlotChoice(0, 40), [[*SYSTEM, 2]])
    assert not is_worth_waiting([*SYSTEM, 1], SlotChoice(0, 0), [])


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_a_common_prefix_is_as_long_as_can_be(first: list[int], second: list[int]) -> None:
    n = common_prefix(first, second)
    assert first[:n] == second[:n]
    assert n == min(len(first), len(second)) or first[n] != second[n]
