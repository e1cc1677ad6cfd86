"""Scale search for Q40: the scale of a block that loses least.

The largest element alone is a poor guide to the scale: letting it clip a little, or giving it the positive end of the
asymmetric range -8..7, often serves the other 31 elements better.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

# The quant that the element of largest magnitude is aimed at, before clipping to -8..7. Finer steps gain less than
# 0.1 % of the error; the positive end of the range seldom wins, so it gets few candidates.
_TARGETS = tuple(np.float32(target) for target in (*np.arange(-9.5, -5.9, 0.25), 6.5, 7.0, 7.5))


def search_q40_scales(blocks: Floats, absmax_scales: Floats) -> Floats:
    """Scales float32 [n_blocks] (each exactly a float16) that quantize blocks [n_blocks, 32] with little squared error.

    Per block the elements are quantized with each candidate scale around `absmax_scales` [n_blocks]; the quants q
    fix the least squares scale sum(x*q) / sum(q*q), whose error is sum(x*x) - sum(x*q)^2 / sum(q*q). The best of them,
    rounded to float16, is compared with the absmax scale by the error of the numbers really stored; the better one is
    returned, so the result is never worse than absmax.
    """
    elements = np.ascontiguousarray(blocks.T)  # [32, n_blocks]: the sums over a block run along the outer axis
    extremes = absmax_scales * np.float32(-8)
    with np.errstate(divide="ignore", over="ignore"):
        inverse_extremes = np.float32(1) / extremes
    inverse_extremes[~np.isfinite(inverse_extremes)] = 0
    best_gain = np.zeros_like(absmax_scales)
    best_scales = absmax_scales.copy()
    quants = np.empty_like(elements)
    for target in _TARGETS:
        np.multiply(elements, inverse_extremes * target, out=quants)
        np.rint(quants, out=quants)
        np.clip(quants, -8, 7, out=quants)
        dots = np.einsum("ij,ij->j", elements, quants)
        norms = np.einsum("ij,ij->j", quants, quants)
        scales = dots / np.maximum(norms, np.float32(1))  # all quants 0: dots is 0 too
        gain = dots * scales
        better = gain > best_gain
        best_gain[better] = gain[better]
        best_scales[better] = scales[better]
    candidates = [_as_half(best_scales), _as_half(absmax_scales)]
    searched_error, absmax_error = (_squared_error(elements, scales, quants) for scales in candidates)
    return np.where(searched_error < absmax_error, *candidates)


def _as_half(scales: Floats) -> Floats:
    return scales.astype(np.float16).astype(np.float32)


def _squared_error(elements: Floats, scales: Floats, scratch: Floats) -> Floats:
    """Squared error [n_blocks] of elements [32, n_blocks] when quantized with `scales`."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scales
    inverse[~np.isfinite(inverse)] = 0
    np.multiply(elements, inverse, out=scratch)
    np.rint(scratch, out=scratch)
    np.clip(scratch, -8, 7, out=scratch)
    scratch *= scales
    scratch -= elements
    errors: Floats = np.einsum("ij,ij->j", scratch, scratch)
    return errors
