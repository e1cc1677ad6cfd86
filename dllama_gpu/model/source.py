"""Where weights come from: one interface for `.m` files, GGUF files and whatever follows.

Canonical tensor names (matrices are row-major [out, in]):

==============================  ==================  ===========================================
name                            shape               note
==============================  ==================  ===========================================
embedding                       [vocab_size, dim]
layers.L.q / .k / .v            [q_dim|kv_dim, dim] rows ordered as `ModelSpec.rope_style` wants
layers.L.o                      [dim, q_dim]
layers.L.gate / .up             [hidden_dim, dim]   `w1` and `w3` of the `.m` format
layers.L.down                   [dim, hidden_dim]   `w2` of the `.m` format
layers.L.attention_norm         [dim]               before attention
layers.L.ffn_norm               [dim]               before the feed-forward part
layers.L.q_bias/.k_bias/.v_bias [q_dim|kv_dim]      Qwen 2 only
layers.L.q_norm / .k_norm       [head_dim]          Qwen 3 and Gemma 3 only
layers.L.post_attention_norm    [dim]               Gemma 3 only: of what attention adds
layers.L.post_ffn_norm          [dim]               Gemma 3 only: of what the feed-forward part adds
layers.L.router                 [n_experts, dim]    mixture of experts only
layers.L.experts.E.gate|up|down as above            mixture of experts only
final_norm                      [dim]
head                            [vocab_size, dim]   absent when `ModelSpec.tied_embeddings`
==============================  ==================  ===========================================

Vectors and the router are always F32. Norms are what the normed row is multiplied by: where a file holds them less 1,
as Gemma's do, the source adds it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.spec import ModelSpec


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor: `shape` is (out, in) for a matrix and (n,) for a vector."""

    name: str
    shape: tuple[int, ...]
    float_type: FloatType

    @property
    def n_rows(self) -> int:
        """Rows of a matrix; a vector is one row."""
        return self.shape[0] if len(self.shape) == 2 else 1

    @property
    def n_columns(self) -> int:
        """Elements of one row."""
        return self.shape[-1]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in `float_type`."""
        return self.float_type.row_bytes(self.n_columns)

    @property
    def n_bytes(self) -> int:
        """Bytes of the whole tensor."""
        return self.n_rows * self.row_bytes


def always_f32(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is read as F32 whatever the model's number format: vectors, and routers of experts."""
    return len(shape) == 1 or name.endswith(".router")


def main_type(tensors: Iterable[TensorInfo]) -> FloatType:
    """The number format that most weights of the layers' matrices have."""
    elements: Counter[FloatType] = Counter()
    for info in tensors:
        if info.name.startswith("layers.") and len(info.shape) == 2:
            elements[info.float_type] += info.n_rows * info.n_columns
    return elements.most_common(1)[0][0] if elements else FloatType.F32


class ModelSource(Protocol):
    """A model's weights, read tensor by tensor without loading the whole file."""

    @property
    def path(self) -> Path:
        """The file or folder, for messages."""

    @property
    def spec(self) -> ModelSpec:
        """Shape of the model."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by canonical name, in file order."""

    def read(self, name: str) -> npt.NDArray[np.uint8]:
        """Raw blocks of one tensor as uint8 [n_rows, row_bytes] in its `float_type`.

        A view of the mapped file where the file's own type is kept (so pages are read when touched), else a
        converted copy. The view stays valid until `close`.
        """

    def release(self, name: str) -> None:
        """Tells the operating system that this tensor's mapped pages are not needed for now."""

    def close(self) -> None:
        """Unmaps the file; arrays returned by `read` must not be used afterwards."""
