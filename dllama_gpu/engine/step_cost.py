"""What a step costs by the number of its rows."""

from __future__ import annotations

_SMALL_VARIANCE = 0.05


class StepCost:
    """Seconds of a step as a line over its rows, t = base + row * n_rows, fitted to recent steps.

    Each new step leaves the weight `decay` to those before it.
    """

    def __init__(self, decay: float = 0.98) -> None:
        self._decay = decay
        self._weight = self._rows = self._seconds = self._rows_squared = self._rows_seconds = 0.0
        self._row: float | None = None

    def add(self, n_rows: int, seconds: float) -> None:
        """Takes in a step."""
        for name, value in (
            ("_weight", 1.0),
            ("_rows", n_rows),
            ("_seconds", seconds),
            ("_rows_squared", n_rows * n_rows),
            ("_rows_seconds", n_rows * seconds),
        ):
            setattr(self, name, getattr(self, name) * self._decay + value)

    def line(self) -> tuple[float, float] | None:
        """(base, row) in seconds, None while all steps had equally many rows.

        The price of a row is kept while recent steps are all alike.
        """
        if self._weight == 0.0:
            return None
        mean_rows, mean_seconds = self._rows / self._weight, self._seconds / self._weight
        variance = self._rows_squared / self._weight - mean_rows**2
        if variance > _SMALL_VARIANCE:
            row = (self._rows_seconds / self._weight - mean_rows * mean_seconds) / variance
            self._row = min(max(row, 0.0), mean_seconds / mean_rows)
        return None if self._row is None else (mean_seconds - self._row * mean_rows, self._row)
