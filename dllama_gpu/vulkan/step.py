"""The step buffer: the rows of a batch as the shaders read them, shaders/step.glsl.

32-bit words: n_rows, n_logit_rows, six zeros; then eight words for each i < max_rows: token, slot, position, 0 of
row i; row, temperature (f32), 0, 0 of the i-th row that wants logits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dllama_gpu.graph.batch import Batch


def step_bytes(max_rows: int) -> int:
    """Size of the step buffer."""
    return 32 + 32 * max_rows


def write_step(batch: Batch, words: npt.NDArray[np.uint32]) -> None:
    """Fills the step buffer, `words` (8 + 8 · max_rows,)."""
    words[0], words[1] = len(batch.tokens), len(batch.logit_rows)
    entries = words[8:].reshape(-1, 8)
    rows = entries[: len(batch.tokens)]
    rows[:, 0], rows[:, 1], rows[:, 2] = batch.tokens, batch.slots, batch.positions
    wanting = entries[: len(batch.logit_rows)]
    wanting[:, 4] = batch.logit_rows
    wanting[:, 5] = batch.temperatures.view(np.uint32)
