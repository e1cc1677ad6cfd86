"""Codecs against blocks computed by hand, against the gguf package, and against their own error bounds."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dllama_gpu.errors import DllamaError
from dllama_gpu.model.codecs import QuantizationMethod, dequantize, quantize, row_chunks
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.q40_search import q40_loss

Floats = npt.NDArray[np.float32]

_GGML_TYPES = {
    FloatType.F16: gguf.GGMLQuantizationType.F16,
    FloatType.BF16: gguf.GGMLQuantizationType.BF16,
    FloatType.Q40: gguf.GGMLQuantizationType.Q4_0,
    FloatType.Q41: gguf.GGMLQuantizationType.Q4_1,
    FloatType.Q80: gguf.GGMLQuantizationType.Q8_0,
}

# Magnitudes that weights and activations have: far from what a float16 scale cannot hold.
_WEIGHTS = st.floats(-1000, 1000, width=32).map(lambda x: 0.0 if abs(x) < 1e-3 else x)
_ROWS = arrays(np.float32, st.tuples(st.integers(1, 3), st.sampled_from([32, 96])), elements=_WEIGHTS)


def _random_rows(n_rows: int = 40, n_columns: int = 256, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((n_rows, n_columns), dtype=np.float32) * np.float32(0.05)


def _one_block(*values: float) -> Floats:
    """A row of one block that starts with `values` and goes on with zeros."""
    block = np.zeros((1, 32), dtype=np.float32)
    block[0, : len(values)] = values
    return block


def test_q40_block_is_the_one_computed_by_hand() -> None:
    # The largest magnitude is -4, so d = -4 / -8 = 0.5; q = trunc(x / 0.5 + 8.5).
    block = _one_block(-4.0, 3.5, 1.2, -0.3, 0.24)
    block[0, 16] = 2.0  # element 16 shares its byte with element 0: 2 / 0.5 + 8 = 12
    low_nibbles = [0, 15, 10, 7, 8] + [8] * 11
    high_nibbles = [12] + [8] * 15
    expected = struct.pack("<e", 0.5) + bytes(
        low | high << 4 for low, high in zip(low_nibbles, high_nibbles, strict=True)
    )
    assert quantize(block, FloatType.Q40).tobytes() == expected


@pytest.mark.parametrize("values", [(3.0, -3.0), (-3.0, 3.0)])
def test_q40_takes_the_positive_of_two_equal_extremes(values: tuple[float, float]) -> None:
    raw = quantize(_one_block(*values), FloatType.Q40)
    assert struct.unpack("<e", raw[0, :2].tobytes()) == (-0.375,)
    # x / d + 8.5 is 0.5 for 3, and 16.5, clipped to 15, for -3.
    assert [int(byte & 15) for byte in raw[0, 2:4]] == [0 if value > 0 else 15 for value in values]


def test_q40_decides_quants_by_the_unrounded_scale() -> None:
    # d = 0.1250152587890625 is stored as 0.125. 0.062504 / d + 8.5 is just below 9, and would be above it with 0.125.
    raw = quantize(_one_block(-1.0001220703125, 0.062504), FloatType.Q40)
    assert struct.unpack("<e", raw[0, :2].tobytes()) == (0.125,)
    assert raw[0, 3] & 15 == 8


def test_quants_come_from_the_reciprocal_of_the_scale() -> None:
    # The format's writers multiply by 1 / d in float32. Where a value lies in the middle between two quants, its
    # rounding decides: division would give 2 for 1.421875 / -0.21875 + 8.5, and 63 for 1.125 / (2.25 / 127).
    assert quantize(_one_block(1.75, 1.421875), FloatType.Q40)[0, 3] & 15 == 1
    assert quantize(_one_block(2.25, 1.125), FloatType.Q80)[0, 3] == 64


def test_q80_block_is_the_one_computed_by_hand() -> None:
    # d = 127 / 127 = 1; halves go to the even neighbour.
    raw = quantize(_one_block(127.0, -127.0, 0.5, 1.5, -2.5, 3.4, -3.6), FloatType.Q80)
    quants = np.frombuffer(raw[0, 2:].tobytes(), dtype=np.int8)
    assert struct.unpack("<e", raw[0, :2].tobytes()) == (1.0,)
    assert quants[:8].tolist() == [127, -127, 0, 2, -2, 3, -4, 0]


def test_q41_block_is_the_one_computed_by_hand() -> None:
    # The range is -1..14, so d = 1 and m = -1; the zeros lie one step above the minimum.
    raw = quantize(_one_block(-1.0, 14.0, 5.4, 5.6), FloatType.Q41)
    assert struct.unpack("<ee", raw[0, :4].tobytes()) == (1.0, -1.0)
    assert [int(byte & 15) for byte in raw[0, 4:9]] == [0, 15, 6, 7, 1]


@pytest.mark.parametrize("float_type", list(FloatType))
@pytest.mark.parametrize("method", ["absmax", "search"])
def test_zeros_stay_zeros(float_type: FloatType, method: QuantizationMethod) -> None:
    zeros = np.zeros((3, 64), dtype=np.float32)
    raw = quantize(zeros, float_type, method)
    assert np.array_equal(dequantize(raw, float_type), zeros)
    if float_type is FloatType.Q40:
        assert np.all(raw.reshape(-1, 18)[:, 2:] == 0x88)


@pytest.mark.parametrize("float_type", _GGML_TYPES)
def test_blocks_are_those_of_the_gguf_package(float_type: FloatType) -> None:
    values = _random_rows()
    expected = gguf.quants.quantize(values, _GGML_TYPES[float_type]).view(np.uint8)
    assert np.array_equal(quantize(values, float_type), expected)


@pytest.mark.parametrize("float_type", _GGML_TYPES)
def test_values_are_those_of_the_gguf_package(float_type: FloatType) -> None:
    rng = np.random.default_rng(1)
    blocks = quantize(_random_rows(), float_type)
    if float_type.is_quantized:
        # Also quants that no quantizer makes, such as -128 in Q80: everything behind the scales is random.
        n_scale_bytes = 4 if float_type is FloatType.Q41 else 2
        by_block = blocks.reshape(-1, float_type.block_bytes)
        by_block[:, n_scale_bytes:] = rng.integers(0, 256, (len(by_block), float_type.block_bytes - n_scale_bytes))
    expected = gguf.quants.dequantize(
        blocks.view(np.float16) if float_type is FloatType.F16 else blocks, _GGML_TYPES[float_type]
    )
    assert np.array_equal(dequantize(blocks, float_type), expected)


@given(_ROWS)
def test_float_types_keep_their_precision(values: Floats) -> None:
    assert np.array_equal(dequantize(quantize(values, FloatType.F32), FloatType.F32), values)
    for float_type, precision in ((FloatType.F16, 2.0**-11), (FloatType.BF16, 2.0**-8)):
        error = np.abs(dequantize(quantize(values, float_type), float_type) - values)
        assert np.all(error <= precision * np.abs(values))


@given(_ROWS)
def test_quantized_values_are_within_their_step(values: Floats) -> None:
    blocks = values.reshape(-1, 32)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    # A step is 1/8 of the largest magnitude (Q40: the far end may be clipped by a whole one), 1/127 (Q80) or 1/15 of
    # the range (Q41); rounding the scale to float16 adds at most 2^-11 of the largest magnitude per scale.
    span = blocks.max(axis=1, keepdims=True) - blocks.min(axis=1, keepdims=True)
    rounding = largest * 2.0**-10
    for float_type, bound in (
        (FloatType.Q40, largest / 8 + rounding),
        (FloatType.Q80, largest / 254 + rounding),
        (FloatType.Q41, span / 30 + 3 * rounding),
    ):
        error = np.abs(dequantize(quantize(values, float_type), float_type).reshape(-1, 32) - blocks)
        assert np.all(error <= bound * 1.0001)


@given(arrays(np.uint8, (4, 18), elements=st.integers(0, 255)), st.integers(-100, 100))
def test_search_finds_values_that_are_exactly_q40(raw: npt.NDArray[np.uint8], scale: int) -> None:
    """Blocks that Q40 holds exactly, whatever their scale and whichever end of the range they use."""
    raw[:, :2] = np.frombuffer(struct.pack("<e", scale / 128), dtype=np.uint8)
    raw[:, 2] = 0x0F if scale % 2 else 0x10  # one end of the range is in use
    values = dequantize(raw, FloatType.Q40)
    found = dequantize(quantize(values, FloatType.Q40, "search"), FloatType.Q40)
    if np.all(raw[:, 2] == 0x10):  # quant 0, the -8: a full range leaves one scale only
        assert np.array_equal(found, values)
    assert np.abs(found - values).max() <= np.abs(scale) / 128


@given(_ROWS)
def test_search_never_loses_more_than_absmax(values: Floats) -> None:
    elements = np.ascontiguousarray(values.reshape(-1, 32).T)
    weights = np.abs(elements) + np.sqrt(np.mean(np.square(elements), axis=0))
    losses = []
    for method in ("search", "absmax"):
        blocks = quantize(values, FloatType.Q40, method).reshape(-1, 18)
        scales = np.ascontiguousarray(blocks[:, :2]).view(np.float16)[:, 0].astype(np.float32)
        losses.append(q40_loss(elements, weights, scales))
    assert np.all(losses[0] <= losses[1])


def test_search_reduces_the_squared_error_of_usual_weights() -> None:
    values = _random_rows(n_rows=200)
    errors = {
        method: np.square(dequantize(quantize(values, FloatType.Q40, method), FloatType.Q40) - values).sum()
        for method in ("absmax", "search")
    }
    assert errors["search"] < 0.93 * errors["absmax"]


@pytest.mark.parametrize("float_type", list(FloatType))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_named(float_type: FloatType, bad: float) -> None:
    values = _random_rows(n_rows=2000)
    values[1234, 17] = bad
    with pytest.raises(DllamaError, match=r"row 1234 holds -?(nan|inf) at column 17"):
        quantize(values, float_type)


@pytest.mark.parametrize("method", ["absmax", "search"])
@pytest.mark.parametrize(
    ("float_type", "too_large"),
    [
        (FloatType.F16, 65520.0),
        (FloatType.BF16, 3.4e38),
        (FloatType.Q40, 1e6),
        (FloatType.Q40, 3e38),
        (FloatType.Q41, 1e6),
        (FloatType.Q41, -3e38),
        (FloatType.Q80, 1e7),
    ],
)
def test_a_number_too_large_for_the_type_is_refused(
    float_type: FloatType, too_large: float, method: QuantizationMethod
) -> None:
    values = _random_rows(n_rows=3)
    values[2, 40] = too_large
    with pytest.raises(DllamaError, match=f"row 2 holds a value that is too large for {float_type.value}"):
        quantize(values, float_type, method)


@pytest.mark.parametrize("method", ["absmax", "search"])
@pytest.mark.parametrize("magnitude", [1e-45, 1e-40, 1e-30, 1e-9])
def test_numbers_below_the_scale_become_zero(magnitude: float, method: QuantizationMethod) -> None:
    values = _one_block(magnitude, -magnitude / 2)
    for float_type in (FloatType.Q40, FloatType.Q41, FloatType.Q80):
        assert np.abs(dequantize(quantize(values, float_type, method), float_type)).max() <= 1e-7


@pytest.mark.parametrize("float_type", [FloatType.Q40, FloatType.Q41, FloatType.Q80])
def test_rows_must_be_whole_blocks(float_type: FloatType) -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        quantize(np.zeros((2, 48), dtype=np.float32), float_type)
    with pytest.raises(ValueError, match=f"multiple of {float_type.block_bytes}"):
        dequantize(np.zeros((2, 35), dtype=np.uint8), float_type)


def test_a_tensor_of_many_chunks_is_encoded_like_its_rows() -> None:
    values = _random_rows(n_rows=700, n_columns=512)
    whole = quantize(values, FloatType.Q40, "search")
    rows = np.concatenate([quantize(values[i : i + 1], FloatType.Q40, "search") for i in range(0, 700, 100)])
    assert np.array_equal(whole[::100], rows)
    assert np.array_equal(dequantize(whole, FloatType.Q40)[::100], dequantize(rows, FloatType.Q40))


@settings(max_examples=50)
@given(st.integers(0, 500), st.integers(0, 5000), st.integers(1, 4000))
def test_row_chunks_cover_every_row_once(n_rows: int, n_columns: int, max_elements: int) -> None:
    chunks = list(row_chunks(n_rows, n_columns, max_elements))
    assert [row for chunk in chunks for row in range(chunk.start, chunk.stop)] == list(range(n_rows))
    assert all(
        (chunk.stop - chunk.start) * n_columns <= max_elements or chunk.stop - chunk.start == 1 for chunk in chunks
    )
