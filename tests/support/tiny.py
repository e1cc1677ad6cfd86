"""A complete tiny model: random weights, and a tokenizer that can spell everything."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import gguf

from benchmarks.q40_gguf import add_llama_metadata
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.spec import Architecture
from dllama_gpu.tokenizer.byte_alphabet import BYTE_TO_CHARACTER
from dllama_gpu.tokenizer.t_file import TokenizerFile, write_t_file
from tests.support.architectures import architecture_spec, write_architecture_gguf
from tests.support.models import (
    gguf_name,
    random_tensors,
    small_spec,
    write_gguf_file,
    write_random_m,
)

BOS, EOS = b"<|im_start|>", b"<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCAB_SIZE = 288
MAX_SEQ_LEN = 64
_GGUF_TOKENS = [*(BYTE_TO_CHARACTER[byte] for byte in range(256)), BOS.decode(), EOS.decode(), "th"]


@dataclass(frozen=True)
class TinyModel:
    """Paths of the two files."""

    model: Path
    tokenizer: Path


def tiny_tokenizer(*, n_extra: int = 0) -> TokenizerFile:
    """The 256 bytes and the two tags of ChatML: 258 tokens, and `n_extra` more."""
    tokens = (*(bytes([byte]) for byte in range(256)), BOS, EOS, *(b"extra%d" % i for i in range(n_extra)))
    return TokenizerFile(
        tokens=tokens,
        scores=tuple(-float(token_id) for token_id in range(len(tokens))),
        bos_id=256,
        eos_ids=(257,),
        add_bos=False,
        chat_template=CHAT_TEMPLATE,
    )


def write_tiny_model(folder: Path, *, n_extra_tokens: int = 0) -> TinyModel:
    """Writes `tiny.m`, padded to more rows than there are tokens, and `tiny.t`."""
    files = TinyModel(folder / "tiny.m", folder / "tiny.t")
    write_random_m(
        files.model,
        dim=64,
        hidden_dim=96,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        vocab_size=VOCAB_SIZE,
        max_seq_len=MAX_SEQ_LEN,
        weight_type=FloatType.Q40,
        seed=5,
    )
    write_t_file(files.tokenizer, tiny_tokenizer(n_extra=n_extra_tokens))
    return files


def write_tiny_gguf(path: Path, *, architecture: str = "llama") -> None:
    """Writes a GGUF file with F32 weights and the same tokens, and one merge, as a byte-pair tokenizer."""
    spec = small_spec(vocab_size=len(_GGUF_TOKENS), max_seq_len=MAX_SEQ_LEN, weight_type=FloatType.F32)
    writer = gguf.GGUFWriter(path, architecture)
    add_llama_metadata(writer, spec)
    add_tiny_tokenizer(writer)
    for name, values in random_tensors(spec, seed=6):
        writer.add_tensor(gguf_name(name), values[0] if name.endswith("norm") else values)
    write_gguf_file(writer)


def write_tiny_experts(path: Path) -> None:
    """The same tokens with a mixture of experts, Qwen 3's."""
    spec = architecture_spec(Architecture.QWEN3_MOE)
    spec = replace(spec, vocab_size=len(_GGUF_TOKENS), max_seq_len=MAX_SEQ_LEN)
    write_architecture_gguf(path, spec, prepare=add_tiny_tokenizer)


def add_tiny_tokenizer(writer: gguf.GGUFWriter) -> None:
    """Adds a byte-pair tokenizer of the 256 bytes, the two tags and one merge."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(_GGUF_TOKENS)
    writer.add_token_types([1] * 256 + [3, 3, 1])
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
