"""GGUF files as a `ModelSource`."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize as dequantize_ggml

from dllama_gpu.errors import DllamaError
from dllama_gpu.formats.gguf_header import GgufTensor, MetadataValue
from dllama_gpu.formats.gguf_parts import GgufParts
from dllama_gpu.model.codecs import dequantize, quantize, row_chunks
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.gguf_names import ROPE_DIVISORS, canonical_tensors, stored_name
from dllama_gpu.model.gguf_spec import Metadata, spec_from_metadata
from dllama_gpu.model.m_format import layer_layout
from dllama_gpu.model.source import TensorInfo, always_f32
from dllama_gpu.model.spec import ModelSpec

_KEPT_TYPES = {
    GGMLQuantizationType.F32: FloatType.F32,
    GGMLQuantizationType.F16: FloatType.F16,
    GGMLQuantizationType.BF16: FloatType.BF16,
    GGMLQuantizationType.Q4_0: FloatType.Q40,
    GGMLQuantizationType.Q4_1: FloatType.Q41,
    GGMLQuantizationType.Q8_0: FloatType.Q80,
}
"""Types that are read as they lie in the file; all others are dequantized and stored as Q80."""


class GgufFile:
    """A memory-mapped GGUF file, or several of a split model by the path of any of them; a `ModelSource`.

    Matrices of the types F32, F16, BF16, Q4_0, Q4_1 and Q8_0 are views of the file; other types are converted to Q80 at
    each `read`. Vectors are always F32.

    Raises DllamaError from the constructor when the file is missing, damaged, truncated, of another format, or holds a
    model that is not supported.
    """

    def __init__(self, path: Path) -> None:
        self._parts = GgufParts(path)
        try:
            header = self._parts.header
            self.metadata: Mapping[str, MetadataValue] = MappingProxyType(header.metadata)
            fields = Metadata(path, header.metadata)
            divisors = header.tensors.get(ROPE_DIVISORS)
            self._stored = canonical_tensors(path, fields.architecture, header.tensors)
            self._tensors = {name: _tensor_info(path, name, tensor) for name, tensor in self._stored.items()}
            self._spec = spec_from_metadata(fields, self._tensors, None if divisors is None else self._floats(divisors))
            _check_tensors(path, self._spec, self._tensors)
        except DllamaError:
            self._parts.close()
            raise

    @property
    def path(self) -> Path:
        """The file, the first of several, for messages."""
        return self._parts.path

    @property
    def spec(self) -> ModelSpec:
        """Shape of the model."""
        return self._spec

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by canonical name, in file order."""
        return MappingProxyType(self._tensors)

    @property
    def converted_types(self) -> Mapping[str, FloatType]:
        """GGML types of matrices that every `read` converts, by their names (`Q4_K`), and what they become."""
        return {
            tensor.ggml_type.name: self._tensors[name].float_type
            for name, tensor in self._stored.items()
            if self.is_converted(name)
        }

    def is_converted(self, name: str) -> bool:
        """Whether `read` makes a converted copy of a matrix."""
        tensor = self._stored[name]
        return len(tensor.shape) > 1 and tensor.ggml_type not in _KEPT_TYPES

    def read(self, name: str) -> npt.NDArray[np.uint8]:
        """One tensor's blocks as uint8 [n_rows, row_bytes]: a view, or a converted copy. Raises KeyError if unknown."""
        info = self._tensors[name]
        tensor = self._stored[name]
        raw = self._parts.view(tensor).reshape(info.n_rows, -1)
        if _KEPT_TYPES.get(tensor.ggml_type) is info.float_type:
            return raw
        converted = np.empty((info.n_rows, info.row_bytes), dtype=np.uint8)

        def convert(rows: slice) -> None:
            converted[rows] = quantize(_to_float32(raw[rows], tensor.ggml_type), info.float_type)

        try:
            with ThreadPoolExecutor() as pool:  # NumPy lets other threads run while it computes
                for _ in pool.map(convert, row_chunks(info.n_rows, info.n_columns)):
                    pass
        except DllamaError as error:
            raise DllamaError(f"{self.path}: the tensor {tensor.name} is damaged: {error}") from error
        return converted

    def release(self, name: str) -> None:
        """Tells the operating system that this tensor's mapped pages are not needed for now."""
        self._parts.release(self._stored[name])

    def close(self) -> None:
        """Unmaps the file; arrays returned by `read` must not be used afterwards."""
        self._parts.close()

    def _floats(self, tensor: GgufTensor) -> npt.NDArray[np.float32]:
        """A small tensor outside the model's own ones as float32 of its shape."""
        raw = self._parts.view(tensor).reshape(1, -1)
        _check_readable(self.path, tensor)
        return _to_float32(raw, tensor.ggml_type).reshape(tensor.shape)


def _to_float32(raw: npt.NDArray[np.uint8], ggml_type: GGMLQuantizationType) -> npt.NDArray[np.float32]:
    """uint8 [n_rows, row_bytes] of a GGML type to float32 [n_rows, n]."""
    kept = _KEPT_TYPES.get(ggml_type)
    if kept is not None:
        return dequantize(raw, kept)
    with np.errstate(all="ignore"):  # a damaged scale may overflow; what comes of it is reported when it is quantized
        values: npt.NDArray[np.float32] = dequantize_ggml(np.ascontiguousarray(raw), ggml_type)
    return values


def _check_readable(path: Path, tensor: GgufTensor) -> None:
    """Raises DllamaError when the gguf package cannot decode the tensor's type."""
    if tensor.ggml_type in _KEPT_TYPES:
        return
    try:
        _to_float32(np.zeros((1, GGML_QUANT_SIZES[tensor.ggml_type][1]), dtype=np.uint8), tensor.ggml_type)
    except NotImplementedError:
        raise DllamaError(
            f"{path}: the tensor {tensor.name} has the type {tensor.ggml_type.name}, which is not supported; "
            "Q4_0, Q8_0, F16 and the K-quants are"
        ) from None


def _tensor_info(path: Path, name: str, tensor: GgufTensor) -> TensorInfo:
    """How the tensor will be read."""
    _check_readable(path, tensor)
    if always_f32(name, tensor.shape):
        return TensorInfo(name, tensor.shape, FloatType.F32)
    return TensorInfo(name, tensor.shape, _KEPT_TYPES.get(tensor.ggml_type, FloatType.Q80))


def _check_tensors(path: Path, spec: ModelSpec, tensors: dict[str, TensorInfo]) -> None:
    """Raises DllamaError when a tensor is missing, has another shape than `spec` gives it, or is one too many."""
    wanted = {"embedding": (spec.vocab_size, spec.dim), "final_norm": (spec.dim,)}
    if not spec.tied_embeddings:
        wanted["head"] = (spec.vocab_size, spec.dim)
    n_tensors = spec.n_layers * sum(1 for _ in layer_layout(spec, 0))
    if n_tensors > len(tensors):
        raise DllamaError(
            f"{path}: block_count is {spec.n_layers}, but the file has only {len(tensors)} tensors, where its layers "
            f"should have {n_tensors}; the file is damaged"
        )
    for layer in range(spec.n_layers):
        wanted |= {info.name: info.shape for info in layer_layout(spec, layer)}
    for name, shape in wanted.items():
        if name not in tensors:
            raise DllamaError(f"{path}: the tensor {stored_name(name)} is missing; the file is damaged")
        if tensors[name].shape != shape:
            found, expected = list(tensors[name].shape), list(shape)
            raise DllamaError(f"{path}: the tensor {stored_name(name)} has the shape {found}, but {expected} is wanted")
    for name in tensors:
        if name not in wanted:
            raise DllamaError(
                f"{path}: the tensor {stored_name(name)} belongs to no layer: block_count is {spec.n_layers}"
            )
