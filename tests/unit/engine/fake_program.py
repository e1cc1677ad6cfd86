"""A program without a model: logits are any function of the tokens that stand in a slot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dllama_gpu.engine.prediction import Prediction
from dllama_gpu.graph.batch import Batch
from dllama_gpu.graph.graph import Graph

Floats = npt.NDArray[np.float32]


def prediction_of(
    logits: Floats, temperature: float = 1.0, n_candidates: int = 64, log_sum_error: float = 0.0
) -> Prediction:
    """What a device says about one row of logits; `log_sum_error` is added to what it should say."""
    order = np.argsort(-logits, kind="stable")[:n_candidates].astype(np.int32)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = logits.astype(np.float64) / temperature
        log_sum_exp = float(np.float32(np.logaddexp.reduce(scaled) + log_sum_error))
    return Prediction(logits[order], order, log_sum_exp, len(logits), lambda: logits)


class FakeProgram:
    """Implements `dllama_gpu.graph.batch.Program`; keeps every batch it was given in `batches`."""

    def __init__(
        self,
        logits_of: Callable[[Sequence[int]], Floats],
        *,
        vocab_size: int = 32,
        max_rows: int = 4,
        seq_len: int = 64,
        n_slots: int = 1,
        n_candidates: int = 8,
    ) -> None:
        self.graph = Graph((), (), (), (), vocab_size, max_rows, n_slots, seq_len)
        self.batches: list[Batch] = []
        self._logits_of = logits_of
        self._n_candidates = n_candidates
        self._slots: dict[int, list[int]] = {slot: [] for slot in range(n_slots)}
        self._logits: list[Floats] = []
        self._predictions: list[Prediction] = []

    def run(self, batch: Batch) -> None:
        batch.check(self.graph)
        self.batches.append(batch)
        self._logits, self._predictions = [], []
        temperatures = iter(batch.temperatures)
        for row, (token, slot, position) in enumerate(zip(batch.tokens, batch.slots, batch.positions, strict=True)):
            kept = self._slots[int(slot)]
            assert position <= len(kept), "a position was left out"
            kept[int(position) :] = [int(token)]
            if row in batch.logit_rows:
                self._logits.append(self._logits_of(kept))
                temperature = float(next(temperatures))
                self._predictions.append(prediction_of(self._logits[-1], temperature, self._n_candidates))

    def buffer(self, name: str, n_rows: int) -> npt.NDArray[Any]:
        columns: dict[str, Callable[[Prediction], Any]] = {
            "candidate_values": lambda p: p.candidate_values,
            "candidate_ids": lambda p: p.candidate_ids,
            "log_sum_exp": lambda p: [p.log_sum_exp],
        }
        if name == "logits":
            return np.array(self._logits[:n_rows])
        return np.array([columns[name](prediction) for prediction in self._predictions[:n_rows]])
