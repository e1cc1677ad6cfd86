"""Check of a conversion: what was written is read back and compared with what it was made from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dllama_gpu.errors import DllamaError
from dllama_gpu.model.codecs import dequantize, row_chunks
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.m_file import MFile
from dllama_gpu.model.source import ModelSource, TensorInfo

Progress = Callable[[int, int], None]
"""Told (bytes compared, bytes in all) after each piece."""

_PIECE_ELEMENTS = 1 << 20
# Root mean square error over root mean square value. Weights lose 10 % in Q40 and 1 % in Q80; scrambled bytes more
# than 100 %.
_LARGEST_ERRORS = {FloatType.F32: 1e-6, FloatType.F16: 1e-2, FloatType.Q80: 0.1, FloatType.Q40: 0.5}


def verify_m(path: Path, source: ModelSource, weight_type: FloatType, progress: Progress | None = None) -> float:
    """Compares the `.m` file at `path` with the `source` that it was made from, tensor by tensor.

    Returns the error that the conversion to `weight_type` brought into the matrices: root mean square of the
    differences over root mean square of the values. Raises DllamaError when the header differs or a tensor is off by
    more than its type explains.
    """
    written = MFile(path)
    try:
        # Numbers that `.m` headers cannot hold exactly were refused when it was written.
        expected = replace(source.spec, weight_type=weight_type, tied_embeddings=False)
        if written.spec != expected:
            raise DllamaError(f"{path}: the header reads back as {written.spec}, not as {expected}; convert again")
        total = sum(info.n_bytes for info in written.tensors.values())
        done = 0
        matrices = np.zeros(2)
        for name, info in written.tensors.items():
            source_name = "embedding" if name == "head" and source.spec.tied_embeddings else name
            found = source.tensors[source_name]
            original, copy = source.read(source_name), written.read(name)
            squares = np.zeros(2)
            for rows in row_chunks(info.n_rows, info.n_columns, _PIECE_ELEMENTS):
                values = dequantize(original[rows], found.float_type)
                with np.errstate(invalid="ignore"):  # damage may read as infinity; then the error is no number
                    difference = dequantize(copy[rows], info.float_type) - values
                squares += [np.square(part, dtype=np.float64).sum() for part in (difference, values)]
                done += copy[rows].nbytes
                if progress is not None:
                    progress(done, total)
            del original, copy
            written.release(name)
            source.release(source_name)
            _check_tensor(path, info, _relative_error(squares))
            if info.float_type is weight_type and len(info.shape) == 2:
                matrices += squares
        return _relative_error(matrices)
    finally:
        written.close()


def _relative_error(squares: npt.NDArray[np.float64]) -> float:
    """From the sums of squared differences and of squared values."""
    difference, values = (float(number) for number in squares)
    return math.sqrt(difference / values) if values > 0 else math.sqrt(difference)


def _check_tensor(path: Path, info: TensorInfo, error: float) -> None:
    limit = _LARGEST_ERRORS[info.float_type]
    if not error <= limit:  # also where it is NaN
        raise DllamaError(
            f"{path}: the tensor {info.name} reads back with an error of {100 * error:.3g} %, but "
            f"{info.float_type.value} explains at most {100 * limit:g} %; convert again, and check the disk"
        )
