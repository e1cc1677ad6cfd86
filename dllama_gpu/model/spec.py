"""What a model is: its shape and the few numbers its arithmetic depends on."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dllama_gpu.model.float_type import FloatType


class Architecture(Enum):
    """Families of models; each has one graph builder."""

    LLAMA = "llama"
    QWEN3 = "qwen3"
    QWEN3_MOE = "qwen3_moe"


class RopeStyle(Enum):
    """Which two elements of a head are rotated together by RoPE.

    INTERLEAVED pairs (x[2i], x[2i+1]); HALF_SPLIT (also called NeoX or "falcon") pairs (x[i], x[i + head_dim/2]).
    """

    INTERLEAVED = "interleaved"
    HALF_SPLIT = "half_split"


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's frequency scaling. Source: Llama 3.1 reference code, `apply_scaling`.

    With both frequency factors 1 and an original length of 0 every frequency is divided by `factor`: linear scaling.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_seq_len: int


@dataclass(frozen=True)
class ModelSpec:
    """Shape of a model. All sizes are element counts."""

    architecture: Architecture
    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    max_seq_len: int
    weight_type: FloatType
    """Type of most matrices, for display; each tensor states its own."""
    norm_epsilon: float = 1e-5
    rope_theta: float = 10000.0
    rope_style: RopeStyle = RopeStyle.INTERLEAVED
    rope_scaling: RopeScaling | None = None
    n_experts: int = 0
    n_active_experts: int = 0
    moe_hidden_dim: int = 0
    tied_embeddings: bool = False
    """True when the output head is the embedding tensor itself (no tensor `head` is stored)."""

    @property
    def q_dim(self) -> int:
        """Width of all query heads together."""
        return self.n_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Width of all key (or value) heads together."""
        return self.n_kv_heads * self.head_dim
