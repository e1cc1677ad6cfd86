"""Where guesses about the next tokens come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class DraftWish:
    """Wanted: at most `n` guesses (n > 0) about what follows `tokens`, which are those of the request in `slot`."""

    slot: int
    tokens: Sequence[int]
    n: int


class Drafter(Protocol):
    """Guesses the next tokens of texts. A guess that is wrong costs time and changes nothing else."""

    @property
    def name(self) -> str:
        """For people."""

    def draft(self, wishes: Sequence[DraftWish]) -> list[list[int]]:
        """For each wish, in their order, as many guesses as there are, possibly none."""

    def forget(self, slot: int) -> None:
        """Another request has this slot from now on."""


class NgramDrafter:
    """Guesses that a text goes on as it did where its last few tokens stood before: in the prompt, or further up.

    Source: Saxena, "Prompt Lookup Decoding" (2023). The longest run of `longest` to `shortest` last tokens that occurs
    earlier counts, and of its places the latest.
    """

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        self._sizes = range(longest, shortest - 1, -1)
        self._indices: dict[int, _NgramIndex] = {}

    @property
    def name(self) -> str:
        """For people."""
        return "n-grams of the text itself"

    def draft(self, wishes: Sequence[DraftWish]) -> list[list[int]]:
        """See `Drafter`; tokens of a slot only ever grow until `forget`."""
        drafts = []
        for wish in wishes:
            index = self._indices.setdefault(wish.slot, _NgramIndex(self._sizes))
            index.read(wish.tokens)
            drafts.append(index.continuation(wish.tokens, wish.n))
        return drafts

    def forget(self, slot: int) -> None:
        """See `Drafter`."""
        self._indices.pop(slot, None)


class _NgramIndex:
    """Where each run of a few tokens was last followed by something."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self._followers: dict[tuple[int, ...], int] = {}
        self._n_read = 0

    def read(self, tokens: Sequence[int]) -> None:
        """Takes in the tokens that are new since the last time, all but the runs that end with the last token."""
        for follower in range(max(self._n_read, 1), len(tokens)):
            for size in self._sizes:
                if size <= follower:
                    self._followers[tuple(tokens[follower - size : follower])] = follower
        self._n_read = len(tokens)

    def continuation(self, tokens: Sequence[int], n: int) -> list[int]:
        """At most `n` tokens that followed the longest known run at the end of `tokens`; a loop never ends."""
        for size in self._sizes:
            follower = self._followers.get(tuple(tokens[-size:])) if size <= len(tokens) else None
            if follower is not None:
                period = len(tokens) - follower
                return [tokens[follower + i % period] for i in range(n)]
        return []
