"""Writes a Llama model as GGUF with every matrix in Q4_0, piece by piece."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.constants import MODEL_TENSOR, TENSOR_NAMES

from dllama_gpu.errors import DllamaError
from dllama_gpu.model import m_format
from dllama_gpu.model.codecs import Bytes
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.source import TensorInfo
from dllama_gpu.model.spec import ModelSpec
from dllama_gpu.tokenizer.byte_alphabet import BYTE_TO_CHARACTER

_NAMES = {
    "embedding": MODEL_TENSOR.TOKEN_EMBD,
    "final_norm": MODEL_TENSOR.OUTPUT_NORM,
    "head": MODEL_TENSOR.OUTPUT,
    "q": MODEL_TENSOR.ATTN_Q,
    "k": MODEL_TENSOR.ATTN_K,
    "v": MODEL_TENSOR.ATTN_V,
    "o": MODEL_TENSOR.ATTN_OUT,
    "gate": MODEL_TENSOR.FFN_GATE,
    "down": MODEL_TENSOR.FFN_DOWN,
    "up": MODEL_TENSOR.FFN_UP,
    "attention_norm": MODEL_TENSOR.ATTN_NORM,
    "ffn_norm": MODEL_TENSOR.FFN_NORM,
}
_GGML_TYPES = {FloatType.Q40: GGMLQuantizationType.Q4_0, FloatType.F32: GGMLQuantizationType.F32}
_MERGE = "a b"
_NORMAL_TOKEN = 1
_ALIGNMENT = 32


def write_q40_gguf(path: Path, spec: ModelSpec, name: str, rows_of: Callable[[TensorInfo], Iterable[Bytes]]) -> None:
    """Writes a model called `name` whose tensors are those of `spec`, without RoPE scaling.

    `rows_of` gives the rows of a tensor in pieces, uint8 [n, row_bytes]: Q40 for a matrix and F32 for a vector. The
    tokenizer is the 256 bytes, one merge, and a name for every other token: enough for programs that want one, and
    for token ids to be given instead of text. The file gets its name only when it is complete.

    Raises DllamaError for a vocabulary too small for that tokenizer.
    """
    layout = list(_layout(spec))
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        _write_header(partial, path, spec, name, layout)
        with partial.open("ab") as file:
            file.write(bytes(-file.tell() % _ALIGNMENT))
            for info in layout:
                written = 0
                for rows in rows_of(info):
                    written += file.write(rows.tobytes())
                if written != info.n_bytes:
                    raise ValueError(f"tensor {info.name} came as {written} bytes instead of {info.n_bytes}")
                file.write(bytes(-written % _ALIGNMENT))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _layout(spec: ModelSpec) -> Iterator[TensorInfo]:
    """The tensors of the file in their order."""
    for info in m_format.tensor_layout(spec):
        if info.name == "embedding":
            yield TensorInfo(info.name, info.shape, FloatType.Q40)
        elif info.name != "head" or not spec.tied_embeddings:
            yield info


def _write_header(partial: Path, path: Path, spec: ModelSpec, name: str, layout: list[TensorInfo]) -> None:
    writer = GGUFWriter(partial, "llama")
    writer.add_name(name)
    add_llama_metadata(writer, spec)
    writer.add_file_type(2)  # mostly Q4_0
    tokens = [*BYTE_TO_CHARACTER.values(), _MERGE.replace(" ", "")]
    if spec.vocab_size < len(tokens):
        raise DllamaError(f"{path}: vocab_size is {spec.vocab_size}, but a tokenizer needs at least {len(tokens)}")
    tokens += [f"<unused-{index}>" for index in range(len(tokens), spec.vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([_NORMAL_TOKEN] * len(tokens))
    writer.add_token_merges([_MERGE])
    writer.add_add_bos_token(False)
    for info in layout:
        # The shape of quantized data is given in bytes, as the rows lie in memory.
        shape = (info.n_rows, info.row_bytes) if info.float_type is FloatType.Q40 else info.shape
        dtype = np.dtype(np.uint8 if info.float_type is FloatType.Q40 else np.float32)
        writer.add_tensor_info(_gguf_name(info.name), shape, dtype, info.n_bytes, _GGML_TYPES[info.float_type])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def add_llama_metadata(writer: GGUFWriter, spec: ModelSpec) -> None:
    """Adds the metadata that llama.cpp's converter writes for a Llama model, without the tokenizer."""
    writer.add_block_count(spec.n_layers)
    writer.add_context_length(spec.max_seq_len)
    writer.add_embedding_length(spec.dim)
    writer.add_feed_forward_length(spec.hidden_dim)
    writer.add_head_count(spec.n_heads)
    writer.add_head_count_kv(spec.n_kv_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    writer.add_rope_dimension_count(spec.head_dim)
    writer.add_rope_freq_base(spec.rope_theta)
    writer.add_layer_norm_rms_eps(spec.norm_epsilon)
    writer.add_vocab_size(spec.vocab_size)


def _gguf_name(name: str) -> str:
    """GGUF's name of a tensor, from the canonical one."""
    parts = name.split(".")
    layer = parts[1] if parts[0] == "layers" else None
    return f"{TENSOR_NAMES[_NAMES[parts[-1]]].format(bid=layer)}.weight"
