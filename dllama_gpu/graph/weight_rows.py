"""A weight's part of a tensor, as its model stores it: what every device packs in its own way."""

from __future__ import annotations

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.graph import TensorSlice, Weight
from dllama_gpu.model.codecs import Bytes
from dllama_gpu.model.source import ModelSource


def read_part(part: TensorSlice, weight: Weight, source: ModelSource) -> Bytes:
    """Rows and whole blocks of columns of one tensor, uint8 (rows, bytes).

    Raises DllamaError when the source's tensor is not there, smaller, or of another number format than the weight.
    """
    info = source.tensors.get(part.tensor)
    if info is None:
        raise DllamaError(f"{source.path} has no tensor {part.tensor}, which the model needs")
    if info.float_type is not weight.float_type or part.row_end > info.n_rows or part.column_end > info.n_columns:
        raise DllamaError(
            f"{source.path}: tensor {part.tensor} is {info.float_type.value} {info.shape}, but "
            f"{weight.float_type.value} with at least {part.row_end} rows and {part.column_end} columns is wanted"
        )
    bytes_at = weight.float_type.row_bytes
    raw = source.read(part.tensor)
    return raw[part.row_begin : part.row_end, bytes_at(part.column_begin) : bytes_at(part.column_end)]
