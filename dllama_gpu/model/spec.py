"""What a model is: its shape and the few numbers its arithmetic depends on."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dllama_gpu.model.float_type import FloatType


class Architecture(Enum):
    """Families of models; each has one graph builder."""

    LLAMA = "llama"
    MIXTRAL = "mixtral"
    QWEN2 = "qwen2"
    QWEN3 = "qwen3"
    QWEN3_MOE = "qwen3_moe"
    GEMMA3 = "gemma3"
    SMOLLM3 = "smollm3"

    @property
    def has_experts(self) -> bool:
        """Whether feed-forward parts are mixtures of experts."""
        return self in (Architecture.MIXTRAL, Architecture.QWEN3_MOE)

    @property
    def has_qkv_biases(self) -> bool:
        """Whether queries, keys and values have biases."""
        return self is Architecture.QWEN2

    @property
    def has_head_norms(self) -> bool:
        """Whether every head of queries and keys is normed."""
        return self in (Architecture.QWEN3, Architecture.QWEN3_MOE, Architecture.GEMMA3)

    @property
    def has_post_norms(self) -> bool:
        """Whether what attention and feed-forward part add is normed as well."""
        return self is Architecture.GEMMA3


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
    With `beta_fast` above 0 it is YaRN's, which does not use the frequency factors: frequencies of more than
    `beta_fast` turns in the original length stay, those of fewer than `beta_slow` are divided by `factor`, and those
    between are blended; sines and cosines are multiplied by `attention_factor`. Source: Peng et al., "YaRN" (2023).
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_seq_len: int
    beta_fast: float = 0.0
    beta_slow: float = 0.0
    attention_factor: float = 1.0


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
    normalize_experts: bool = True
    """Whether the weights of a row's chosen experts are made to add up to 1."""
    sliding_window: int = 0
    """Positions that layers with a window see, the token's own included; 0: all layers see all."""
    global_interval: int = 0
    """Every so manieth layer has no window; 0: all have it."""
    local_rope_theta: float = 0.0
    """RoPE base of layers with a window, unscaled; 0: that of the others."""
    no_rope_interval: int = 0
    """Every so manieth layer rotates nothing; 0: all do."""
    attention_scale: float = 0.0
    """Factor of attention scores; 0: 1 / sqrt(head_dim)."""

    def window(self, layer: int) -> int:
        """Positions that attention of `layer` sees; 0: all."""
        every = self.global_interval
        return 0 if every and layer % every == every - 1 else self.sliding_window

    def has_rope(self, layer: int) -> bool:
        """Whether `layer` rotates queries and keys."""
        every = self.no_rope_interval
        return not every or layer % every != every - 1

    @property
    def ffn_dim(self) -> int:
        """Elements between the matrices of the feed-forward part, or of one expert."""
        return self.moe_hidden_dim if self.architecture.has_experts else self.hidden_dim

    @property
    def q_dim(self) -> int:
        """Width of all query heads together."""
        return self.n_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Width of all key (or value) heads together."""
        return self.n_kv_heads * self.head_dim
