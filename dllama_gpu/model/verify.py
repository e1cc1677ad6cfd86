"""Check of a conversion: what was written is read back and compared with what it was made from."""

from __future__ import annotations

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
# Root mean square error of a row over its root mean square value. Weights lose 10 % in Q40 and 1 % in Q80, 20 and 2 %
# where a row is uneven; what was never written or is scrambled is off by 100 % and more.
_LARGEST_ERRORS = {FloatType.F32: 1e-6, FloatType.F16: 1e-2, FloatType.Q80: 0.1, FloatType.Q40: 0.5}
# Rows far smaller than the rest may lose more: this part of the tensor's root mean square counts as part of each row's.
_COMMON_SHARE = 0.01


def verify_m(path: Path, source: ModelSource, weight_type: FloatType, progress: Progress | None = None) -> float:
    """Compares the `.m` file at `path` with the `source` that it was made from, tensor by tensor.

    Returns the error that the conversion to `weight_type` brought into the matrices: root mean square of the
    differences over root mean square of the values. Raises DllamaError when the header differs or a row of a tensor is
    off by more than its type explains.
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
            squares = np.empty((2, info.n_rows))
            for rows in row_chunks(info.n_rows, info.n_columns, _PIECE_ELEMENTS):
                values = dequantize(original[rows], found.float_type)
                with np.errstate(invalid="ignore"):  # damage may read as infinity; then the error is no number
                    difference = dequantize(copy[rows], info.float_type) - values
                squares[:, rows] = [np.square(part, dtype=np.float64).mean(axis=1) for part in (difference, values)]
                done += copy[rows].nbytes
                if progress is not None:
                    progress(done, total)
            del original, copy
            written.release(name)
            source.release(source_name)
            _check_rows(path, info, squares)
            if info.float_type is weight_type and len(info.shape) == 2:
                matrices += squares.sum(axis=1) * info.n_columns
        return float(np.sqrt(matrices[0] / matrices[1])) if matrices[1] > 0 else 0.0
    finally:
        written.close()


def _check_rows(path: Path, info: TensorInfo, squares: npt.NDArray[np.float64]) -> None:
    """`squares` (2, n_rows): mean squares of each row's differences and of its values."""
    differences, values = np.sqrt(squares)
    scale = values + _COMMON_SHARE * np.sqrt(squares[1].mean())
    limit = _LARGEST_ERRORS[info.float_type]
    wrong = np.flatnonzero(~(differences <= limit * scale))  # also where it is NaN
    if wrong.size:
        row = int(wrong[0])
        raise DllamaError(
            f"{path}: row {row} of the tensor {info.name} reads back with an error of {differences[row]:.3g}, but "
            f"{info.float_type.value} explains at most {limit * scale[row]:.3g}; convert again, and check the disk"
        )
