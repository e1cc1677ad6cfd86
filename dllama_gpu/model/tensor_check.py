"""Check that a file or folder holds just the tensors that its model's shape asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from dllama_gpu.errors import DllamaError
from dllama_gpu.model.m_format import layer_layout
from dllama_gpu.model.source import TensorInfo
from dllama_gpu.model.spec import ModelSpec


def check_tensors(
    path: Path, spec: ModelSpec, tensors: Mapping[str, TensorInfo], stored_name: Callable[[str], str]
) -> None:
    """Raises DllamaError when a tensor is missing, has another shape than `spec` gives it, or is one too many.

    `stored_name` turns a canonical name into the one that the file uses, for messages.
    """
    n_layers = 1 + max((int(name.split(".")[1]) for name in tensors if name.startswith("layers.")), default=-1)
    if n_layers != spec.n_layers:  # before a list is made that is as long as the file says
        raise DllamaError(
            f"{path}: the model should have {spec.n_layers} layers, but its tensors are those of {n_layers}; files are "
            "missing or belong to another model"
        )
    wanted = {"embedding": (spec.vocab_size, spec.dim), "final_norm": (spec.dim,)}
    if not spec.tied_embeddings:
        wanted["head"] = (spec.vocab_size, spec.dim)
    for layer in range(spec.n_layers):
        wanted |= {info.name: info.shape for info in layer_layout(spec, layer)}
    for name, shape in wanted.items():
        if name not in tensors:
            raise DllamaError(f"{path}: the tensor {stored_name(name)} is missing; files are missing or damaged")
        if tensors[name].shape != shape:
            found, expected = list(tensors[name].shape), list(shape)
            raise DllamaError(f"{path}: the tensor {stored_name(name)} has the shape {found}, but {expected} is wanted")
    for name in tensors:
        if name not in wanted:
            raise DllamaError(f"{path}: the tensor {stored_name(name)} has no place in the model that it belongs to")
