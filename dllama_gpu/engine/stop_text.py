"""Text that comes in pieces, up to the first stop text in it."""

from __future__ import annotations

from collections.abc import Sequence


class StopScanner:
    """Lets text through as long as it cannot belong to one of the `stops`.

    The end of the text so far is held back while it is the beginning of a stop text.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(dict.fromkeys(stops))
        self._held = ""
        self.found: str | None = None
        """The stop text that came; of several that begin at the same place the longest."""

    def push(self, piece: str) -> str:
        """What of the text can be shown, now that `piece` has come. Nothing more comes once one is `found`."""
        if self.found is not None:
            return ""
        text = self._held + piece
        # Left of what was held back nothing can begin, so each piece is looked at once.
        found = min(
            ((place, -len(stop), stop) for stop in self._stops if (place := text.find(stop)) >= 0), default=None
        )
        if found is not None:
            self.found, self._held = found[2], ""
            return text[: found[0]]
        n_held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def flush(self) -> str:
        """What was held back, as no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, but not all of it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
