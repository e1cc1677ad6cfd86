"""A model source made of arrays, for tests of single ops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from dllama_gpu.graph.graph import TensorSlice, Weight
from dllama_gpu.model.codecs import quantize
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.source import TensorInfo
from dllama_gpu.model.spec import ModelSpec
from tests.support.models import small_spec


class ArraySource:
    """Implements `dllama_gpu.model.source.ModelSource` over f32 arrays stored in chosen number formats."""

    def __init__(self, spec: ModelSpec | None = None) -> None:
        self.path = Path("arrays")
        self.spec = spec or small_spec()
        self.tensors: dict[str, TensorInfo] = {}
        self._raw: dict[str, npt.NDArray[np.uint8]] = {}

    def add(self, name: str, values: npt.NDArray[np.floating], float_type: FloatType = FloatType.F32) -> Weight:
        """Stores a tensor and returns the weight that is exactly it."""
        rows = np.atleast_2d(values).astype(np.float32)
        self.tensors[name] = TensorInfo(name, values.shape, float_type)
        self._raw[name] = quantize(rows, float_type)
        n_rows, n_columns = rows.shape
        return Weight(name, float_type, n_rows, n_columns, (TensorSlice(name, 0, n_rows, 0, n_columns),))

    def read(self, name: str) -> npt.NDArray[np.uint8]:
        """Raw rows."""
        return self._raw[name]

    def release(self, name: str) -> None:
        """Nothing is mapped."""

    def close(self) -> None:
        """Nothing is open."""
