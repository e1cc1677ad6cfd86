"""Small random Llama models on disk, for tests of everything that reads a model.

Weights have the magnitudes of a trained model (unit variance after each matrix, residual branches damped by depth), so
that activations neither explode nor vanish and the logits differ clearly from token to token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from benchmarks.q40_gguf import add_llama_metadata
from dllama_gpu.model import m_format
from dllama_gpu.model.codecs import dequantize, quantize
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.m_file import MFileWriter
from dllama_gpu.model.source import ModelSource
from dllama_gpu.model.spec import Architecture, ModelSpec, RopeScaling, RopeStyle

GGUF_NAMES = {
    "embedding": "token_embd.weight",
    "final_norm": "output_norm.weight",
    "head": "output.weight",
    "q": "attn_q.weight",
    "k": "attn_k.weight",
    "v": "attn_v.weight",
    "o": "attn_output.weight",
    "gate": "ffn_gate.weight",
    "down": "ffn_down.weight",
    "up": "ffn_up.weight",
    "attention_norm": "attn_norm.weight",
    "ffn_norm": "ffn_norm.weight",
}


def small_spec(
    *,
    dim: int = 64,
    hidden_dim: int = 96,
    n_layers: int = 2,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    head_dim: int | None = None,
    vocab_size: int = 128,
    max_seq_len: int = 64,
    weight_type: FloatType = FloatType.Q40,
    norm_epsilon: float = 1e-5,
    rope_theta: float = 10000.0,
    rope_style: RopeStyle = RopeStyle.INTERLEAVED,
    rope_scaling: RopeScaling | None = None,
    tied_embeddings: bool = False,
) -> ModelSpec:
    """A Llama-shaped spec; `head_dim` is dim / n_heads when not given."""
    return ModelSpec(
        architecture=Architecture.LLAMA,
        dim=dim,
        hidden_dim=hidden_dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=dim // n_heads if head_dim is None else head_dim,
        vocab_size=vocab_size,
        max_seq_len=max_seq_len,
        weight_type=weight_type,
        norm_epsilon=norm_epsilon,
        rope_theta=rope_theta,
        rope_style=rope_style,
        rope_scaling=rope_scaling,
        tied_embeddings=tied_embeddings,
    )


def random_tensors(spec: ModelSpec, seed: int) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Every tensor of the model by canonical name, in `.m` order, as float32 [n_rows, n_columns]."""
    rng = np.random.default_rng(seed)
    for info in m_format.tensor_layout(spec):
        kind = info.name.rsplit(".", 1)[-1]
        values = rng.standard_normal((info.n_rows, info.n_columns), dtype=np.float32)
        if len(info.shape) == 1:
            values = 1.0 + 0.1 * values
        elif kind != "embedding":
            values /= np.sqrt(np.float32(info.n_columns))
        if kind in ("o", "down"):
            values /= np.sqrt(np.float32(2 * spec.n_layers))
        if kind == "head":
            values *= 4.0
        yield info.name, values.astype(np.float32)


def write_random_m(
    path: Path,
    *,
    dim: int,
    hidden_dim: int,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    vocab_size: int,
    max_seq_len: int,
    weight_type: FloatType,
    seed: int,
    head_dim: int | None = None,
    rope_theta: float = 10000.0,
    rope_style: RopeStyle = RopeStyle.INTERLEAVED,
    rope_scaling: RopeScaling | None = None,
) -> ModelSpec:
    """Writes a random Llama `.m` file and returns its spec."""
    spec = small_spec(
        dim=dim,
        hidden_dim=hidden_dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        vocab_size=vocab_size,
        max_seq_len=max_seq_len,
        weight_type=weight_type,
        rope_theta=rope_theta,
        rope_style=rope_style,
        rope_scaling=rope_scaling,
    )
    with MFileWriter(path, spec) as writer:
        for name, values in random_tensors(spec, seed):
            writer.write(name, quantize(values, writer.tensors[name].float_type))
    return spec


def write_random_gguf(
    path: Path,
    *,
    dim: int,
    hidden_dim: int,
    n_layers: int,
    n_heads: int,
    n_kv_heads: int,
    vocab_size: int,
    max_seq_len: int,
    ggml_type: gguf.GGMLQuantizationType,
    seed: int,
    head_dim: int | None = None,
    norm_epsilon: float = 1e-5,
    rope_theta: float = 10000.0,
    tied_embeddings: bool = False,
) -> ModelSpec:
    """Writes the same random model as `write_random_m`, as GGUF with every matrix in `ggml_type`; returns its spec.

    `ggml_type` is one that the gguf package can encode: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1 or Q8_0. The file has no
    tokenizer.
    """
    spec = small_spec(
        dim=dim,
        hidden_dim=hidden_dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        vocab_size=vocab_size,
        max_seq_len=max_seq_len,
        weight_type=_STORED_AS.get(ggml_type, FloatType.Q80),
        norm_epsilon=norm_epsilon,
        rope_theta=rope_theta,
        tied_embeddings=tied_embeddings,
    )
    writer = gguf.GGUFWriter(path, "llama")
    add_llama_metadata(writer, spec)
    # Random numbers must not depend on the type, so the layout is walked in one that any row length fits.
    for name, values in random_tensors(replace(spec, weight_type=FloatType.F32), seed):
        if name == "head" and tied_embeddings:
            continue
        is_vector = name.endswith("norm")
        stored = values[0] if is_vector else gguf.quants.quantize(values, ggml_type)
        writer.add_tensor(gguf_name(name), stored, raw_dtype=gguf.GGMLQuantizationType.F32 if is_vector else ggml_type)
    write_gguf_file(writer)
    return spec


def write_plain_q40_m(source: ModelSource, path: Path) -> None:
    """Writes `source` as a `.m` file in which every matrix went through absmax Q40, the embedding too.

    The embedding is then stored as the F32 numbers that its Q40 blocks stand for, since the format wants F32 there.
    """
    with MFileWriter(path, replace(source.spec, weight_type=FloatType.Q40)) as writer:
        for name, target in writer.tensors.items():
            found = source.tensors["embedding" if name == "head" and source.spec.tied_embeddings else name]
            values = dequantize(source.read(found.name), found.float_type)
            if len(target.shape) == 2:
                blocks = quantize(values, FloatType.Q40, "absmax")
                if target.float_type is FloatType.Q40:
                    writer.write(name, blocks)
                    continue
                values = dequantize(blocks, FloatType.Q40)
            writer.write(name, quantize(values, target.float_type))


def gguf_name(name: str) -> str:
    """GGUF's name of a tensor, from the canonical one."""
    parts = name.split(".")
    prefix = f"blk.{parts[1]}." if parts[0] == "layers" else ""
    return prefix + GGUF_NAMES[parts[-1]]


def write_gguf_file(writer: gguf.GGUFWriter) -> None:
    """Writes what was added to `writer` and closes it."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_STORED_AS = {
    gguf.GGMLQuantizationType.F32: FloatType.F32,
    gguf.GGMLQuantizationType.F16: FloatType.F16,
    gguf.GGMLQuantizationType.BF16: FloatType.BF16,
    gguf.GGMLQuantizationType.Q4_0: FloatType.Q40,
    gguf.GGMLQuantizationType.Q4_1: FloatType.Q41,
    gguf.GGMLQuantizationType.Q8_0: FloatType.Q80,
}
