"""Folders as Meta publishes Llama (`params.json` and `consolidated.*.pth`) as a `ModelSource`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from dllama_gpu.errors import DllamaError
from dllama_gpu.formats.json_file import JsonFields
from dllama_gpu.formats.mapped_file import MappedFile
from dllama_gpu.formats.pth_file import PthTensor, read_pth
from dllama_gpu.model.codecs import dequantize, quantize
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.source import TensorInfo, always_f32, main_type
from dllama_gpu.model.spec import Architecture, ModelSpec, RopeScaling
from dllama_gpu.model.spec_check import check_spec
from dllama_gpu.model.tensor_check import check_tensors

PARAMS = "params.json"
_TYPES = {"F32": FloatType.F32, "F16": FloatType.F16, "BF16": FloatType.BF16}
_MODEL_NAMES = {"tok_embeddings.weight": "embedding", "norm.weight": "final_norm", "output.weight": "head"}
_LAYER_NAMES = {
    "attention.wq.weight": "q",
    "attention.wk.weight": "k",
    "attention.wv.weight": "v",
    "attention.wo.weight": "o",
    "feed_forward.w1.weight": "gate",
    "feed_forward.w2.weight": "down",
    "feed_forward.w3.weight": "up",
    "attention_norm.weight": "attention_norm",
    "ffn_norm.weight": "ffn_norm",
}
# Every file has a part of a matrix: these are cut by input columns, the others by output rows. Vectors are whole.
_CUT_BY_COLUMNS = ("o", "down")
_LLAMA3_THETA = 500000.0

_Part = tuple[MappedFile, PthTensor]


class LlamaFolder:
    """A folder with memory-mapped checkpoints; a `ModelSource` in the number format that is stored.

    Matrices of a single checkpoint are views of it, others are put together from their parts as they are read. Rows of
    q and k lie in Meta's own order, which is that of interleaved RoPE. Vectors are always F32.

    Raises DllamaError from the constructor when a file is missing, damaged, or the model is not supported.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: list[MappedFile] = []
        try:
            params = JsonFields.read(path / PARAMS)
            self._parts = self._open_parts()
            embedding = self._parts.get("embedding", [])
            dim = params.number("dim", int)
            # Cut by columns in Llama 1 and 2, by rows in Llama 3.
            cut_by_columns = bool(embedding) and embedding[0][1].shape[-1] != dim
            self._by_columns = {*_CUT_BY_COLUMNS, *(["embedding"] if cut_by_columns else [])}
            self._tensors = {name: self._info(name, parts) for name, parts in self._parts.items()}
            self._spec = _spec(params, self._tensors, dim)
            check_tensors(path, self._spec, self._tensors, _stored_name)
        except DllamaError:
            self.close()
            raise

    @property
    def path(self) -> Path:
        """The folder, for messages."""
        return self._path

    @property
    def spec(self) -> ModelSpec:
        """Shape of the model."""
        return self._spec

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by canonical name, in the order of the first file."""
        return MappingProxyType(self._tensors)

    def read(self, name: str) -> npt.NDArray[np.uint8]:
        """One tensor as uint8 [n_rows, row_bytes]: a view, or a copy put together or converted. KeyError if unknown."""
        info, parts = self._tensors[name], self._parts[name]
        if len(info.shape) == 1:
            parts = parts[:1]
        raw = [
            file.view(part.offset, part.n_bytes).reshape(part.shape[0] if len(part.shape) == 2 else 1, -1)
            for file, part in parts
        ]
        whole = raw[0] if len(raw) == 1 else np.concatenate(raw, axis=int(self._cut_by_columns(name)))
        stored_type = _TYPES[parts[0][1].dtype]
        if stored_type is info.float_type:
            return whole
        try:
            return quantize(dequantize(whole, stored_type), info.float_type)
        except DllamaError as error:
            raise DllamaError(f"{self._path}: the tensor {_stored_name(name)} is damaged: {error}") from error

    def release(self, name: str) -> None:
        """Tells the operating system that this tensor's mapped pages are not needed for now."""
        for file, part in self._parts[name]:
            file.release(part.offset, part.n_bytes)

    def close(self) -> None:
        """Unmaps the files; arrays returned by `read` must not be used afterwards."""
        for file in self._files:
            file.close()

    def _cut_by_columns(self, name: str) -> bool:
        return name.rsplit(".", 1)[-1] in self._by_columns

    def _open_parts(self) -> dict[str, list[_Part]]:
        """The parts of every tensor by canonical name, in the order of the files."""
        paths = sorted(self._path.glob("consolidated.*.pth"))
        if not paths:
            raise DllamaError(f"{self._path} has a {PARAMS}, but no consolidated.00.pth; the download is not complete")
        named: dict[str, list[_Part]] = {}
        for path in paths:
            file = MappedFile(path)
            self._files.append(file)
            for tensor in read_pth(file).values():
                name = _canonical_name(tensor.name)
                if name is not None:
                    named.setdefault(name, []).append((file, tensor))
                elif tensor.name != "rope.freqs":  # recomputed from the parameters
                    raise DllamaError(f"{path}: the tensor {tensor.name} has no place in the architecture llama")
        for name, parts in named.items():
            if len(parts) != len(paths):
                raise DllamaError(
                    f"{self._path}: {_stored_name(name)} is in {len(parts)} of {len(paths)} files; some belong to "
                    "another model"
                )
        return named

    def _info(self, name: str, parts: list[_Part]) -> TensorInfo:
        shapes = [tensor.shape for _, tensor in parts]
        first = shapes[0]
        if len(first) not in (1, 2) or 0 in first or len({tensor.dtype for _, tensor in parts}) > 1:
            raise DllamaError(f"{self._path}: {_stored_name(name)} has the shape {list(first)}, which no weight has")
        shape = first
        if len(first) == 2:
            cut = int(self._cut_by_columns(name))
            if len({part[1 - cut] if len(part) == 2 else 0 for part in shapes}) > 1:
                raise DllamaError(f"{self._path}: the parts of {_stored_name(name)} do not fit together")
            total = sum(part[cut] for part in shapes)
            shape = (first[0], total) if cut else (total, first[1])
        float_type = FloatType.F32 if always_f32(name, shape) else _TYPES[parts[0][1].dtype]
        return TensorInfo(name, shape, float_type)


def _spec(params: JsonFields, tensors: Mapping[str, TensorInfo], dim: int) -> ModelSpec:
    for name in ("embedding", "layers.0.gate"):
        if name not in tensors:
            raise DllamaError(f"{params.path.parent}: the tensor {_stored_name(name)} is missing")
    n_heads = params.number("n_heads", int)
    theta = params.number("rope_theta", float, 10000.0)
    scaled = params.flag("use_scaled_rope", False)
    context = 131072 if scaled else 8192 if theta == _LLAMA3_THETA else 4096
    # Llama 3.1 and 3.3 scale by 8, the small models of 3.2 by 32, and their files do not say so.
    factor = params.number("rope_scaling_factor", float, 32.0 if dim <= 3072 else 8.0)
    spec = ModelSpec(
        architecture=Architecture.LLAMA,
        dim=dim,
        hidden_dim=tensors["layers.0.gate"].n_rows,
        n_layers=params.number("n_layers", int),
        n_heads=n_heads,
        n_kv_heads=params.number("n_kv_heads", int, n_heads),
        head_dim=params.number("head_dim", int, dim // max(1, n_heads)),
        vocab_size=tensors["embedding"].n_rows,
        max_seq_len=params.number("max_seq_len", int, context),
        weight_type=main_type(tensors.values()),
        norm_epsilon=params.number("norm_eps", float),
        rope_theta=theta,
        rope_scaling=RopeScaling(factor, 1.0, 4.0, 8192) if scaled else None,
        tied_embeddings="head" not in tensors,
    )
    check_spec(spec, params.path)
    return spec


def _canonical_name(name: str) -> str | None:
    if name in _MODEL_NAMES:
        return _MODEL_NAMES[name]
    layer = re.fullmatch(r"layers\.(0|[1-9]\d{0,3})\.(.+)", name)
    if layer is None or layer[2] not in _LAYER_NAMES:
        return None
    return f"layers.{layer[1]}.{_LAYER_NAMES[layer[2]]}"


def _stored_name(name: str) -> str:
    """Meta's name of a tensor, from the canonical one."""
    parts = name.split(".")
    if parts[0] == "layers":
        return f"layers.{parts[1]}." + {short: full for full, short in _LAYER_NAMES.items()}[parts[2]]
    return {short: full for full, short in _MODEL_NAMES.items()}[name]
