"""How many guesses are worth checking: speculative decoding that turns itself off where it does not pay.

A step that computes guesses of the next tokens along with the last one gives as many tokens as guesses are right, and
one more. Every token is chosen by the sampler from the model's own logits, with the random number that it would have
taken anyway; a guess only decides whether the next row was computed already. So the text is exactly the one without
speculation, greedy or with a seed, as long as a row's logits do not depend on the other rows of its step. A guess is a
single token, so it is right with the probability that the sampler gives to that token: the same rate of acceptance that
rejection sampling (Leviathan et al., 2023) has for such guesses.

Guess number j is right with probability a**j, if each is right with probability a once those before it are. Checking
it costs b seconds, the price of one more row. The step gives n tokens in t seconds anyway, so the guess pays if
a**j / b > n / t.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dllama_gpu.engine.drafting import Drafter, DraftWish
from dllama_gpu.engine.step_cost import StepCost

MAX_DRAFT = 8
_DECAY = 0.9  # of what was seen, with each new step
_HOPE = 0.6  # that a guess is right, before anything is known
_HOPE_WEIGHT = 2.0
_TRIAL_LENGTHS = (0, 3, 1, 6)  # of different lengths, to learn what a row costs
_SHORTEST_PAUSE, _LONGEST_PAUSE = 8, 256


def draft_length(acceptance: float, n_tokens: int, base_seconds: float, row_seconds: float, most: int) -> int:
    """How many guesses of one text pay in a step that gives `n_tokens` without any; see the top of this file.

    `row_seconds` is what one more guess costs, its making included.
    """
    seconds = base_seconds + row_seconds * n_tokens
    if row_seconds <= 0.0:
        return most
    length, chance = 0, 1.0
    while length < most:
        chance *= acceptance
        if chance * seconds <= row_seconds * n_tokens:
            break
        length += 1
    return length


@dataclass
class _Text:
    """What is known of one text's guesses."""

    right: float = 0.0
    tried: float = 0.0
    pause: int = _SHORTEST_PAUSE
    wait: int = 0

    def acceptance(self, hope: float) -> float:
        return (self.right + hope * _HOPE_WEIGHT) / (self.tried + _HOPE_WEIGHT)


class Speculation:
    """Asks a drafter for guesses, as many as pay, and learns from what became of them."""

    def __init__(
        self, drafter: Drafter, *, max_draft: int = MAX_DRAFT, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.drafter = drafter
        self._max_draft = max_draft
        self._clock = clock
        self._cost = StepCost()
        self._draft_seconds = 0.0  # of one guess
        self._texts: dict[int, _Text] = {}
        self._hope = _HOPE
        self._n_trials = 0

    def start(self, slot: int) -> None:
        """A new text begins in this slot."""
        self._texts[slot] = _Text()
        self.drafter.forget(slot)

    def draft(self, wishes: Sequence[DraftWish], n_texts: int) -> dict[int, list[int]]:
        """Guesses by slot for those texts where some pay, `wishes` being what is possible at most.

        `n_texts` texts get a token each in the coming step. What a drafter raises goes through.
        """
        wanted = [
            DraftWish(wish.slot, wish.tokens, n)
            for wish in wishes
            if (n := min(wish.n, self._length(wish.slot, n_texts)))
        ]
        if not wanted:
            return {}
        started = self._clock()
        drafts = self.drafter.draft(wanted)
        n_guesses = sum(map(len, drafts))
        if n_guesses:
            self._draft_seconds += (1 - _DECAY) * ((self._clock() - started) / n_guesses - self._draft_seconds)
        return {wish.slot: draft for wish, draft in zip(wanted, drafts, strict=True) if draft}

    def measured(self, n_rows: int, seconds: float) -> None:
        """A step with nothing but texts and their guesses took that long."""
        self._cost.add(n_rows, seconds)

    def checked(self, slot: int, n_drafted: int, n_right: int) -> None:
        """So many of a text's guesses in the last step were right, up to the first that was not."""
        text = self._texts.get(slot)
        if text is None or n_drafted == 0:
            return
        n_tried = n_right + (n_right < n_drafted)
        text.right = _DECAY * text.right + n_right
        text.tried = _DECAY * text.tried + n_tried
        self._hope += 0.02 * (n_right / n_tried - self._hope)
        if n_right:
            text.pause = _SHORTEST_PAUSE

    def _length(self, slot: int, n_texts: int) -> int:
        """How many guesses pay; now and then one is tried although it does not seem to, as texts change."""
        text, line = self._texts[slot], self._cost.line()
        if text.wait > 0:
            text.wait -= 1
            return 0
        if line is None:
            self._n_trials += 1
            return min(_TRIAL_LENGTHS[self._n_trials % len(_TRIAL_LENGTHS)], self._max_draft)
        length = draft_length(
            text.acceptance(self._hope), n_texts, line[0], line[1] + self._draft_seconds, self._max_draft
        )
        if length == 0:
            text.wait, text.pause = text.pause, min(2 * text.pause, _LONGEST_PAUSE)
            # What is known of a time long ago counts less than hope.
            text.right, text.tried = text.right / 2, text.tried / 2
            return 1
        return length
