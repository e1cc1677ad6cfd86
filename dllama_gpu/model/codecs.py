"""Encoding of weights: rows of numbers to blocks of a `FloatType` and back, in NumPy.

The block layouts are those of `FloatType`. All functions work on row chunks, so that the memory they need beyond
input and output is a few MiB whatever the size of the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt

from dllama_gpu.errors import DllamaError
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.q40_search import reciprocal, search_q40_scales

QuantizationMethod = Literal["absmax", "search"]

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_CHUNK_ELEMENTS = 1 << 17  # the handful of float32 temporaries of a chunk then stays inside a usual L2 cache


def quantize(values: Floats, float_type: FloatType, method: QuantizationMethod = "absmax") -> Bytes:
    """Encodes float32 [n_rows, n] as uint8 [n_rows, row_bytes] of `float_type`.

    `method` matters for Q40 alone: `absmax` derives the scale from the element of largest magnitude, byte for byte as
    distributed-llama's converters do; `search` takes about seven times as long (50 ns an element) and looks for
    the scale with the least weighted squared error (see `q40_search`).

    Raises DllamaError, naming the row, when a value is not finite or too large for `float_type`, and ValueError when
    rows are no whole number of blocks.
    """
    n_rows, n_columns = values.shape
    raw = np.empty((n_rows, float_type.row_bytes(n_columns)), dtype=np.uint8)
    encode = _search_q40 if float_type is FloatType.Q40 and method == "search" else _ENCODERS[float_type]
    for rows in row_chunks(n_rows, n_columns):
        chunk = np.ascontiguousarray(values[rows], dtype=np.float32)
        _check_finite(chunk, rows.start, "holds {value} at column {column}, which is no weight")
        blocks = chunk.reshape(-1, float_type.block_size)
        with np.errstate(over="ignore", invalid="ignore"):  # what leaves float16's range is reported by the next check
            raw[rows] = encode(blocks).reshape(len(chunk), -1)
        _check_scales(raw[rows], float_type, rows.start)
    return raw


def dequantize(raw: Bytes, float_type: FloatType) -> Floats:
    """Decodes uint8 [n_rows, row_bytes] of `float_type` to float32 [n_rows, n].

    Raises ValueError when rows are no whole number of blocks.
    """
    n_rows, row_bytes = raw.shape
    n_blocks, rest = divmod(row_bytes, float_type.block_bytes)
    if rest:
        raise ValueError(f"a {float_type.value} row is a multiple of {float_type.block_bytes} bytes, not {row_bytes}")
    n_columns = n_blocks * float_type.block_size
    values = np.empty((n_rows, n_columns), dtype=np.float32)
    decode = _DECODERS[float_type]
    for rows in row_chunks(n_rows, n_columns):
        chunk = np.ascontiguousarray(raw[rows])
        with np.errstate(invalid="ignore"):  # a damaged scale may be infinite, and 0 times that is no number
            values[rows] = decode(chunk.reshape(-1, float_type.block_bytes)).reshape(len(chunk), n_columns)
    return values


def row_chunks(n_rows: int, n_columns: int, max_elements: int = _CHUNK_ELEMENTS) -> Iterator[slice]:
    """Slices that cover `n_rows` rows in order, each of at most `max_elements` elements but at least one row."""
    step = max(1, max_elements // max(1, n_columns))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def _check_finite(chunk: Floats, first_row: int, complaint: str) -> None:
    finite = np.isfinite(chunk)
    if not finite.all():
        row, column = (int(index) for index in np.argwhere(~finite)[0])
        raise DllamaError(f"row {first_row + row} " + complaint.format(value=chunk[row, column], column=column))


def _check_scales(raw: Bytes, float_type: FloatType, first_row: int) -> None:
    """Raises DllamaError when a float16 (a scale, or an element of type F16) has become infinite."""
    if float_type is FloatType.F32:
        return
    if float_type is FloatType.BF16:
        largest = dequantize(raw, float_type)
    else:
        n_halves = 2 if float_type is FloatType.Q41 else 1
        blocks = raw.reshape(-1, float_type.block_bytes)[:, : 2 * n_halves]
        largest = np.ascontiguousarray(blocks).view(np.float16).astype(np.float32).reshape(len(raw), -1)
    _check_finite(largest, first_row, f"holds a value that is too large for {float_type.value}")


def _halves_to_bytes(values: Floats) -> Bytes:
    """float32 [n_blocks] to the bytes of float16 [n_blocks, 2]."""
    return values.astype("<f2").view(np.uint8).reshape(-1, 2)


def _bytes_to_halves(raw: Bytes) -> Floats:
    """Bytes of float16 [n_blocks, 2] to float32 [n_blocks, 1]."""
    return np.ascontiguousarray(raw).view("<f2").astype(np.float32)


def _pack_nibbles(quants: npt.NDArray[np.uint8]) -> Bytes:
    """Quants [n_blocks, 32] below 16 to [n_blocks, 16]: element j in the low nibble, j + 16 in the high one."""
    packed: Bytes = quants[:, :16] | (quants[:, 16:] << np.uint8(4))
    return packed


def _unpack_nibbles(packed: Bytes) -> Bytes:
    return np.concatenate([packed & np.uint8(0x0F), packed >> np.uint8(4)], axis=1)


def q40_absmax_scales(blocks: Floats) -> Floats:
    """Scales float32 [n_blocks] that make the element of largest magnitude of each block [n_blocks, 32] quant 0.

    Quant 0 stands for -8 scales. Of two elements of equal magnitude the positive one counts.
    """
    largest = blocks.max(axis=1)
    smallest = blocks.min(axis=1)
    scales: Floats = (np.where(-smallest > largest, smallest, largest) / np.float32(-8)).astype(np.float32)
    return scales


def _encode_q40(blocks: Floats) -> Bytes:
    scales = q40_absmax_scales(blocks)
    # The unrounded scale decides the quants and the rounded one is stored, as in the format's own writer; so are the
    # multiplication by the reciprocal and the truncation of x + 8.5.
    return _q40_blocks(blocks, scales, reciprocal(scales))


def _search_q40(blocks: Floats) -> Bytes:
    scales = search_q40_scales(blocks, q40_absmax_scales(blocks))
    return _q40_blocks(blocks, scales, reciprocal(scales.astype(np.float16).astype(np.float32)))


def _q40_blocks(blocks: Floats, scales: Floats, inverse: Floats) -> Bytes:
    quants = np.clip(blocks * inverse[:, None] + np.float32(8.5), 0, 15).astype(np.uint8)
    return np.concatenate([_halves_to_bytes(scales), _pack_nibbles(quants)], axis=1)


def _decode_q40(raw: Bytes) -> Floats:
    quants = _unpack_nibbles(raw[:, 2:]).astype(np.float32) - np.float32(8)
    return quants * _bytes_to_halves(raw[:, :2])


def _encode_q41(blocks: Floats) -> Bytes:
    smallest = blocks.min(axis=1)
    scales: Floats = (blocks.max(axis=1) - smallest) / np.float32(15)
    steps = (blocks - smallest[:, None]) * reciprocal(scales)[:, None]
    quants = np.clip(steps + np.float32(0.5), 0, 15).astype(np.uint8)
    return np.concatenate([_halves_to_bytes(scales), _halves_to_bytes(smallest), _pack_nibbles(quants)], axis=1)


def _decode_q41(raw: Bytes) -> Floats:
    quants = _unpack_nibbles(raw[:, 4:]).astype(np.float32)
    return quants * _bytes_to_halves(raw[:, :2]) + _bytes_to_halves(raw[:, 2:4])


def _encode_q80(blocks: Floats) -> Bytes:
    scales: Floats = (np.abs(blocks).max(axis=1) / np.float32(127)).astype(np.float32)
    quants = np.rint(blocks * reciprocal(scales)[:, None]).astype(np.int8)
    return np.concatenate([_halves_to_bytes(scales), quants.view(np.uint8)], axis=1)


def _decode_q80(raw: Bytes) -> Floats:
    quants = np.ascontiguousarray(raw[:, 2:]).view(np.int8).astype(np.float32)
    return quants * _bytes_to_halves(raw[:, :2])


def _encode_f32(values: Floats) -> Bytes:
    return values.astype("<f4", copy=False).view(np.uint8)


def _decode_f32(raw: Bytes) -> Floats:
    return raw.view("<f4").astype(np.float32, copy=False)


def _encode_f16(values: Floats) -> Bytes:
    return _halves_to_bytes(values)


def _encode_bf16(values: Floats) -> Bytes:
    bits = values.view(np.uint32)
    # Round to nearest, ties to even: half of the dropped part, less one where the kept part is even.
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return rounded.astype("<u2").view(np.uint8)


def _decode_bf16(raw: Bytes) -> Floats:
    return (raw.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


_ENCODERS: dict[FloatType, Callable[[Floats], Bytes]] = {
    FloatType.F32: _encode_f32,
    FloatType.F16: _encode_f16,
    FloatType.BF16: _encode_bf16,
    FloatType.Q40: _encode_q40,
    FloatType.Q41: _encode_q41,
    FloatType.Q80: _encode_q80,
}
_DECODERS: dict[FloatType, Callable[[Bytes], Floats]] = {
    FloatType.F32: _decode_f32,
    FloatType.F16: _bytes_to_halves,
    FloatType.BF16: _decode_bf16,
    FloatType.Q40: _decode_q40,
    FloatType.Q41: _decode_q41,
    FloatType.Q80: _decode_q80,
}
