"""PyTorch checkpoints without PyTorch: pickled by stand-ins that have its names."""

from __future__ import annotations

import collections
import io
import json
import pickle
import sys
import types
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dllama_gpu.model.codecs import quantize
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.spec import ModelSpec
from tests.support.models import random_tensors

STORAGE_NAMES = {FloatType.F32: "FloatStorage", FloatType.F16: "HalfStorage", FloatType.BF16: "BFloat16Storage"}
META_NAMES = {
    "embedding": "tok_embeddings.weight",
    "final_norm": "norm.weight",
    "head": "output.weight",
    "q": "attention.wq.weight",
    "k": "attention.wk.weight",
    "v": "attention.wv.weight",
    "o": "attention.wo.weight",
    "gate": "feed_forward.w1.weight",
    "down": "feed_forward.w2.weight",
    "up": "feed_forward.w3.weight",
    "attention_norm": "attention_norm.weight",
    "ffn_norm": "ffn_norm.weight",
}


class _Tensor:
    def __init__(self, values: npt.NDArray[np.float32], key: str, float_type: FloatType) -> None:
        self.values, self.key, self.float_type = values, key, float_type


class _Storage:
    def __init__(self, tensor: _Tensor) -> None:
        self.tensor = tensor


@contextmanager
def _stand_ins() -> Iterator[types.ModuleType]:
    """Modules `torch` and `torch._utils` with just the names that a checkpoint mentions."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in STORAGE_NAMES.values():
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2() -> None: ...

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = torch.rebuild = _rebuild_tensor_v2  # type: ignore[attr-defined]
    saved = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
    sys.modules |= {"torch": torch, "torch._utils": utils}
    try:
        yield torch
    finally:
        for name, module in saved.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def write_pth(
    path: Path,
    tensors: Mapping[str, Any],
    float_type: FloatType = FloatType.F32,
    *,
    strides: tuple[int, ...] | None = None,
    first: int = 0,
    compression: int = zipfile.ZIP_STORED,
) -> None:
    """Writes a checkpoint as `torch.save` does; values that are no arrays are pickled as they are."""
    with _stand_ins() as torch:

        class Pickler(pickle.Pickler):
            def persistent_id(self, value: Any) -> Any:
                if not isinstance(value, _Storage):
                    return None
                tensor = value.tensor
                kind = getattr(torch, STORAGE_NAMES[tensor.float_type])
                return ("storage", kind, tensor.key, "cpu", tensor.values.size)

            def reducer_override(self, value: Any) -> Any:
                if not isinstance(value, _Tensor):
                    return NotImplemented
                shape = value.values.shape
                usual = tuple(int(np.prod(shape[axis + 1 :], dtype=int)) for axis in range(len(shape)))
                details = (_Storage(value), first, shape, strides or usual, False, collections.OrderedDict())
                return torch.rebuild, details

        stored = {
            name: _Tensor(value, str(key), float_type) if isinstance(value, np.ndarray) else value
            for key, (name, value) in enumerate(tensors.items())
        }
        buffer = io.BytesIO()
        Pickler(buffer, protocol=2).dump(collections.OrderedDict(stored))
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("consolidated/data.pkl", buffer.getvalue())
        for tensor in stored.values():
            if isinstance(tensor, _Tensor):
                data = quantize(tensor.values.reshape(1, -1), float_type).tobytes()
                archive.writestr(f"consolidated/data/{tensor.key}", data)
        archive.writestr("consolidated/version", "3\n")


def meta_name(name: str) -> str:
    """Meta's name of a tensor, from the canonical one."""
    parts = name.split(".")
    prefix = f"layers.{parts[1]}." if parts[0] == "layers" else ""
    return prefix + META_NAMES[parts[-1]]


def write_llama_folder(
    folder: Path, spec: ModelSpec, *, n_files: int = 1, embedding_axis: int = 0, float_type: FloatType = FloatType.BF16
) -> None:
    """Writes `params.json` and `n_files` checkpoints of a random model, cut as Meta cuts them."""
    folder.mkdir(parents=True, exist_ok=True)
    params: dict[str, Any] = {
        "dim": spec.dim,
        "n_layers": spec.n_layers,
        "n_heads": spec.n_heads,
        "n_kv_heads": spec.n_kv_heads,
        "vocab_size": -1,
        "norm_eps": spec.norm_epsilon,
        "rope_theta": spec.rope_theta,
        "max_seq_len": spec.max_seq_len,
        **({} if spec.rope_scaling is None else {"use_scaled_rope": True}),
    }
    (folder / "params.json").write_text(json.dumps(params), encoding="utf-8")
    parts: list[dict[str, Any]] = [{} for _ in range(n_files)]
    for name, values in random_tensors(replace(spec, weight_type=FloatType.F32), seed=7):
        kind = name.rsplit(".", 1)[-1]
        axis = {"o": 1, "down": 1, "embedding": embedding_axis}.get(kind, 0)
        cut = [values[0]] * n_files if kind.endswith("norm") else np.split(values, n_files, axis)
        for part, piece in zip(parts, cut, strict=True):
            part[meta_name(name)] = np.ascontiguousarray(piece)
    for number, part in enumerate(parts):
        part["rope.freqs"] = np.ones(spec.head_dim // 2, np.float32)
        write_pth(folder / f"consolidated.{number:02}.pth", part, float_type)
