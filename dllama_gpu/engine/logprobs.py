"""Log-probabilities of tokens as the model itself gave them."""

from __future__ import annotations

import numpy as np

from dllama_gpu.engine.events import TokenLogprob
from dllama_gpu.engine.prediction import Prediction


def logprobs_of(
    prediction: Prediction, token: int, n_top: int, row_temperature: float, n_known_ids: int
) -> tuple[float, tuple[TokenLogprob, ...]]:
    """The logprob of `token` and the `n_top` likeliest tokens of ids below `n_known_ids`, likeliest first.

    log p(i) = logit(i) - log-sum-exp(logits), in nats, at temperature 1. The row's candidates and its log-sum-exp give
    it where `row_temperature` is 1 (so for greedy texts); otherwise, and for a token that is no candidate, all logits
    are read.
    """
    values, ids = prediction.candidate_values, prediction.candidate_ids
    shown = (ids >= 0) & (ids < n_known_ids)
    place = np.flatnonzero(ids == token)
    if row_temperature == 1.0 and place.size and np.count_nonzero(shown) >= n_top:
        total, logit = prediction.log_sum_exp, float(values[place[0]])
    else:
        logits = prediction.read_logits().astype(np.float64)
        total, logit = float(np.logaddexp.reduce(logits)), float(logits[token])
        order = np.argsort(-logits[:n_known_ids], kind="stable")[:n_top]
        return logit - total, tuple(TokenLogprob(int(i), float(logits[i]) - total) for i in order)
    top = [
        TokenLogprob(int(i), float(value) - total)
        for i, value in zip(ids[shown][:n_top], values[shown][:n_top], strict=True)
    ]
    return logit - total, tuple(top)
