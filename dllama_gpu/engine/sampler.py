"""Choice of the next token.

A step delivers the best few dozen candidates of each row and the log-sum-exp of all its logits (see `Prediction`).
Most choices are settled by these alone: nucleus, top-k and min-p keep a prefix of the tokens in descending order, and
where that prefix ends inside the candidates, the other logits do not matter. The log-sum-exp is a float32 with an
error, so the choice counts as settled only if it comes out the same at both ends of the interval that the error
allows. Otherwise all logits are read and the same rule decides. So a seed gives one text, whichever way each of its
tokens was found.
"""

from __future__ import annotations

import math
import random
import secrets
from collections import Counter
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from dllama_gpu.engine.prediction import Prediction
from dllama_gpu.engine.sampling import SamplingParams
from dllama_gpu.errors import DllamaError

Weights = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

MIN_ROW_TEMPERATURE = 0.01
"""Below this the log-sum-exp, a large number as float32, says nothing about the sum any more."""
# What a device may be wrong by: its own arithmetic, and the rounding of log-sum-exp and temperature to float32.
_LOG_SUM_ERROR = 1e-4
_LOG_SUM_RELATIVE_ERROR = 4e-7
_LARGEST_LOG_TOTAL = 30.0  # without a constraint it is at most the logarithm of the vocabulary's size
_FIRST_PREFIX = 1024


class Sampler:
    """Chooses the tokens of one sequence.

    Random numbers come from `random.Random(seed)`: Python promises that its `random()` gives the same numbers for the
    same seed in all versions and on all machines, which NumPy promises for no distribution. Each token that is drawn
    takes one.

    Ids from `n_known_ids` on are never chosen: model files often have more rows than the tokenizer has tokens.
    """

    def __init__(self, params: SamplingParams, prompt: Iterable[int] = (), n_known_ids: int | None = None) -> None:
        self.params = params
        self._n_known_ids = n_known_ids
        self._random = random.Random(secrets.randbits(64) if params.seed is None else params.seed)
        self._coin: float | None = None
        self._seen = set(prompt)
        self._generated: Counter[int] = Counter()

    @property
    def row_temperature(self) -> float:
        """The temperature that rows of this sequence must state in their batch."""
        return 1.0 if self.params.is_greedy else max(self.params.temperature, MIN_ROW_TEMPERATURE)

    def sample(self, prediction: Prediction, allowed: Mask | None = None) -> int:
        """The next token's id, which from now on counts as generated.

        `prediction` is that of a row whose temperature was `row_temperature`. With a mask (n,) only `allowed` ids are
        chosen; those past its end are not. Raises DllamaError when the logits hold NaN or infinity, or no id is
        allowed. After an error (the logits could not be fetched) another attempt draws the same token.
        """
        if self._coin is None:
            self._coin = 0.0 if self.params.is_greedy else self._random.random()
        coin = self._coin
        if allowed is not None:
            allowed = allowed[: self._known_of(prediction)]
            if not allowed.any():
                raise DllamaError("the constraint of this request allows no token at all, so its text cannot go on")
        token = None if self.params.changes_logits else self._from_candidates(prediction, allowed, coin)
        if token is None:
            token = self._from_logits(prediction, allowed, coin)
        self._coin = None
        self._seen.add(token)
        self._generated[token] += 1
        return token

    def _from_candidates(self, prediction: Prediction, allowed: Mask | None, coin: float) -> int | None:
        """The token if the candidates settle it."""
        values, ids = prediction.candidate_values, prediction.candidate_ids
        if not (math.isfinite(float(values[0])) and math.isfinite(prediction.log_sum_exp)):
            raise _not_numbers()
        n_ids = self._known_of(prediction) if allowed is None else len(allowed)
        known = (ids >= 0) & (ids < n_ids)
        if allowed is not None:
            known[known] = allowed[ids[known]]
        if not known.any():
            return None
        first = int(known.argmax())
        if self.params.is_greedy:
            return int(ids[first])
        n_known, n_allowed = int(np.count_nonzero(known)), n_ids if allowed is None else int(np.count_nonzero(allowed))
        best, top_k = float(values[first]), self.params.top_k
        weights = _weights(values, best, self.params.temperature)
        if 0 < top_k <= n_known or n_known == n_allowed:
            index: int | None = _draw(weights[known][: top_k or n_known], self.params, coin)
        elif top_k or self.params.temperature < MIN_ROW_TEMPERATURE:
            return None
        else:
            n_unseen = prediction.vocab_size - n_allowed - int(np.count_nonzero(~known))
            totals = self._totals(prediction, best, weights, known, n_unseen)
            index = totals and _draw_if_settled(weights[known], totals, self.params, coin)
        return None if index is None else int(ids[known][index])

    def _totals(
        self, prediction: Prediction, best: float, weights: Weights, known: Mask, n_unseen: int
    ) -> tuple[float, float] | None:
        """Lowest and highest sum that the weights of all known ids can have; `n_unseen` unknown ones lie outside.

        None where the known ids have so small a part of the whole that nothing is left of it after rounding.
        """
        log_sum = prediction.log_sum_exp
        log_total = log_sum - best / self.params.temperature
        if log_total > _LARGEST_LOG_TOTAL:
            return None
        error = _LOG_SUM_ERROR + _LOG_SUM_RELATIVE_ERROR * abs(log_sum)
        unknown = float(weights[~known].sum())
        lowest = math.exp(log_total - error) - unknown - n_unseen * float(weights[-1])
        highest = math.exp(log_total + error) - unknown
        at_least = float(weights[known].sum())
        return max(lowest, at_least), max(highest, at_least)

    def _from_logits(self, prediction: Prediction, allowed: Mask | None, coin: float) -> int:
        """The token by all logits of known ids; penalties, bias and constraint applied."""
        logits = prediction.read_logits()[: self._known_of(prediction)].astype(np.float64)
        best = float(logits.max())  # NaN if any of them is
        if not math.isfinite(best):
            raise _not_numbers()
        if self.params.changes_logits:
            self._penalize(logits)
        if allowed is not None:
            logits[: len(allowed)][~allowed] = -math.inf
            logits[len(allowed) :] = -math.inf
        best = float(logits.max())
        if self.params.is_greedy:
            return int(logits.argmax())
        temperature, top_k = self.params.temperature, self.params.top_k
        if top_k == 0 and len(logits) > _FIRST_PREFIX:
            # Sorting them all takes longer than the rest of the choice, and seldom needs to be done.
            total = float(_weights(logits, best, temperature).sum())
            ids = _largest(logits, _FIRST_PREFIX)
            prefix = _weights(logits[ids], best, temperature)
            index = _draw_if_settled(prefix, (total, total), self.params, coin)
            if index is not None:
                return int(ids[index])
        ids = _largest(logits, min(top_k, len(logits)) or len(logits))
        return int(ids[_draw(_weights(logits[ids], best, temperature), self.params, coin)])

    def _known_of(self, prediction: Prediction) -> int:
        known = prediction.vocab_size if self._n_known_ids is None else self._n_known_ids
        return min(known, prediction.vocab_size)

    def _penalize(self, logits: Weights) -> None:
        params = self.params
        seen = np.array([token for token in self._seen if token < len(logits)], np.int64)
        found = logits[seen]
        factor = params.repetition_penalty
        logits[seen] = np.where(found > 0, found / factor, found * factor)
        for token, count in self._generated.items():
            logits[token] -= params.frequency_penalty * count + params.presence_penalty
        for token, bias in params.logit_bias.items():
            if 0 <= token < len(logits):
                logits[token] += bias


def _weights(logits: npt.NDArray[np.floating], best: float, temperature: float) -> Weights:
    """exp((logit - best) / temperature): probabilities as multiples of the best token's."""
    with np.errstate(over="ignore"):  # a tiny temperature makes -inf of a difference, and a weight of 0
        return np.exp((logits.astype(np.float64) - best) / temperature)


def _largest(logits: Weights, count: int) -> npt.NDArray[np.int64]:
    """Ids of the `count` largest logits, largest first, lowest id first among equals."""
    ids: npt.NDArray[np.int64] = np.arange(len(logits))
    if count < len(logits):
        threshold = np.partition(logits, -count)[-count]
        ids = np.flatnonzero(logits >= threshold)
    order = np.argsort(-logits[ids], kind="stable")
    return ids[order][:count]


def _draw(weights: Weights, params: SamplingParams, coin: float) -> int:
    """Index drawn by `coin` in [0, 1) from all the weights there are, in descending order."""
    cumulative = np.cumsum(weights)
    n_kept = min(_n_kept(weights, cumulative, cumulative[-1], params), len(weights))
    return _index_at(cumulative, coin * cumulative[n_kept - 1], n_kept)


def _draw_if_settled(prefix: Weights, totals: tuple[float, float], params: SamplingParams, coin: float) -> int | None:
    """The index that `_draw` would give for weights of which only the largest are known, or None if that is open.

    `totals` are the lowest and the highest value that the sum of all weights can have. A larger sum never moves the
    index to the front, so what comes out for both is right for all between.
    """
    cumulative = np.cumsum(prefix)
    has_cut = params.top_p < 1.0 or params.min_p > 0.0
    found = set()
    for total in totals:
        n_kept = _n_kept(prefix, cumulative, total, params)
        if n_kept <= len(prefix):
            found.add(_index_at(cumulative, coin * cumulative[n_kept - 1], n_kept))
        elif has_cut or coin * total >= cumulative[-1]:
            return None
        else:
            found.add(_index_at(cumulative, coin * total, len(prefix)))
    return found.pop() if len(found) == 1 else None


def _n_kept(prefix: Weights, cumulative: Weights, total: float, params: SamplingParams) -> int:
    """How many tokens top_p and min_p keep; more than there are in `prefix` if neither ends inside it."""
    n_kept = len(prefix) + 1
    if params.top_p < 1.0:
        n_kept = min(n_kept, int(np.searchsorted(cumulative, params.top_p * total, side="right")) + 1)
    if params.min_p > 0.0 and prefix[-1] < params.min_p:
        n_kept = min(n_kept, int(np.count_nonzero(prefix >= params.min_p)))
    return n_kept


def _index_at(cumulative: Weights, target: float, n_kept: int) -> int:
    """The first index whose cumulative weight exceeds `target`; so a weight of 0 is never drawn."""
    return min(int(np.searchsorted(cumulative[:n_kept], target, side="right")), n_kept - 1)


def _not_numbers() -> DllamaError:
    return DllamaError(
        "the model's logits are not finite numbers (NaN or infinity), so no token can be chosen; the model file is "
        "probably damaged: get or convert it again"
    )
