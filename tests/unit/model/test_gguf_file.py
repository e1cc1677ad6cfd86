"""GGUF files: the default model, and small files of every type and feature that is supported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as GgmlType

from benchmarks.q40_gguf import add_llama_metadata
from dllama_gpu.errors import DllamaError
from dllama_gpu.model.codecs import dequantize, quantize
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.gguf_file import GgufFile
from dllama_gpu.model.spec import Architecture, ModelSpec, RopeScaling, RopeStyle
from tests.support.models import (
    gguf_name,
    random_tensors,
    small_spec,
    write_gguf_file,
    write_random_gguf,
)

SPEC = small_spec(
    dim=256, hidden_dim=512, n_layers=2, n_heads=8, n_kv_heads=2, head_dim=64, vocab_size=40, max_seq_len=128,
    weight_type=FloatType.F32, rope_theta=10000.0,
)  # fmt: skip
KEPT = {
    GgmlType.F32: FloatType.F32,
    GgmlType.F16: FloatType.F16,
    GgmlType.BF16: FloatType.BF16,
    GgmlType.Q4_0: FloatType.Q40,
    GgmlType.Q4_1: FloatType.Q41,
    GgmlType.Q8_0: FloatType.Q80,
}
# bytes of a block and where its float16 scales lie, for types that the gguf package can only decode
SCALES_OF = {
    GgmlType.Q2_K: (84, (80, 82)),
    GgmlType.Q3_K: (110, (108,)),
    GgmlType.Q4_K: (144, (0, 2)),
    GgmlType.Q5_K: (176, (0, 2)),
    GgmlType.Q6_K: (210, (208,)),
    GgmlType.IQ4_NL: (18, (0,)),
    GgmlType.IQ4_XS: (136, (0,)),
}


def _write(
    path: Path,
    spec: ModelSpec = SPEC,
    ggml_type: GgmlType = GgmlType.Q8_0,
    change: Callable[[gguf.GGUFWriter], None] | None = None,
    architecture: str = "llama",
    vector_type: GgmlType = GgmlType.F32,
    omitted: str = "",
) -> None:
    """Writes a random model without the tensor `omitted`; `change` may add metadata and tensors before."""
    writer = gguf.GGUFWriter(path, architecture)
    add_llama_metadata(writer, spec)
    if change is not None:
        change(writer)
    for name, values in random_tensors(replace(spec, weight_type=FloatType.F32), seed=3):
        if name == omitted or (name == "head" and spec.tied_embeddings):
            continue
        if name.endswith("norm"):
            stored, stored_type = gguf.quants.quantize(values[0], vector_type), vector_type
        elif ggml_type in SCALES_OF:
            stored, stored_type = _random_blocks(values.shape, ggml_type), ggml_type
        else:
            stored, stored_type = gguf.quants.quantize(values, ggml_type), ggml_type
        writer.add_tensor(gguf_name(name), stored, raw_dtype=stored_type)
    write_gguf_file(writer)


def _random_blocks(shape: tuple[int, ...], ggml_type: GgmlType) -> np.ndarray:
    """Random quants under scales near 0.01."""
    block_bytes, scale_offsets = SCALES_OF[ggml_type]
    rng = np.random.default_rng(5)
    block_size = gguf.GGML_QUANT_SIZES[ggml_type][0]
    blocks = rng.integers(0, 256, (shape[0] * shape[1] // block_size, block_bytes), dtype=np.uint8)
    for offset in scale_offsets:
        scales = rng.uniform(0.005, 0.02, len(blocks)).astype(np.float16)
        blocks[:, offset : offset + 2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(shape[0], -1)


def test_default_model_has_its_published_shape(smollm2_gguf: Path) -> None:
    model = GgufFile(smollm2_gguf)
    assert model.path == smollm2_gguf
    assert model.spec == ModelSpec(
        architecture=Architecture.LLAMA,
        dim=576,
        hidden_dim=1536,
        n_layers=30,
        n_heads=9,
        n_kv_heads=3,
        head_dim=64,
        vocab_size=49152,
        max_seq_len=8192,
        weight_type=FloatType.Q41,
        norm_epsilon=1e-5,
        rope_theta=100000.0,
        rope_style=RopeStyle.INTERLEAVED,
        tied_embeddings=True,
    )
    layer = {"q", "k", "v", "o", "gate", "down", "up", "attention_norm", "ffn_norm"}
    expected = {f"layers.{number}.{name}" for number in range(30) for name in layer} | {"embedding", "final_norm"}
    assert set(model.tensors) == expected
    assert model.tensors["embedding"].float_type is FloatType.Q80
    assert model.tensors["layers.29.down"].shape == (576, 1536)
    assert model.metadata["tokenizer.ggml.pre"] == "smollm"
    tokens = model.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    assert len(tokens) == 49152
    assert tokens[1] == "<|im_start|>"
    model.close()


def test_default_model_decodes_as_the_gguf_package_decodes_it(smollm2_gguf: Path) -> None:
    model = GgufFile(smollm2_gguf)
    wanted = {
        "token_embd.weight": "embedding",
        "blk.0.attn_q.weight": "layers.0.q",
        "blk.17.ffn_down.weight": "layers.17.down",
        "blk.29.attn_norm.weight": "layers.29.attention_norm",
        "output_norm.weight": "final_norm",
    }
    compared = 0
    for tensor in gguf.GGUFReader(smollm2_gguf).tensors:
        if tensor.name not in wanted:
            continue
        name = wanted[tensor.name]
        info = model.tensors[name]
        rows = tensor.data.reshape(info.n_rows, -1)[::97]
        expected = gguf.quants.dequantize(rows, tensor.tensor_type)
        assert np.array_equal(dequantize(model.read(name)[::97], info.float_type), expected), name
        compared += 1
    assert compared == len(wanted)


@pytest.mark.parametrize("ggml_type", KEPT, ids=lambda ggml_type: ggml_type.name)
def test_types_with_an_equal_here_are_views_of_the_file(tmp_path: Path, ggml_type: GgmlType) -> None:
    path = tmp_path / "model.gguf"
    _write(path, ggml_type=ggml_type)
    model = GgufFile(path)
    assert model.spec == replace(SPEC, weight_type=KEPT[ggml_type])
    for name, values in random_tensors(SPEC, seed=3):
        info = model.tensors[name]
        raw = model.read(name)
        assert not raw.flags.owndata
        if name.endswith("norm"):
            assert info.float_type is FloatType.F32
            assert np.array_equal(raw.view(np.float32), values)
        else:
            assert info.float_type is KEPT[ggml_type]
            assert np.array_equal(raw, gguf.quants.quantize(values, ggml_type).view(np.uint8))
        model.release(name)


@pytest.mark.parametrize("ggml_type", [GgmlType.Q5_0, GgmlType.Q5_1, *SCALES_OF], ids=lambda ggml_type: ggml_type.name)
def test_other_quantized_types_become_q80(tmp_path: Path, ggml_type: GgmlType) -> None:
    path = tmp_path / "model.gguf"
    _write(path, ggml_type=ggml_type)
    model = GgufFile(path)
    assert model.spec.weight_type is FloatType.Q80
    matrices = 0
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.tensor_type is not ggml_type:
            continue
        name = next(name for name in model.tensors if gguf_name(name) == tensor.name)
        assert model.tensors[name].float_type is FloatType.Q80
        exact = gguf.quants.dequantize(tensor.data, ggml_type)
        found = dequantize(model.read(name), FloatType.Q80)
        step = np.abs(exact.reshape(len(exact), -1, 32)).max(axis=2, keepdims=True) / 127
        error = np.abs(found - exact).reshape(step.shape[0], step.shape[1], 32)
        assert np.all(error <= step * 0.57)  # half a step, and the rounding of the scale to float16
        matrices += 1
    assert matrices == 2 + 7 * SPEC.n_layers


def test_norms_are_f32_whatever_the_file_has(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    _write(path, vector_type=GgmlType.F16)
    model = GgufFile(path)
    for name, values in random_tensors(SPEC, seed=3):
        if name.endswith("norm"):
            assert np.array_equal(model.read(name).view(np.float32), values.astype(np.float16).astype(np.float32))


def test_a_file_without_output_head_has_tied_embeddings(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tied = replace(SPEC, tied_embeddings=True)
    _write(path, tied)
    model = GgufFile(path)
    assert model.spec == replace(tied, weight_type=FloatType.Q80)
    assert "head" not in model.tensors


def _llama3_divisors(factor: float, head_dim: int, theta: float) -> np.ndarray:
    """What llama.cpp's converter writes for Llama 3.1 and later."""
    divisors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * np.pi * theta ** (i / head_dim)
        if wavelength < 8192 / 4:
            divisors.append(1.0)
        elif wavelength > 8192 / 1:
            divisors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, dtype=np.float32)


@pytest.mark.parametrize(("factor", "head_dim"), [(8.0, 128), (32.0, 64), (32.0, 128)])
def test_llama3_scaling_is_recovered_from_its_divisors(tmp_path: Path, factor: float, head_dim: int) -> None:
    path = tmp_path / "model.gguf"
    spec = replace(SPEC, head_dim=head_dim, rope_theta=500000.0)
    divisors = _llama3_divisors(factor, head_dim, 500000.0)
    _write(path, spec, change=lambda writer: writer.add_tensor("rope_freqs.weight", divisors))
    assert GgufFile(path).spec.rope_scaling == RopeScaling(factor, 1.0, 4.0, 8192)


def test_divisors_of_one_are_no_scaling(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    _write(path, change=lambda writer: writer.add_tensor("rope_freqs.weight", np.ones(32, np.float32)))
    assert GgufFile(path).spec.rope_scaling is None


def test_linear_scaling_divides_every_frequency(tmp_path: Path) -> None:
    def add_linear_scaling(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    path = tmp_path / "model.gguf"
    _write(path, change=add_linear_scaling)
    from_metadata = GgufFile(path).spec.rope_scaling
    _write(path, change=lambda writer: writer.add_tensor("rope_freqs.weight", np.full(32, 4, np.float32)))
    from_divisors = GgufFile(path).spec.rope_scaling
    # No wavelength is shorter than 0 tokens / high_freq_factor, so all are divided.
    assert from_metadata == from_divisors == RopeScaling(4.0, 1.0, 1.0, 0)


def _remove(writer: gguf.GGUFWriter, key: str) -> None:
    del writer.kv_data[0][key]


def _instead(key: str, add: Callable[[gguf.GGUFWriter], None]) -> Callable[[gguf.GGUFWriter], None]:
    """Removes the metadata field `key` and lets `add` give another."""

    def change(writer: gguf.GGUFWriter) -> None:
        _remove(writer, key)
        add(writer)

    return change


REFUSED: dict[str, tuple[Callable[[gguf.GGUFWriter], None], str]] = {
    "bias": (
        lambda writer: writer.add_tensor("blk.0.attn_q.bias", np.zeros(128, np.float32)),
        r"blk\.0\.attn_q\.bias is a bias",
    ),
    "a shared expert": (
        lambda writer: writer.add_expert_shared_count(1),
        r"llama\.expert_shared_count is 1: an expert that all tokens share",
    ),
    "expert tensor": (
        lambda writer: writer.add_tensor("blk.0.ffn_gate_exps.weight", np.zeros((2, 32), np.float32)),
        "belongs to a mixture of experts",
    ),
    "unknown tensor": (
        lambda writer: writer.add_tensor("blk.0.attn_q_norm.weight", np.zeros(32, np.float32)),
        r"blk\.0\.attn_q_norm\.weight has no place in the architecture",
    ),
    "tensor of no layer": (
        lambda writer: writer.add_tensor("blk.2.attn_norm.weight", np.zeros(256, np.float32)),
        r"blk\.2\.attn_norm\.weight belongs to no layer: block_count is 2",
    ),
    "sliding window": (lambda writer: writer.add_sliding_window(64), "sliding window attention is not supported"),
    "yarn": (
        lambda writer: (
            writer.add_rope_scaling_type(gguf.RopeScalingType.YARN),
            writer.add_rope_scaling_yarn_ext_factor(0.5),
        ),
        r"llama\.rope\.scaling\.yarn_ext_factor is not 1",
    ),
    "strange divisors": (
        lambda writer: writer.add_tensor("rope_freqs.weight", np.linspace(1, 9, 32, dtype=np.float32)),
        r"otherwise than Llama 3\.1 does \(largest divisor 9\)",
    ),
    "wrong number of divisors": (
        lambda writer: writer.add_tensor("rope_freqs.weight", np.ones(15, np.float32)),
        r"rope_freqs\.weight is not 32 numbers",
    ),
    "divisors that are no numbers": (
        lambda writer: writer.add_tensor("rope_freqs.weight", np.full(32, np.nan, np.float32)),
        r"rope_freqs\.weight is not 32 numbers",
    ),
    "split file": (lambda writer: writer.add_uint16("split.count", 3), "is one of 3 parts of a split model"),
    "partial rotation": (
        _instead("llama.rope.dimension_count", lambda writer: writer.add_rope_dimension_count(16)),
        r"rope\.dimension_count is 16, but the keys have 64",
    ),
    "missing field": (
        lambda writer: _remove(writer, "llama.block_count"),
        r"the metadata field llama\.block_count is missing",
    ),
    "missing architecture": (
        lambda writer: _remove(writer, "general.architecture"),
        r"general\.architecture is None, but a string is wanted",
    ),
    "heads per layer": (
        _instead("llama.attention.head_count_kv", lambda writer: writer.add_head_count_kv([2, 1])),
        r"head_count_kv is a list of 2 values, but a whole number is wanted",
    ),
    "number as text": (
        _instead("llama.context_length", lambda writer: writer.add_string("llama.context_length", "9")),
        "context_length is '9', but a whole number",
    ),
    "more layers than tensors": (
        _instead("llama.block_count", lambda writer: writer.add_block_count(4000)),
        "block_count is 4000, but the file has only 21 tensors",
    ),
    "another feed-forward size": (
        _instead("llama.feed_forward_length", lambda writer: writer.add_feed_forward_length(480)),
        r"blk\.0\.ffn_gate\.weight has the shape \[512, 256\], but \[480, 256\] is wanted",
    ),
    "zero epsilon": (
        _instead("llama.attention.layer_norm_rms_epsilon", lambda writer: writer.add_layer_norm_rms_eps(0.0)),
        "norm_epsilon is 0",
    ),
    "infinite theta": (
        _instead("llama.rope.freq_base", lambda writer: writer.add_rope_freq_base(float("inf"))),
        "rope_theta is inf",
    ),
    "no heads": (
        _instead("llama.attention.head_count", lambda writer: writer.add_head_count(0)),
        "n_heads is 0",
    ),
    "type that is no weight": (
        lambda writer: writer.add_tensor("rope_freqs.weight", np.ones(32, np.int32)),
        r"rope_freqs\.weight has the type I32, which is not supported",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_graph_cannot_compute_is_refused(tmp_path: Path, case: str) -> None:
    change, message = REFUSED[case]
    path = tmp_path / "model.gguf"
    _write(path, change=change)
    with pytest.raises(DllamaError, match=message) as caught:
        GgufFile(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["embedding", "final_norm", "layers.1.o", "layers.0.ffn_norm"])
def test_a_missing_tensor_is_named_as_the_file_names_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.gguf"
    _write(path, omitted=name)
    with pytest.raises(DllamaError, match=f"the tensor {gguf_name(name)} is missing"):
        GgufFile(path)


def test_an_architecture_without_builder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    _write(path, architecture="phi3")
    with pytest.raises(DllamaError, match=r"architecture 'phi3', which is not supported \(supported: llama, qwen2,"):
        GgufFile(path)


def test_a_damaged_scale_is_reported_with_its_tensor(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    _write(path, ggml_type=GgmlType.Q6_K)
    tensor = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == "blk.1.ffn_up.weight")
    with path.open("r+b") as file:
        file.seek(tensor.data_offset + 208)
        file.write(np.float16(np.inf).tobytes())
    with pytest.raises(DllamaError, match=r"the tensor blk\.1\.ffn_up\.weight is damaged: row 0"):
        GgufFile(path).read("layers.1.up")


def test_a_large_tensor_is_converted_row_by_row_in_its_place(tmp_path: Path) -> None:
    sizes = {"dim": 256, "hidden_dim": 64, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 2000}
    write_random_gguf(tmp_path / "a.gguf", **sizes, max_seq_len=32, ggml_type=gguf.GGMLQuantizationType.Q5_1, seed=2)
    source = GgufFile(tmp_path / "a.gguf")
    assert source.converted_types == {"Q5_1": FloatType.Q80}
    stored = next(t for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors if t.name == "token_embd.weight")
    values = gguf.quants.dequantize(stored.data, stored.tensor_type)
    assert np.array_equal(source.read("embedding"), quantize(values, FloatType.Q80))
