"""Perplexity: how well a model predicts a text."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dllama_gpu.engine.generation import chunks
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.batch import Batch, Program, Row

_ROWS_AT_ONCE = 8  # rows of logits that are float64 at a time: 8 MiB for a vocabulary of 128k
_LARGEST_EXPONENT = 700.0


@dataclass(frozen=True)
class PerplexityResult:
    """Outcome so far; `nll_sum` adds up the negative log-likelihoods of the predicted tokens, in nats."""

    nll_sum: float
    n_predicted: int
    n_windows: int
    seconds: float

    @property
    def nll_mean(self) -> float:
        """Mean negative log-likelihood in nats."""
        return self.nll_sum / self.n_predicted

    @property
    def perplexity(self) -> float:
        """The exponential of `nll_mean`; infinity where that is too large for a float."""
        return math.exp(self.nll_mean) if self.nll_mean < _LARGEST_EXPONENT else math.inf

    @property
    def tokens_per_second(self) -> float:
        """Predictions made per second, their evaluation included."""
        return self.n_predicted / self.seconds if self.seconds > 0 else math.inf


Progress = Callable[[PerplexityResult, int], None]
"""Told the result so far and the number of windows in all, after each window."""


def windows(n_tokens: int, window: int) -> list[range]:
    """Consecutive full windows of a text; a text shorter than one window is a window of its own.

    What is left behind the last full window is not evaluated: its tokens would be predicted from less context than the
    others and raise the mean. Raises DllamaError when there is nothing to predict.
    """
    if window < 2:
        raise DllamaError(f"the window is {window}, but it must have at least 2 tokens, so that one predicts another")
    if n_tokens < 2:
        found = "1 token" if n_tokens == 1 else f"{n_tokens} tokens"
        raise DllamaError(f"the text has {found}, but at least 2 are needed, so that one predicts another")
    size = min(window, n_tokens)
    return [range(begin, begin + size) for begin in range(0, n_tokens - size + 1, size)]


def check_window(window: range, seq_len: int) -> None:
    """Raises DllamaError when a window's tokens, of which the last is not fed, need more than `seq_len` positions."""
    if len(window) - 1 > seq_len:
        raise DllamaError(
            f"a window of {len(window)} tokens does not fit the model's context of {seq_len}; choose a smaller --window"
        )


def measure_perplexity(
    program: Program, ids: Sequence[int], window: int = 512, progress: Progress | None = None
) -> PerplexityResult:
    """Perplexity of the tokens `ids` in consecutive windows, each with a KV cache of its own.

    In a window every position but the last predicts the next token; its first token is not predicted, and nothing is
    put before it. The program needs one slot and a `seq_len` of at least window - 1.

    Raises DllamaError when there is nothing to predict, a window does not fit the context, or logits are not finite.
    """
    spans = windows(len(ids), window)
    check_window(spans[0], program.graph.seq_len)
    n_inputs = len(spans[0]) - 1
    started = time.perf_counter()
    nll_sum = 0.0
    for n_done, span in enumerate(spans, start=1):
        nll_sum += _window_nll(program, [ids[i] for i in span])
        n_predicted = n_done * n_inputs
        result = PerplexityResult(nll_sum, n_predicted, n_done, time.perf_counter() - started)
        if progress is not None:
            progress(result, len(spans))
    return result


def _window_nll(program: Program, ids: Sequence[int]) -> float:
    """Sum of the negative log-likelihoods of ids[1:], each given those before it."""
    total = 0.0
    for chunk in chunks(len(ids) - 1, program.graph.max_rows):
        # Position 0 comes first again, so nothing of an earlier window is ever looked at.
        program.run(Batch.of([Row(ids[i], 0, i, wants_logits=True) for i in chunk]))
        logits = program.buffer("logits", len(chunk))
        targets = np.array([ids[i + 1] for i in chunk])
        for part in chunks(len(chunk), _ROWS_AT_ONCE):
            total += float(
                negative_log_likelihoods(logits[part.start : part.stop], targets[part.start : part.stop]).sum()
            )
    if not math.isfinite(total):
        raise DllamaError(
            "the model's logits are not finite numbers (NaN or infinity); the model file is probably damaged: "
            "get or convert it again"
        )
    return total


def negative_log_likelihoods(
    logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """-log softmax(logits)[target] of each row in float64; logits (rows, vocab_size), targets and result (rows,)."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    at_targets = wide[np.arange(len(targets)), targets]
    nll: npt.NDArray[np.float64] = np.log(np.exp(wide).sum(axis=1)) - at_targets
    return nll
