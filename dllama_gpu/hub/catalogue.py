"""The models that distributed-llama's launcher knows, by the same names, and what they need.

Standard library alone: `launch.py` lists them before there is an environment.
"""

from __future__ import annotations

from dataclasses import dataclass

_Q40_BITS = 4.5
_F32_BYTES = 4
_KV_BYTES = 2  # an element of the KV cache, f16
LISTED_SEQ_LEN = 4096
"""Positions of the KV cache in `memory_per_node`: what the launcher runs these models with."""
_BUFFERS = 64_000_000  # what a node takes beside weights and cache, about


@dataclass(frozen=True)
class Shape:
    """The numbers that decide how much memory a model takes; `n_experts` 0 is a dense model."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    n_experts: int = 0

    @property
    def layer_weights(self) -> int:
        """Elements of the matrices of one layer."""
        attention = 2 * self.dim * self.head_dim * (self.n_heads + self.n_kv_heads)
        return attention + 3 * self.dim * self.hidden_dim * max(1, self.n_experts)

    @property
    def file_size(self) -> int:
        """Bytes of a Q40 `.m` file, about: its embedding is F32, norms and header are left out."""
        matrices = self.n_layers * self.layer_weights + self.vocab_size * self.dim
        return int(matrices * _Q40_BITS / 8) + self.vocab_size * self.dim * _F32_BYTES

    def memory_per_node(self, n_nodes: int) -> int:
        """Bytes that each of `n_nodes` equal nodes needs, about; the embedding is read from the root's disk."""
        kv_heads = max(self.n_kv_heads / n_nodes, 1)  # heads of keys and values are not cut, but held by several
        q_heads = self.n_heads / n_nodes
        attention = 2 * self.dim * self.head_dim * (q_heads + kv_heads)
        rest = 3 * self.dim * self.hidden_dim * max(1, self.n_experts) / n_nodes
        weights = self.n_layers * (attention + rest) + self.vocab_size * self.dim / n_nodes
        cache = 2 * self.n_layers * kv_heads * self.head_dim * LISTED_SEQ_LEN * _KV_BYTES
        return int(weights * _Q40_BITS / 8 + cache) + _BUFFERS


@dataclass(frozen=True)
class HubModel:
    """A model in the form of distributed-llama on the hub: a `.m` file, perhaps in parts, and a `.t` file."""

    name: str
    description: str
    repository: str
    model_files: tuple[str, ...]
    """The parts of the `.m` file, in order."""
    tokenizer_file: str
    shape: Shape

    @property
    def target(self) -> str:
        """Name of the `.m` file here."""
        return f"dllama_model_{self.name}.m"

    @property
    def tokenizer_target(self) -> str:
        """Name of the `.t` file here."""
        return f"dllama_tokenizer_{self.name}.t"


def part_names(stem: str, count: int) -> tuple[str, ...]:
    """Names of a file in parts: two letters from `aa` on behind `stem`."""
    return tuple(f"{stem}{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(count))


_LLAMA_8B = Shape(4096, 14336, 32, 32, 8, 128, 128256)
_LLAMA_70B = Shape(8192, 28672, 80, 64, 8, 128, 128256)

HUB_MODELS: tuple[HubModel, ...] = (
    HubModel(
        "llama3_1_8b_instruct_q40",
        "Llama 3.1 8B Instruct",
        "b4rtaz/Llama-3_1-8B-Q40-Instruct-Distributed-Llama",
        ("dllama_model_llama3.1_instruct_q40.m",),
        "dllama_tokenizer_llama_3_1.t",
        _LLAMA_8B,
    ),
    HubModel(
        "llama3_1_405b_instruct_q40",
        "Llama 3.1 405B Instruct",
        "b4rtaz/Llama-3_1-405B-Q40-Instruct-Distributed-Llama",
        part_names("dllama_model_llama31_405b_q40_", 56),
        "dllama_tokenizer_llama_3_1.t",
        Shape(16384, 53248, 126, 128, 8, 128, 128256),
    ),
    HubModel(
        "llama3_2_1b_instruct_q40",
        "Llama 3.2 1B Instruct",
        "b4rtaz/Llama-3_2-1B-Q40-Instruct-Distributed-Llama",
        ("dllama_model_llama3.2-1b-instruct_q40.m",),
        "dllama_tokenizer_llama3_2.t",
        Shape(2048, 8192, 16, 32, 8, 64, 128256),
    ),
    HubModel(
        "llama3_2_3b_instruct_q40",
        "Llama 3.2 3B Instruct",
        "b4rtaz/Llama-3_2-3B-Q40-Instruct-Distributed-Llama",
        ("dllama_model_llama3.2-3b-instruct_q40.m",),
        "dllama_tokenizer_llama3_2.t",
        Shape(3072, 8192, 28, 24, 8, 128, 128256),
    ),
    HubModel(
        "llama3_3_70b_instruct_q40",
        "Llama 3.3 70B Instruct",
        "b4rtaz/Llama-3_3-70B-Q40-Instruct-Distributed-Llama",
        part_names("dllama_model_llama-3.3-70b_q40", 11),
        "dllama_tokenizer_llama-3.3-70b.t",
        _LLAMA_70B,
    ),
    HubModel(
        "deepseek_r1_distill_llama_8b_q40",
        "DeepSeek R1 Distill Llama 8B",
        "b4rtaz/DeepSeek-R1-Distill-Llama-8B-Distributed-Llama",
        ("dllama_model_deepseek-r1-distill-llama-8b_q40.m",),
        "dllama_tokenizer_deepseek-r1-distill-llama-8b.t",
        _LLAMA_8B,
    ),
    HubModel(
        "qwen3_0.6b_q40",
        "Qwen 3 0.6B",
        "b4rtaz/Qwen3-0.6B-Q40-Distributed-Llama",
        ("dllama_model_qwen3_0.6b_q40.m",),
        "dllama_tokenizer_qwen3_0.6b.t",
        Shape(1024, 3072, 28, 16, 8, 128, 151936),
    ),
    HubModel(
        "qwen3_1.7b_q40",
        "Qwen 3 1.7B",
        "b4rtaz/Qwen3-1.7B-Q40-Distributed-Llama",
        ("dllama_model_qwen3_1.7b_q40.m",),
        "dllama_tokenizer_qwen3_1.7b.t",
        Shape(2048, 6144, 28, 16, 8, 128, 151936),
    ),
    HubModel(
        "qwen3_8b_q40",
        "Qwen 3 8B",
        "b4rtaz/Qwen3-8B-Q40-Distributed-Llama",
        ("dllama_model_qwen3_8b_q40.m",),
        "dllama_tokenizer_qwen3_8b.t",
        Shape(4096, 12288, 36, 32, 8, 128, 151936),
    ),
    HubModel(
        "qwen3_14b_q40",
        "Qwen 3 14B",
        "b4rtaz/Qwen3-14B-Q40-Distributed-Llama",
        part_names("dllama_model_qwen3_14b_q40_", 2),
        "dllama_tokenizer_qwen3_14b.t",
        Shape(5120, 17408, 40, 40, 8, 128, 151936),
    ),
    HubModel(
        "qwen3_30b_a3b_q40",
        "Qwen 3 30B A3B, a mixture of 128 experts",
        "b4rtaz/Qwen3-30B-A3B-Q40-Distributed-Llama",
        part_names("dllama_model_qwen3_30b_a3b_", 5),
        "dllama_tokenizer_qwen3_30b_a3b.t",
        Shape(2048, 768, 48, 32, 4, 128, 151936, n_experts=128),
    ),
)
