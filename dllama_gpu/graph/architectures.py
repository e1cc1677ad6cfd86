"""Which builder makes the graph of which architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dllama_gpu.graph.decoder import DecoderBuilder
from dllama_gpu.graph.gemma3 import Gemma3Builder
from dllama_gpu.graph.graph import Graph
from dllama_gpu.graph.llama import LlamaBuilder
from dllama_gpu.graph.mixtral import MixtralBuilder
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.graph.qwen2 import Qwen2Builder
from dllama_gpu.graph.qwen3 import Qwen3Builder
from dllama_gpu.graph.qwen3_moe import Qwen3MoeBuilder
from dllama_gpu.graph.shard import Shard
from dllama_gpu.graph.smollm3 import SmolLm3Builder
from dllama_gpu.model.source import TensorInfo
from dllama_gpu.model.spec import Architecture, ModelSpec

_BUILDERS: dict[Architecture, type[DecoderBuilder]] = {
    Architecture.LLAMA: LlamaBuilder,
    Architecture.MIXTRAL: MixtralBuilder,
    Architecture.QWEN2: Qwen2Builder,
    Architecture.QWEN3: Qwen3Builder,
    Architecture.QWEN3_MOE: Qwen3MoeBuilder,
    Architecture.GEMMA3: Gemma3Builder,
    Architecture.SMOLLM3: SmolLm3Builder,
}


def build_graph(
    spec: ModelSpec,
    tensors: Mapping[str, TensorInfo],
    options: GraphOptions,
    shard: Shard | None = None,
    layers: Sequence[int] | None = None,
) -> Graph:
    """The graph of one node's `shard` of a model (default: all of it, on one node); see DecoderBuilder."""
    return _BUILDERS[spec.architecture](spec, tensors, options, shard, layers).build()
