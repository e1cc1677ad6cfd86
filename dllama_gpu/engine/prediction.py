"""What a step says about the next token of one row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dllama_gpu.graph.batch import Program


@dataclass(frozen=True)
class Prediction:
    """The likeliest tokens of one row, and a way to all logits. Valid until the program's next run.

    `candidate_values` (k,) holds the k largest logits, largest first, lowest id first among equals; `candidate_ids`
    (k,) their ids. `log_sum_exp` is that of all `vocab_size` logits divided by the row's temperature.
    """

    candidate_values: npt.NDArray[np.float32]
    candidate_ids: npt.NDArray[np.int32]
    log_sum_exp: float
    vocab_size: int
    read_logits: Callable[[], npt.NDArray[np.float32]]
    """Returns all logits (vocab_size,). Costs a transfer where they are not in this process, so ask only if needed."""


def read_predictions(program: Program, n_logit_rows: int) -> list[Prediction]:
    """Predictions of the rows that wanted logits in the step just run, in their order."""
    values = program.buffer("candidate_values", n_logit_rows)
    ids = program.buffer("candidate_ids", n_logit_rows)
    log_sum_exps = program.buffer("log_sum_exp", n_logit_rows)

    def reader(row: int) -> Callable[[], npt.NDArray[np.float32]]:
        return lambda: program.buffer("logits", n_logit_rows)[row]

    return [
        Prediction(values[row], ids[row], float(log_sum_exps[row, 0]), program.graph.vocab_size, reader(row))
        for row in range(n_logit_rows)
    ]
