"""From files to a program that can run: model, tokenizer, graph, weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from dllama_gpu.engine.generation import check_prompt
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.architectures import build_graph as build_model_graph
from dllama_gpu.graph.graph import Graph
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.graph.shard import Shard
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.gguf_file import GgufFile
from dllama_gpu.model.open import open_model
from dllama_gpu.model.source import ModelSource
from dllama_gpu.model.spec import ModelSpec
from dllama_gpu.tokenizer.gguf_vocabulary import tokenizer_from_gguf
from dllama_gpu.tokenizer.open_tokenizer import open_tokenizer
from dllama_gpu.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class OpenModel:
    """A model file and its tokenizer, opened but not loaded. Use as a context manager.

    A program compiled from `source` needs it open as long as it runs.
    """

    source: ModelSource
    tokenizer: Tokenizer

    @property
    def spec(self) -> ModelSpec:
        """Shape of the model."""
        return self.source.spec

    def __enter__(self) -> OpenModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.source.close()


def open_with_tokenizer(
    model_path: Path, tokenizer_path: Path | None = None, weights: FloatType | None = None
) -> OpenModel:
    """Opens a model and its tokenizer, which a GGUF file brings with it; `weights` as for `open_model`.

    A tokenizer with fewer tokens than the model has rows is right: many models are padded to a round number, and the
    sampler never chooses the padding. One with more tokens belongs to another model.

    Raises DllamaError when a file is missing, damaged or of another kind, or the two do not belong together.
    """
    source = open_model(model_path, weights)
    try:
        if tokenizer_path is None and isinstance(source, GgufFile):
            tokenizer = tokenizer_from_gguf(model_path, source.metadata)
        else:
            tokenizer = open_tokenizer(tokenizer_path or model_path)
        if tokenizer.vocab_size > source.spec.vocab_size:
            raise DllamaError(
                f"the tokenizer {tokenizer_path or model_path} has {tokenizer.vocab_size} tokens, but the model "
                f"{model_path} knows only {source.spec.vocab_size}; give the tokenizer that belongs to this model"
            )
    except BaseException:
        source.close()
        raise
    return OpenModel(source, tokenizer)


def build_graph(source: ModelSource, options: GraphOptions, shard: Shard | None = None) -> Graph:
    """The graph of one node's `shard` of the model (default: all of it, on one node)."""
    return build_model_graph(source.spec, source.tensors, options, shard)


def generation_seq_len(spec: ModelSpec, n_prompt_tokens: int, max_tokens: int, max_seq_len: int | None) -> int:
    """Positions that the KV cache needs for a prompt and what is generated, within the model's context.

    `max_seq_len` lowers the context, but never raises it above what the model was made for. Raises DllamaError when the
    prompt alone does not fit.
    """
    context = min(spec.max_seq_len, max_seq_len or spec.max_seq_len)
    raisable = f", or raise --max-seq-len: the model allows {spec.max_seq_len}" if context < spec.max_seq_len else ""
    check_prompt(n_prompt_tokens, context, "shorten it" + raisable)
    # The last token generated is never fed.
    return min(context, n_prompt_tokens + max_tokens - 1)
