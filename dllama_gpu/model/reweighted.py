"""Any model with its matrices in another number format, converted as they are read."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from dllama_gpu.errors import DllamaError
from dllama_gpu.model.codecs import QuantizationMethod, dequantize, quantize, row_chunks
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.source import ModelSource, TensorInfo, always_f32
from dllama_gpu.model.spec import ModelSpec
from dllama_gpu.model.spec_check import check_spec


class ReweightedSource:
    """A `ModelSource` that gives the matrices of another one as `weight_type`.

    Vectors and routers stay as they are, and so does an embedding that is not the output head too: only single rows of
    it are read. One that is becomes Q80 where `weight_type` is Q40, because its errors count twice. One tensor at a
    time is converted, so the memory needed is that of the largest.

    Raises DllamaError from the constructor when rows are no whole number of `weight_type` blocks.
    """

    def __init__(self, source: ModelSource, weight_type: FloatType, method: QuantizationMethod = "absmax") -> None:
        self.original = source
        self._method = method
        self._spec = replace(source.spec, weight_type=weight_type)
        check_spec(self._spec, source.path)
        self._tensors = {name: replace(info, float_type=self._type(info)) for name, info in source.tensors.items()}

    def _type(self, info: TensorInfo) -> FloatType:
        if always_f32(info.name, info.shape):
            return info.float_type
        wanted = self._spec.weight_type
        if info.name != "embedding":
            return wanted
        if not self._spec.tied_embeddings:
            return info.float_type
        return FloatType.Q80 if wanted is FloatType.Q40 else wanted

    @property
    def path(self) -> Path:
        """The file or folder, for messages."""
        return self.original.path

    @property
    def spec(self) -> ModelSpec:
        """Shape of the model."""
        return self._spec

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by canonical name, in the original's order."""
        return MappingProxyType(self._tensors)

    @property
    def converted_types(self) -> Mapping[str, FloatType]:
        """Number formats that `read` converts, by name, and what they become."""
        return {
            self.original.tensors[name].float_type.value: info.float_type
            for name, info in self._tensors.items()
            if self.is_converted(name)
        }

    def is_converted(self, name: str) -> bool:
        """Whether `read` makes a converted copy."""
        return self._tensors[name].float_type is not self.original.tensors[name].float_type

    def read(self, name: str) -> npt.NDArray[np.uint8]:
        """One tensor's blocks as uint8 [n_rows, row_bytes]: a view, or a converted copy. Raises KeyError if unknown."""
        info, stored = self._tensors[name], self.original.tensors[name].float_type
        raw = self.original.read(name)
        if stored is info.float_type:
            return raw
        converted = np.empty((info.n_rows, info.row_bytes), dtype=np.uint8)

        def convert(rows: slice) -> None:
            try:
                converted[rows] = quantize(dequantize(raw[rows], stored), info.float_type, self._method)
            except DllamaError as error:
                place = f"{self.path}: the tensor {name}, from row {rows.start} on"
                raise DllamaError(f"{place}: {error}; the file is damaged") from error

        with ThreadPoolExecutor() as pool:  # NumPy lets other threads run while it computes
            for _ in pool.map(convert, row_chunks(info.n_rows, info.n_columns)):
                pass
        return converted

    def release(self, name: str) -> None:
        """Tells the operating system that this tensor's mapped pages are not needed for now."""
        self.original.release(name)

    def close(self) -> None:
        """Unmaps the files; arrays returned by `read` must not be used afterwards."""
        self.original.close()
