"""Scale search for Q40: the scale of a block that loses least.

The largest element alone is a poor guide to the scale: letting it clip a little often serves the other 31 elements
better. The loss is a squared error in which each element counts with rms + |x|, rms being the root mean square of its
block: large weights matter more to the output than their number says. ggml weighs so in its K-quants.

Perplexity of SmolLM2-135M-Instruct (float32 arithmetic, 4088 predictions, 23.18 with the Q4_1 weights it comes from):
absmax 30.89, search with the unweighted error 30.24, this search 29.19.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

# The quant that the element of largest magnitude is aimed at, before clipping to -8..7. Finer steps gain less than
# 0.1 % of the error; the positive end of the range seldom wins, so it gets few candidates.
_TARGETS = tuple(np.float32(target) for target in (*np.arange(-9.5, -5.9, 0.25), 6.5, 7.0, 7.5))


def search_q40_scales(blocks: Floats, absmax_scales: Floats) -> Floats:
    """Scales float32 [n_blocks] (each exactly a float16) that quantize blocks [n_blocks, 32] with little loss.

    Per block the elements are quantized with each candidate scale around `absmax_scales` [n_blocks]; the quants q
    and the weights w fix the least squares scale sum(w*x*q) / sum(w*q*q), which reduces the loss from sum(w*x*x) by
    sum(w*x*q)^2 / sum(w*q*q). The best of them, rounded to float16, is compared with the absmax scale by the loss of
    the numbers really stored; the better one is returned, so the loss is never above that of absmax.
    """
    elements = np.ascontiguousarray(blocks.T)  # [32, n_blocks]: the sums over a block run along the outer axis
    weights = np.abs(elements) + np.sqrt(np.mean(np.square(elements), axis=0))
    inverse_extremes = reciprocal(absmax_scales * np.float32(-8))
    best_gain = np.zeros_like(absmax_scales)
    best_scales = absmax_scales.copy()
    quants = np.empty_like(elements)
    weighted = np.empty_like(elements)
    for target in _TARGETS:
        np.multiply(elements, inverse_extremes * target, out=quants)
        np.rint(quants, out=quants)
        np.clip(quants, -8, 7, out=quants)
        np.multiply(quants, weights, out=weighted)
        dots = np.einsum("ij,ij->j", weighted, elements)
        norms = np.einsum("ij,ij->j", weighted, quants)
        scales = dots * reciprocal(norms)
        gain = dots * scales
        better = gain > best_gain
        best_gain[better] = gain[better]
        best_scales[better] = scales[better]
    searched, absmax = _as_half(best_scales), _as_half(absmax_scales)
    better = q40_loss(elements, weights, searched) < q40_loss(elements, weights, absmax)
    return np.where(better, searched, absmax)


def q40_loss(elements: Floats, weights: Floats, scales: Floats) -> Floats:
    """Weighted squared error [n_blocks] of elements [32, n_blocks] when quantized with `scales` [n_blocks]."""
    errors = np.clip(np.rint(elements * reciprocal(scales)), -8, 7) * scales - elements
    loss: Floats = np.einsum("ij,ij,ij->j", weights, errors, errors)
    return loss


def _as_half(scales: Floats) -> Floats:
    with np.errstate(over="ignore"):  # too large a scale is reported by `quantize`
        return scales.astype(np.float16).astype(np.float32)


def reciprocal(values: Floats) -> Floats:
    """1 / value, and 0 where that is no finite number: what it would multiply vanishes in a float16 scale anyway."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / values
    return np.where(np.isfinite(inverse), inverse, np.float32(0))
