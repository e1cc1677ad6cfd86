"""Inputs for every kernel and what NumPy makes of them in float64; see tests/unit/cpu/test_kernels.py.

Integers and roundings to f16 or int8 must be exact. A float result may be off by what its float32 operations can lose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from dllama_gpu.graph.graph import CacheType
from dllama_gpu.model.codecs import dequantize, quantize
from dllama_gpu.model.float_type import FloatType
from tests.support.kernel_check import Array, Request

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

_GUARD = 12345.0
_N_TOKENS = (*range(1, 18), 33)


@dataclass(frozen=True)
class Case:
    """A request and the function that raises AssertionError when its results are wrong."""

    request: Request
    check: Callable[[tuple[Array, ...]], None]


def _q80_results(n_rows: int, width: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    blocks = (n_rows, width // 32)
    return ("i1", (n_rows, width)), ("f4", blocks), ("i4", blocks), ("f4", blocks)


def _q80_values(results: tuple[Array, ...]) -> Doubles:
    """The numbers that Q80 results stand for."""
    quants, scales = results[0].astype(np.float64), results[1].astype(np.float64)
    return quants * np.repeat(scales, 32, axis=1)


def _check_q80(x: Floats, results: tuple[Array, ...]) -> None:
    """Exactly: scale = max|x| / 127, quant = round(x * (1 / scale)) to even; all 0 where the scale vanishes in f16."""
    quants, scales, sums_times_minus8, scaled_sums = results
    blocks = x.reshape(len(x), -1, 32)
    exact_scales = np.abs(blocks).max(axis=2) / np.float32(127)
    expected_scales = exact_scales.astype(np.float16).astype(np.float32)
    divisors = np.where(expected_scales > 0, exact_scales, np.float32(np.inf))
    expected_quants = np.rint(blocks * (np.float32(1) / divisors)[:, :, None]).astype(np.int8)
    sums = expected_quants.sum(axis=2, dtype=np.int32)
    np.testing.assert_array_equal(quants, expected_quants.reshape(x.shape))
    np.testing.assert_array_equal(scales, expected_scales)
    np.testing.assert_array_equal(sums_times_minus8, -8 * sums)
    np.testing.assert_array_equal(scaled_sums, expected_scales * sums.astype(np.float32))


def matmul_cases(weight_type: FloatType, *, quantized: bool) -> list[Case]:
    """Weights of `weight_type` times Q80 or float32 activations: all tile heights, and rows not a multiple of 16."""
    rng = np.random.default_rng(1)
    shapes = [(1, 32), (23, 96), (40, 576)]
    if not weight_type.is_quantized:
        shapes.append((17, 45))
    cases = []
    for n_rows, n_columns in shapes:
        weights = rng.standard_normal((n_rows, n_columns), dtype=np.float32)
        raw = quantize(weights, weight_type)
        for n_tokens in _N_TOKENS:
            x = rng.standard_normal((n_tokens, n_columns), dtype=np.float32) * np.float32(3)
            cases.append(_matmul_case(weight_type, raw, x, quantized=quantized))
    return cases


def extreme_matmul_cases() -> list[Case]:
    """The largest products that int8 and 4-bit weights can make with Q80 activations."""
    cases = []
    signs = np.where(np.arange(128) % 3 == 0, -1, 1).astype(np.float32)
    x = np.stack([np.ones(128, np.float32), -np.ones(128, np.float32), signs])
    scale = np.frombuffer(np.float16(0.5).tobytes(), np.uint8)
    for weight_type, halves, quants in (
        (FloatType.Q40, 1, (0xFF, 0x00)),
        (FloatType.Q41, 2, (0xFF, 0x00)),
        (FloatType.Q80, 1, (0x80, 0x7F)),
    ):
        for byte in quants:
            block = np.full(weight_type.block_bytes, byte, np.uint8)
            block[: 2 * halves] = np.tile(scale, halves)
            raw = np.tile(block, (20, 4))
            cases += [_matmul_case(weight_type, raw, x[:n], quantized=True) for n in (1, 2, 3)]
    return cases


def _matmul_case(weight_type: FloatType, raw: npt.NDArray[np.uint8], x: Floats, *, quantized: bool) -> Case:
    n_rows, (n_tokens, n_columns) = len(raw), x.shape
    kernel = "matmul_q80" if quantized else "matmul_f32"
    results: tuple[tuple[str, tuple[int, ...]], ...] = (("f4", (n_tokens, n_rows + 3)),)
    if quantized:
        results = _q80_results(n_tokens, n_columns) + results
    line = f"{kernel} {weight_type.value} {n_rows} {n_columns} {n_tokens}"
    check = partial(_check_matmul, dequantize(raw, weight_type), x, quantized)
    return Case(Request(line, (raw, x), results), check)


def _check_matmul(weights: Floats, x: Floats, quantized: bool, results: tuple[Array, ...]) -> None:
    values: Doubles = x.astype(np.float64)
    if quantized:
        _check_q80(x, results[:4])
        values = _q80_values(results[:4])
    n_rows, out = len(weights), results[-1]
    expected = values @ weights.T.astype(np.float64)
    magnitude = np.abs(values) @ np.abs(weights).T.astype(np.float64)
    # Relative to the sum of the terms' magnitudes; the rounding errors of many terms largely cancel.
    np.testing.assert_array_less(np.abs(out[:, :n_rows] - expected), 3e-7 * magnitude + 1e-30)
    np.testing.assert_array_equal(out[:, n_rows:], _GUARD)


def store_row_cases() -> list[Case]:
    """Copies, and quantization with blocks of every awkward kind."""
    rng = np.random.default_rng(2)
    cases = []
    for width, n_rows in ((32, 1), (96, 5), (576, 17), (64, 33), (50, 3)):
        x = rng.standard_normal((n_rows, width), dtype=np.float32) * np.float32(10)
        cases.append(_store_row_case("f32", x))
        if width % 32 == 0:
            cases.append(_store_row_case("q80", x))
    ties = np.tile(np.arange(32, dtype=np.float32) / 2 - 8, 1)
    ties[0] = 127  # scale 1: halves are rounded to even
    awkward = np.stack(
        [
            ties,
            np.zeros(32, np.float32),
            np.full(32, -0.0, np.float32),
            np.full(32, 2.6e-43, np.float32),  # its scale is a float32 of one or two units
            np.linspace(-3e-6, 3e-6, 32, dtype=np.float32),  # its scale vanishes in f16
            np.linspace(-9e-6, 9e-6, 32, dtype=np.float32),  # its scale is a subnormal f16
            np.linspace(-8e6, 8e6, 32, dtype=np.float32),  # its scale is nearly the largest f16
            np.where(np.arange(32) == 5, -1e5, 1e-5).astype(np.float32),
        ]
    )
    cases.append(_store_row_case("q80", awkward))
    return cases


def _store_row_case(form: str, x: Floats) -> Case:
    n_rows, width = x.shape
    results = _q80_results(n_rows, width) if form == "q80" else (("f4", x.shape),)
    check = partial(_check_q80 if form == "q80" else _check_equal, x)
    return Case(Request(f"store_row {form} {width} {n_rows}", (x,), results), check)


def _check_equal(x: Floats, results: tuple[Array, ...]) -> None:
    np.testing.assert_array_equal(results[0], x)


def rms_norm_cases() -> list[Case]:
    """With and without a residual, to f32 and to Q80."""
    rng = np.random.default_rng(3)
    cases = []
    for width, n_rows, form, has_add in (
        (32, 1, "f32", False),
        (50, 3, "f32", True),
        (576, 17, "f32", True),
        (96, 5, "q80", False),
        (576, 17, "q80", True),
    ):
        x = rng.standard_normal((n_rows, width), dtype=np.float32)
        x[0] *= np.float32(1e-4)  # epsilon matters
        add = rng.standard_normal((n_rows if has_add else 0, width), dtype=np.float32)
        weight = rng.uniform(-2, 2, width).astype(np.float32)
        out = _q80_results(n_rows, width) if form == "q80" else (("f4", x.shape),)
        request = Request(
            f"rms_norm {form} {width} {n_rows} {int(has_add)} 1e-5", (x, add, weight), (("f4", x.shape), *out)
        )
        cases.append(Case(request, partial(_check_rms_norm, x, add, weight)))
    return cases


def _check_rms_norm(x: Floats, add: Floats, weight: Floats, results: tuple[Array, ...]) -> None:
    added = x + add if len(add) else x
    np.testing.assert_array_equal(results[0], added)
    values = added.astype(np.float64)
    expected = values / np.sqrt((values**2).mean(axis=1, keepdims=True) + 1e-5) * weight
    if len(results) == 2:
        np.testing.assert_allclose(results[1], expected, rtol=1e-6)
        return
    _, scales, sums_times_minus8, scaled_sums = results[1:]
    # Half a quant, and what the f16 scale takes from up to 127 of them.
    steps = np.repeat(scales.astype(np.float64), 32, axis=1)
    error = np.abs(_q80_values(results[1:]) - expected)
    np.testing.assert_array_less(error, (0.5 + 127 * 2.0**-11) * steps * (1 + 1e-3))
    sums = results[1].reshape(len(x), -1, 32).sum(axis=2, dtype=np.int32)
    np.testing.assert_array_equal(sums_times_minus8, -8 * sums)
    np.testing.assert_array_equal(scaled_sums, scales * sums.astype(np.float32))


def activation_cases(name: str) -> list[Case]:
    """Ordinary gates, and gates whose exponential leaves float32, for `silu_mul` or `gelu_mul`."""
    rng = np.random.default_rng(4)
    cases = []
    for n in (1, 16, 37, 96, 576):
        gate = rng.uniform(-20, 20, n).astype(np.float32)
        if n > 16:
            gate[:6] = [0, -0.0, 90, -90, 1e30, -1e30]
        up = rng.standard_normal(n, dtype=np.float32)
        request = Request(f"{name} {n}", (gate, up), (("f4", (n + 1,)),))
        cases.append(Case(request, partial(_check_activation, name, gate, up)))
    return cases


def _check_activation(name: str, gate: Floats, up: Floats, results: tuple[Array, ...]) -> None:
    out = results[0]
    assert out[-1] == _GUARD
    values = gate.astype(np.float64)
    # Both are x / (1 + e^-u): SiLU with u = x, GELU's tanh approximation with twice the argument of tanh.
    exponents = values if name == "silu_mul" else np.sqrt(8 / np.pi) * (values + 0.044715 * values**3)
    with np.errstate(over="ignore"):
        expected = values / (1 + np.exp(-exponents)) * up
    # e^88 stands for every larger exponential.
    ordinary = exponents > -87
    # An exponent's own rounding error grows with it.
    tolerance = 1e-6 if name == "silu_mul" else 2e-5
    np.testing.assert_allclose(out[:-1][ordinary], expected[ordinary], rtol=tolerance)
    np.testing.assert_array_less(np.abs(out[:-1][~ordinary]), np.abs(values * up)[~ordinary] * 3e-37 + 1e-37)


def f32_to_f16_cases() -> list[Case]:
    """Ordinary numbers, ties, subnormals and overflow."""
    rng = np.random.default_rng(5)
    ties = 1 + np.arange(8, dtype=np.float32) * np.float32(2.0**-11)
    edges = [0, -0.0, 65504, 65519.99, 65520, -1e9, np.inf, 6e-8, 2.98e-8, 2.99e-8, -6.1e-5, 1e-12]
    x = np.concatenate([ties, np.array(edges, np.float32), rng.standard_normal(51, dtype=np.float32)])
    cases = []
    for values in (x, x[:16], x[:5], x * np.float32(1e-5)):
        n = len(values)
        request = Request(f"f32_to_f16 {n}", (values,), (("u2", (n + 1,)),))
        cases.append(Case(request, partial(_check_f32_to_f16, values)))
    return cases


def _check_f32_to_f16(x: Floats, results: tuple[Array, ...]) -> None:
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(results[0][:-1], expected)
    assert results[0][-1] == _GUARD


def attention_cases(type: CacheType) -> list[Case]:
    """Queries of several rows and heads over a KV head.

    One chunk, chunk ends, several chunks, odd head sizes; all positions, and windows that begin anywhere in a chunk.
    """
    rng = np.random.default_rng(6)
    cases = []
    for head_dim, ends, window in (
        (64, [1], 0),
        (64, [700, 698, 699], 0),
        (64, [700, 698, 699], 1),
        (64, [255, 256, 257], 0),
        (64, [255, 256, 257], 20),
        (64, [600, 601, 602, 603, 604], 345),
        (64, [250, 800], 256),
        (7, [17, 3, 33], 0),
        (80, [530, 1, 20, 256, 529], 0),
        (128, [16, 600], 0),
    ):
        if type is CacheType.Q80 and head_dim % 32:
            continue
        for group in (1, 3, 4):  # query heads of a KV head
            row_ends = np.repeat(np.array(ends, np.int32), group)
            row_begins = np.maximum(row_ends - window, 0) if window else np.zeros_like(row_ends)
            seq_len = max(ends)
            queries = rng.standard_normal((len(row_ends), head_dim), dtype=np.float32) * np.float32(2 / head_dim**0.5)
            keys = rng.standard_normal((seq_len, head_dim), dtype=np.float32)
            values = rng.standard_normal((seq_len, head_dim), dtype=np.float32)
            request = Request(
                f"attention {list(CacheType).index(type)} {head_dim} {seq_len} {len(row_ends)}",
                (queries, keys, values, row_begins, row_ends),
                (("f4", queries.shape),),
            )
            keys, values = (dequantize(quantize(x, type.float_type), type.float_type) for x in (keys, values))
            spans = list(zip(row_begins.tolist(), row_ends.tolist(), strict=True))
            cases.append(Case(request, partial(_check_attention, queries, keys, values, spans)))
    return cases


def _check_attention(
    queries: Floats, keys: Floats, values: Floats, spans: list[tuple[int, int]], results: tuple[Array, ...]
) -> None:
    for query, (begin, end), out in zip(queries.astype(np.float64), spans, results[0], strict=True):
        scores = keys[begin:end].astype(np.float64) @ query
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        seen = values[begin:end].astype(np.float64)
        np.testing.assert_array_less(np.abs(out - weights @ seen), 3e-6 * (weights @ np.abs(seen)) + 1e-30)


def top_experts_cases() -> list[Case]:
    """All experts or few of them, distinct logits and ties, and logits that are no numbers."""
    rng = np.random.default_rng(8)
    cases = []
    for n, k in ((1, 1), (8, 2), (128, 8), (33, 33)):
        logits = rng.standard_normal(n, dtype=np.float32) * np.float32(4)
        damaged = logits.copy()
        damaged[n // 2] = np.nan
        for values in (logits, np.round(logits), np.zeros(n, np.float32), damaged):
            for normalize in (0, 1):
                request = Request(f"top_experts {n} {k} {normalize}", (values,), (("i4", (k,)), ("f4", (k,))))
                cases.append(Case(request, partial(_check_top_experts, values, k, normalize)))
    return cases


def _check_top_experts(logits: Floats, k: int, normalize: int, results: tuple[Array, ...]) -> None:
    ids, weights = results
    if not np.isfinite(logits).all():
        assert len(set(ids.tolist())) == k
        assert ids.min() >= 0
        assert ids.max() < len(logits)
        assert np.isnan(weights).all()
        return
    order = np.argsort(-logits, kind="stable")[:k]
    np.testing.assert_array_equal(ids, order)
    p = np.exp(logits.astype(np.float64) - logits.max())
    expected = p[order] / (p[order].sum() if normalize else p.sum())
    np.testing.assert_allclose(weights, expected, rtol=3e-6)


def candidates_cases() -> list[Case]:
    """Few and many values, and fewer than are asked for; distinct, sorted, full of ties, all or almost all equal."""
    rng = np.random.default_rng(7)
    cases = []
    # Each 160 logits have 16 maxima, folded into 512 at most, among which a bound for so many candidates is found.
    shapes = [(1, 1, 0, 1.0), (15, 64, 3, 1.0), (100, 8, 0, 0.7), (4099, 64, 49152, 1.3)]
    shapes += [
        (n, k, 0, 1.0)
        for n, bounded in ((320, 32), (511, 64), (600, 64), (16384, 512))
        for k in (1, bounded, bounded + 1)
    ]
    for n, k, first_id, scale in shapes:
        normal = rng.standard_normal(n, dtype=np.float32) * np.float32(4)
        few = np.where(rng.random(n) < 10 / n, normal, np.float32(-np.inf))
        few[-1] = 1
        damaged = np.where(rng.random(n) < 0.2, np.float32(np.nan), normal)
        uniform = np.full(n, -2, np.float32)
        infinite = np.where(rng.random(n) < 0.1, np.float32(np.inf), normal)
        for values in (normal, np.round(normal), np.sort(normal), -np.sort(normal), uniform, few, damaged, infinite):
            request = Request(
                f"candidates {n} {first_id} {k} {scale}",
                (values,),
                (("i4", (1,)), ("f4", (k,)), ("i4", (k,)), ("f4", (1,))),
            )
            cases.append(Case(request, partial(_check_candidates, values, first_id, k, scale)))
    return cases


def _check_candidates(values: Floats, first_id: int, k: int, scale: float, results: tuple[Array, ...]) -> None:
    (count,), top_values, ids, (log_sum_exp,) = results
    # Of equal values the lower id ranks first; what is no number ranks nowhere.
    numbers = np.flatnonzero(~np.isnan(values))
    assert count == min(k, len(numbers))
    best = numbers[np.lexsort((numbers, -values[numbers]))][:count]
    np.testing.assert_array_equal(ids[:count], first_id + best)
    np.testing.assert_array_equal(top_values[:count], values[best])
    if np.isnan(values).any() or np.isposinf(values).any():
        assert np.isnan(log_sum_exp)
        return
    scaled = values.astype(np.float64) * np.float32(scale)
    expected = scaled.max() + np.log(np.exp(scaled - scaled.max()).sum())
    np.testing.assert_allclose(log_sum_exp, expected, rtol=1e-6, atol=3e-6)


def all_cases() -> dict[str, list[Case]]:
    """Kernel name to its cases."""
    cases = {
        "store_row": store_row_cases(),
        "rms_norm": rms_norm_cases(),
        "silu_mul": activation_cases("silu_mul"),
        "gelu_mul": activation_cases("gelu_mul"),
        "top_experts": top_experts_cases(),
        "f32_to_f16": f32_to_f16_cases(),
        **{f"attention_{type.value}": attention_cases(type) for type in CacheType},
        "candidates": candidates_cases(),
        "matmul_q80_extremes": extreme_matmul_cases(),
    }
    for weight_type in FloatType:
        cases[f"matmul_f32_{weight_type.value}"] = matmul_cases(weight_type, quantized=False)
        if weight_type.is_quantized:
            cases[f"matmul_q80_{weight_type.value}"] = matmul_cases(weight_type, quantized=True)
    return cases
