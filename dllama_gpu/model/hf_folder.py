"""Folders of Hugging Face's `transformers` library (config.json and safetensors files) as a `ModelSource`."""

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
from dllama_gpu.formats.safetensors_header import SafetensorsTensor, read_safetensors_header
from dllama_gpu.formats.shown import shown_value
from dllama_gpu.model.codecs import dequantize, quantize
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.hf_architectures import HfArchitecture
from dllama_gpu.model.hf_config import architecture_of, spec_from_config
from dllama_gpu.model.source import TensorInfo, always_f32, main_type
from dllama_gpu.model.spec import ModelSpec, RopeStyle
from dllama_gpu.model.tensor_check import check_tensors

CONFIG = "config.json"
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"

_TYPES = {"F32": FloatType.F32, "F16": FloatType.F16, "BF16": FloatType.BF16}
# Recomputed from the configuration; old checkpoints store them.
_DERIVED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq|model\.rotary_emb\.inv_freq")


class HfFolder:
    """A folder with memory-mapped safetensors files; a `ModelSource` in the number formats that are stored.

    Matrices are views of the files, but rows of q and k are reordered copies where the architecture's RoPE wants them
    interleaved. Vectors and routers are always F32.

    Raises DllamaError from the constructor when a file is missing, damaged, truncated, or the model is not supported.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: list[MappedFile] = []
        try:
            config = JsonFields.read(_config_of(path))
            self._kind = architecture_of(config)
            self._stored = self._open_tensors(_weight_files(path))
            self._tensors = {name: _tensor_info(path, name, tensor) for name, (_, tensor) in self._stored.items()}
            weight_type = main_type(self._tensors.values())
            self._spec = spec_from_config(config, weight_type=weight_type, has_head="head" in self._tensors)
            if self._spec.tied_embeddings:
                self._tensors.pop("head", None)  # a copy of the embedding
            check_tensors(path, self._spec, self._tensors, self._kind.stored_name)
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
        """All tensors by canonical name, in the order of the files."""
        return MappingProxyType(self._tensors)

    def read(self, name: str) -> npt.NDArray[np.uint8]:
        """One tensor as uint8 [n_rows, row_bytes]: a view, or a reordered or converted copy. KeyError if unknown."""
        info = self._tensors[name]
        file, tensor = self._stored[name]
        raw = file.view(tensor.offset, tensor.n_bytes).reshape(info.n_rows, -1)
        stored_type = _TYPES[tensor.dtype]
        if self._kind.norms_less_one and name.endswith("norm"):
            return quantize(dequantize(raw, stored_type) + np.float32(1), FloatType.F32)
        if stored_type is not info.float_type:
            try:
                return quantize(dequantize(raw, stored_type), info.float_type)
            except DllamaError as error:
                raise DllamaError(f"{file.path}: the tensor {tensor.name} is damaged: {error}") from error
        short = name.rsplit(".", 1)[-1]
        if short in ("q", "k") and self._kind.rope_style is RopeStyle.INTERLEAVED:
            return _interleaved(raw, self._spec.head_dim)
        # The format promises no alignment, kernels want that of the elements.
        return raw if tensor.offset % info.float_type.block_bytes == 0 else raw.copy()

    def release(self, name: str) -> None:
        """Tells the operating system that this tensor's mapped pages are not needed for now."""
        file, tensor = self._stored[name]
        file.release(tensor.offset, tensor.n_bytes)

    def close(self) -> None:
        """Unmaps the files; arrays returned by `read` must not be used afterwards."""
        for file in self._files:
            file.close()

    def _open_tensors(
        self, files: Mapping[Path, frozenset[str] | None]
    ) -> dict[str, tuple[MappedFile, SafetensorsTensor]]:
        """The model's tensors by canonical name. Raises DllamaError for one that has no such name, or comes twice."""
        named: dict[str, tuple[MappedFile, SafetensorsTensor]] = {}
        for path, expected in files.items():
            file = MappedFile(path)
            self._files.append(file)
            tensors = read_safetensors_header(file)
            missing = sorted((expected or frozenset()) - tensors.keys())
            if missing:
                raise DllamaError(f"{path} has no tensor {missing[0]}, which {_INDEX} places in it; download it again")
            for tensor in tensors.values():
                name = self._kind.canonical_name(tensor.name)
                if name is None:
                    if self._kind.is_of_other_part(tensor.name):
                        continue
                    if _DERIVED.fullmatch(tensor.name):
                        continue
                    raise DllamaError(f"{path}: {_refusal(tensor.name, self._kind)}")
                if name in named:
                    raise DllamaError(f"{path}: the tensor {tensor.name} is in {named[name][0].path.name} too")
                named[name] = (file, tensor)
        return named


def is_hf_folder(path: Path) -> bool:
    """Whether a folder looks like one that `HfFolder` reads."""
    return (path / CONFIG).is_file()


def _config_of(path: Path) -> Path:
    config = path / CONFIG
    if config.is_file():
        return config
    models = sorted(file.name for file in path.iterdir() if file.suffix in (".gguf", ".m"))
    if models:
        raise DllamaError(f"{path} is a folder; give a model file in it, such as {path / models[0]}")
    raise DllamaError(
        f"{path} is a folder without {CONFIG}, so it holds no model; give a model file, or a folder that was "
        "downloaded from Hugging Face as a whole"
    )


def _weight_files(path: Path) -> dict[Path, frozenset[str] | None]:
    """The folder's safetensors files, each with the tensors that the index says are in it (None: no index)."""
    if (path / _INDEX).is_file():
        return _indexed_files(path)
    if (path / _SINGLE).is_file():
        return {path / _SINGLE: None}
    if any(path.glob("*.bin")) or any(path.glob("*.pth")):
        raise DllamaError(
            f"{path} holds its weights in PyTorch's own format, which runs code when it is read; get a folder with "
            "safetensors files"
        )
    raise DllamaError(f"{path} has neither {_SINGLE} nor {_INDEX}; the download is not complete")


def _indexed_files(path: Path) -> dict[Path, frozenset[str] | None]:
    index = JsonFields.read(path / _INDEX, 256 << 20)
    weight_map = index.nested("weight_map").fields
    by_file: dict[str, set[str]] = {}
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file or "\0" in file or "\\" in file:
            raise DllamaError(
                f"{path / _INDEX}: {tensor[:80]!r} is placed in {shown_value(file)}, which is no file name"
            )
        by_file.setdefault(file, set()).add(tensor)
    if not by_file:
        raise DllamaError(f"{path / _INDEX} names no tensor in its weight_map; repeat the download")
    for file in by_file:
        if not (path / file).is_file():
            raise DllamaError(
                f"{path} lacks {file}, one of its {len(by_file)} weight files; the download is incomplete"
            )
    return {path / file: frozenset(tensors) for file, tensors in sorted(by_file.items())}


def _tensor_info(path: Path, name: str, tensor: SafetensorsTensor) -> TensorInfo:
    """How the tensor will be read."""
    if tensor.dtype not in _TYPES:
        raise DllamaError(
            f"{path}: the tensor {tensor.name} has the number format {tensor.dtype}, but only "
            f"{', '.join(_TYPES)} are supported; get the model in one of these, or as a GGUF file"
        )
    if len(tensor.shape) not in (1, 2) or 0 in tensor.shape:
        raise DllamaError(f"{path}: the tensor {tensor.name} has the shape {list(tensor.shape)}, which no weight has")
    return TensorInfo(name, tensor.shape, FloatType.F32 if always_f32(name, tensor.shape) else _TYPES[tensor.dtype])


def _refusal(name: str, kind: HfArchitecture) -> str:
    architecture = kind.architecture.value
    if name.endswith(".bias"):
        return f"the tensor {name} is a bias, which the architecture {architecture} does not have here"
    return f"the tensor {name} has no place in the architecture {architecture}"


def _interleaved(raw: npt.NDArray[np.uint8], head_dim: int) -> npt.NDArray[np.uint8]:
    """Rows of q or k for RoPE over adjacent pairs: of each head, old row i goes to 2i, i + head_dim / 2 to 2i + 1."""
    n_rows, row_bytes = raw.shape
    heads = raw.reshape(n_rows // head_dim, 2, head_dim // 2, row_bytes)
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(n_rows, row_bytes)
