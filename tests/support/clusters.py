"""Models without weights and machines without metal, for tests of the planner."""

from __future__ import annotations

from dllama_gpu.graph.profile import Link, LinkBetween, NodeProfile
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.source import TensorInfo
from dllama_gpu.model.spec import Architecture, ModelSpec

Model = tuple[ModelSpec, dict[str, TensorInfo]]


def llama_8b() -> Model:
    """The shape of Llama 3.1 8B, its matrices in Q40."""
    return llama(4096, 14336, n_layers=32, n_heads=32, n_kv_heads=8, head_dim=128, vocab_size=128256)


def llama(
    dim: int,
    hidden_dim: int,
    *,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    vocab_size: int,
    weight_type: FloatType = FloatType.Q40,
    tied_embeddings: bool = False,
) -> Model:
    """A Llama model of any shape as its file's header describes it."""
    spec = ModelSpec(
        architecture=Architecture.LLAMA,
        dim=dim,
        hidden_dim=hidden_dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        vocab_size=vocab_size,
        max_seq_len=8192,
        weight_type=weight_type,
        tied_embeddings=tied_embeddings,
    )
    matrices = {"embedding": (vocab_size, dim)} | ({} if tied_embeddings else {"head": (vocab_size, dim)})
    vectors = {"final_norm": dim}
    for layer in range(n_layers):
        prefix = f"layers.{layer}."
        matrices |= {prefix + "q": (spec.q_dim, dim), prefix + "o": (dim, spec.q_dim)}
        matrices |= {prefix + name: (spec.kv_dim, dim) for name in ("k", "v")}
        matrices |= {prefix + name: (hidden_dim, dim) for name in ("gate", "up")}
        matrices |= {prefix + "down": (dim, hidden_dim)}
        vectors |= {prefix + name: dim for name in ("attention_norm", "ffn_norm")}
    tensors = {name: TensorInfo(name, shape, weight_type) for name, shape in matrices.items()}
    return spec, tensors | {name: TensorInfo(name, (size,), FloatType.F32) for name, size in vectors.items()}


def node(
    name: str, *, gigabytes_per_second: float = 10.0, gigabytes: float = 64.0, op_seconds: float = 5e-6
) -> NodeProfile:
    """A machine with 6 FLOP for each byte it reads."""
    speed = gigabytes_per_second * 1e9
    return NodeProfile(name, speed, 6 * speed, int(gigabytes * 1e9), op_seconds)


def everywhere(latency_seconds: float = 3e-4, bytes_per_second: float = 117e6) -> LinkBetween:
    """The same link between all nodes."""
    return lambda first, second: Link(latency_seconds, bytes_per_second)
