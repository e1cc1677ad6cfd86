"""Which rows of which requests a step computes: pure decisions over frozen data.

A running request is a sequence of tokens of which a prefix stands in its KV slot already. What is missing is one token
for a text that is being generated, and many for a prompt; nothing else tells prefill from decode. So a prompt that came
back from the dead (its cluster was rebuilt) needs no rule of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_TILE = 16  # rows that kernels compute at nearly the price of one


@dataclass(frozen=True)
class Running:
    """What the scheduler must know of a request that has a slot.

    `n_missing` tokens, at least 1, are known but not in the KV cache yet; `n_draft` guesses could be checked behind
    them. `last_step` is the step that last computed rows of it; `order` is lower for those that got their slot earlier.
    """

    slot: int
    n_missing: int
    n_draft: int = 0
    last_step: int = -1
    order: int = 0

    @property
    def is_decoding(self) -> bool:
        """Whether a single row brings it one token further."""
        return self.n_missing == 1


@dataclass(frozen=True)
class StepLimits:
    """Most rows of a step, most of them that may want logits, and most rows of prompts beside running texts."""

    max_rows: int
    max_logit_rows: int
    prompt_rows_beside_texts: int


@dataclass(frozen=True)
class Portion:
    """Rows that a step computes for one slot: `n_rows` of the missing ones, then `n_draft` guesses.

    Logits are wanted of the last missing row and of all guesses if `wants_logits`, else of none.
    """

    slot: int
    n_rows: int
    n_draft: int
    wants_logits: bool


def plan_step(running: Sequence[Running], limits: StepLimits) -> tuple[Portion, ...]:
    """Portions of the next step, by slot.

    Texts come first, a row each: who waited longest is served first where there are more of them than rows. Of what is
    left half belongs to the oldest prompt and the rest to those that need least, so that a short prompt is not held up
    by a long one and none by those after it; beside texts all prompts get no more than
    `limits.prompt_rows_beside_texts`, so that those do not stutter. Guesses get what then remains, in turns.
    """
    rows, logit_rows = limits.max_rows, limits.max_logit_rows
    portions: dict[int, Portion] = {}
    waiting_longest = sorted(running, key=lambda one: (one.last_step, one.slot))
    texts = [one for one in waiting_longest if one.is_decoding][: min(rows, logit_rows)]
    for one in texts:
        portions[one.slot] = Portion(one.slot, 1, 0, wants_logits=True)
    rows, logit_rows = rows - len(texts), logit_rows - len(texts)

    prompts = sorted((one for one in running if not one.is_decoding), key=lambda one: (one.order, one.slot))
    prompt_rows = min(rows, limits.prompt_rows_beside_texts) if texts else rows
    for one, n_rows in zip(prompts, share_rows([one.n_missing for one in prompts], prompt_rows), strict=True):
        ends = n_rows == one.n_missing
        if ends and logit_rows == 0:
            n_rows, ends = n_rows - 1, False  # its last row waits for a step that has room for its logits
        if n_rows:
            portions[one.slot] = Portion(one.slot, n_rows, 0, wants_logits=ends)
            rows, logit_rows = rows - n_rows, logit_rows - ends

    for one, n_draft in zip(texts, _in_turns([one.n_draft for one in texts], min(rows, logit_rows)), strict=True):
        portions[one.slot] = Portion(one.slot, 1, n_draft, wants_logits=True)
    return tuple(portions[slot] for slot in sorted(portions))


def share_rows(wanted: Sequence[int], n_rows: int) -> list[int]:
    """Divides `n_rows` among those who want some, the oldest first: half to that one, the rest to who needs least."""
    given = [0] * len(wanted)
    if wanted:
        given[0] = min(wanted[0], (n_rows + 1) // 2)
    left = n_rows - sum(given)
    for i in sorted(range(len(wanted)), key=lambda i: (wanted[i] - given[i], i)):
        more = min(wanted[i] - given[i], left)
        given[i] += more
        left -= more
    return given


def _in_turns(wanted: Sequence[int], n: int) -> list[int]:
    """Divides `n` one by one among those who want more."""
    given = [0] * len(wanted)
    while n and (open_ones := [i for i, most in enumerate(wanted) if given[i] < most]):
        for i in open_ones[:n]:
            given[i] += 1
        n -= min(n, len(open_ones))
    return given


def prompt_rows_within(seconds: float, cost: tuple[float, float] | None, max_rows: int) -> int:
    """Rows of prompts that a step of about `seconds` has time for: whole tiles, at least one.

    `cost` is what a step costs at least and what each of its rows adds, in seconds; None (unknown) allows all rows.
    """
    if cost is None or cost[1] <= 0.0:
        return max_rows
    n_tiles = int(min(max(seconds - cost[0], 0.0) / cost[1], max_rows)) // _TILE
    return min(max(n_tiles, 1) * _TILE, max_rows)


def next_in_queue(queued_clients: Sequence[str], running_clients: Sequence[str]) -> int:
    """Index of the queued request that gets the next free slot: the oldest of the client that has fewest running."""
    running = Counter(running_clients)
    return min(range(len(queued_clients)), key=lambda i: (running[queued_clients[i]], i))


@dataclass(frozen=True)
class Slot:
    """A KV slot: the tokens whose keys and values it holds from position 0 on, and the step that last used it."""

    tokens: Sequence[int]
    is_free: bool
    last_step: int = -1


@dataclass(frozen=True)
class SlotChoice:
    """The slot for a prompt, and how many of the prompt's first tokens it holds, once they are copied from `source`."""

    slot: int
    n_reused: int
    source: int | None = None


def choose_slot(prompt: Sequence[int], slots: Sequence[Slot], *, can_copy: bool = False) -> SlotChoice | None:
    """The free slot for `prompt`, None if there is none.

    It is the one that holds most of the prompt's beginning. A slot is not taken for a beginning that is short beside
    what would be lost with it (a long chat that shares a system message) while an emptier one is free; among equals
    the one unused for longest is taken. Where keys and values can be copied, those of any slot count, busy ones too,
    if it is enough to be worth it. The prompt's last token is computed in any case, for its logits.
    """
    shared = [min(common_prefix(prompt, slot.tokens), len(prompt) - 1) for slot in slots]
    free = [number for number, slot in enumerate(slots) if slot.is_free]
    if not free:
        return None

    def worth(number: int) -> tuple[int, int, int]:
        return shared[number] - _loss(slots[number], shared[number]), -slots[number].last_step, -number

    best = max(free, key=worth)
    source = max(range(len(slots)), key=lambda number: (shared[number], -number))
    if not can_copy or shared[source] < shared[best] + MIN_COPY:
        return SlotChoice(best, shared[best])
    others = [number for number in free if number != source]
    if not others:
        return SlotChoice(source, shared[source])
    target = max(others, key=lambda number: (-_loss(slots[number], 0), -slots[number].last_step, -number))
    return SlotChoice(target, shared[source], source)


def is_worth_waiting(prompt: Sequence[int], choice: SlotChoice, running: Sequence[Sequence[int]]) -> bool:
    """Whether a `running` request is about to compute much more of the prompt's beginning than can be reused now."""
    most = max((min(common_prefix(prompt, tokens), len(prompt) - 1) for tokens in running), default=0)
    return most >= choice.n_reused + MIN_COPY


MIN_COPY = 32
"""Tokens for which it is worth to copy keys and values, or to wait for them a little."""
_LOSS_DISCOUNT = 4  # a token kept for the future is worth this part of one that is used now


def _loss(slot: Slot, n_kept: int) -> int:
    return max(0, len(slot.tokens) - n_kept) // _LOSS_DISCOUNT


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences of one type begin with in common."""
    n_same, n_differ = 0, min(len(first), len(second)) + 1
    while n_differ - n_same > 1:  # the first n_same are the same, the first n_differ are not
        middle = (n_same + n_differ) // 2
        if first[n_same:middle] == second[n_same:middle]:
            n_same = middle
        else:
            n_differ = middle
    return n_same
