"""Files that we write, read by readers that were written from the tables of the formats alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dllama_gpu.model.convert import convert_to_m
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.hf_folder import HfFolder
from dllama_gpu.model.spec import Architecture, ModelSpec, RopeScaling, RopeStyle
from dllama_gpu.tokenizer import write_t_file
from dllama_gpu.tokenizer.open_tokenizer import t_file_from
from tests.support import independent_reader as reader
from tests.support.hf_models import hf_tensors, write_hf_folder
from tests.support.models import small_spec
from tests.unit.tokenizer.library_tokenizers import EOS, library_tokenizer, write_tokenizer_folder

_HF = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "w1": "mlp.gate_proj",
    "w2": "mlp.down_proj",
    "w3": "mlp.up_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "norm0": "input_layernorm",
    "norm1": "post_attention_layernorm",
    "router": "mlp.gate",
}
_QWEN3 = replace(small_spec(norm_epsilon=1e-6), architecture=Architecture.QWEN3, rope_style=RopeStyle.HALF_SPLIT)
SPECS = {
    "llama": small_spec(),
    "llama 3.1, heads of their own size": small_spec(
        head_dim=24, rope_theta=500000.0, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192)
    ),
    "qwen3": _QWEN3,
    "qwen3_moe": replace(
        _QWEN3, architecture=Architecture.QWEN3_MOE, n_experts=4, n_active_experts=2, moe_hidden_dim=32
    ),
}
_WEIGHTS = {FloatType.F32: reader.F32, FloatType.F16: reader.F16, FloatType.Q40: reader.Q40, FloatType.Q80: reader.Q80}
# Largest error of a weight over the largest weight of its block of 32, and half a step of float16 for the scale.
_TOLERANCE = {FloatType.F32: 0.0, FloatType.F16: 2**-11, FloatType.Q40: 1 / 8, FloatType.Q80: 0.5 / 127 + 2**-11}


def _hf_name(name: str) -> str:
    """The folder's name of a tensor, from the reader's."""
    outside = {"embedding": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}
    if name in outside:
        return f"{outside[name]}.weight"
    parts = name.split(".")
    kind = _HF[parts[-1]]
    if len(parts) == 3:
        kind = kind.replace("mlp.", f"mlp.experts.{parts[1]}.")
    return f"model.layers.{parts[0]}.{kind}.weight"


def _interleaved(values: np.ndarray, head_dim: int) -> np.ndarray:
    rows = [head * head_dim + i + half * (head_dim // 2)
            for head in range(len(values) // head_dim) for i in range(head_dim // 2) for half in range(2)]  # fmt: skip
    return values[rows]


def _blocks_largest(values: np.ndarray) -> np.ndarray:
    if values.shape[1] % 32:
        return np.abs(values)
    largest = np.abs(values).reshape(len(values), -1, 32).max(axis=2)
    return np.repeat(largest, 32, axis=1)


@pytest.mark.parametrize("weights", _WEIGHTS)
@pytest.mark.parametrize("name", SPECS)
def test_a_converted_folder_holds_its_numbers_where_the_format_says(
    tmp_path: Path, name: str, weights: FloatType
) -> None:
    spec: ModelSpec = SPECS[name]
    write_hf_folder(tmp_path / "hf", spec, float_type=FloatType.F32)
    convert_to_m(HfFolder(tmp_path / "hf"), tmp_path / "out.m", weights, "absmax")
    file = reader.read_model((tmp_path / "out.m").read_bytes())
    header = file.header
    assert len(header) == len(file.pairs)
    assert header[reader.WEIGHTS] == _WEIGHTS[weights]
    assert header[reader.HEAD_DIM] == spec.head_dim
    assert header[reader.THETA] == spec.rope_theta
    assert header[reader.EPSILON] == (5 if spec.norm_epsilon == 1e-5 else 6)
    if spec.rope_scaling is not None:
        assert [header[key] for key in range(reader.SCALING, reader.HEAD_DIM)] == [8, 1, 4, 8192, 2]
    originals = hf_tensors(spec, seed=7)
    for place, found in file.tensors.items():
        wanted = np.atleast_2d(originals.pop(_hf_name(place)))
        if place.endswith((".q", ".k")) and spec.architecture is Architecture.LLAMA:
            wanted = _interleaved(wanted, spec.head_dim)
        exact = place == "embedding" or place.endswith(("norm", "norm0", "norm1", "router"))
        limit = (0.0 if exact else _TOLERANCE[weights]) * _blocks_largest(wanted) * 1.01
        assert np.all(np.abs(found - wanted) <= limit), place
    assert not originals


@pytest.mark.parametrize("family", ["llama3", "smollm", "llama2"])
def test_a_converted_tokenizer_holds_what_the_format_says(tmp_path: Path, family: str) -> None:
    path = write_tokenizer_folder(tmp_path, family, chat_template="{{ messages }} ünïcode")
    write_t_file(tmp_path / "out.t", t_file_from(path))
    file = reader.read_tokenizer((tmp_path / "out.t").read_bytes())
    library = library_tokenizer(family)
    assert len(file.tokens) == library.get_vocab_size()
    assert file.template == "{{ messages }} ünïcode"
    eos = library.token_to_id("</s>" if family == "llama2" else EOS)
    assert file.eos_ids[0] == eos
    assert file.tokens[eos] == (b"</s>" if family == "llama2" else EOS.encode())
    assert file.header[10] == (family != "smollm" and family != "llama2")
    for token_id, token in enumerate(file.tokens):
        if family != "llama2" and token.isascii() and token.isalpha():
            assert library.token_to_id(token.decode()) == token_id
