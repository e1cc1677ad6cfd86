import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from dllama_gpu.errors import DllamaError
from dllama_gpu.model.codecs import dequantize, quantize
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.hf_folder import HfFolder
from dllama_gpu.model.open import open_model
from dllama_gpu.model.reweighted import ReweightedSource
from dllama_gpu.model.spec import Architecture, RopeScaling, RopeStyle
from tests.support.hf_models import hf_config, hf_tensors, write_hf_folder, write_safetensors
from tests.support.models import random_tensors, small_spec


def _qwen3_moe():
    return replace(
        small_spec(),
        architecture=Architecture.QWEN3_MOE,
        rope_style=RopeStyle.HALF_SPLIT,
        n_experts=12,
        n_active_experts=2,
        moe_hidden_dim=32,
    )


@pytest.mark.parametrize("n_files", [1, 3])
@pytest.mark.parametrize("float_type", [FloatType.F32, FloatType.F16, FloatType.BF16])
@pytest.mark.parametrize(
    "spec",
    [
        small_spec(),
        small_spec(tied_embeddings=True, head_dim=24),
        small_spec(rope_scaling=RopeScaling(8.0, 1.0, 4.0, 32), rope_theta=500000.0),
        replace(small_spec(), architecture=Architecture.QWEN3, rope_style=RopeStyle.HALF_SPLIT),
        _qwen3_moe(),
    ],
    ids=["llama", "tied", "llama3", "qwen3", "qwen3_moe"],
)
def test_every_tensor_reads_as_it_was_made(tmp_path, spec, float_type, n_files):
    write_hf_folder(tmp_path, spec, float_type=float_type, n_files=n_files)
    folder = HfFolder(tmp_path)
    assert folder.spec == replace(spec, weight_type=float_type)
    for name, values in random_tensors(replace(spec, weight_type=FloatType.F32), seed=7):
        if name == "head" and spec.tied_embeddings:
            assert name not in folder.tensors
            continue
        info = folder.tensors[name]
        stored = dequantize(quantize(values, float_type), float_type)
        assert np.array_equal(dequantize(folder.read(name), info.float_type), stored), name
        folder.release(name)
        assert np.array_equal(dequantize(folder.read(name), info.float_type), stored), name
    vectors = {name for name in folder.tensors if name.endswith(("norm", "router"))}
    assert {folder.tensors[name].float_type for name in vectors} == {FloatType.F32}
    folder.close()


def test_rope_of_newer_configurations_is_read(tmp_path):
    scaling = RopeScaling(32.0, 1.0, 4.0, 8192)
    spec = small_spec(rope_theta=500000.0, rope_scaling=scaling)
    rope = hf_config(spec)["rope_scaling"] | {"rope_theta": 500000.0}
    write_hf_folder(tmp_path, spec, rope_scaling=None, rope_theta=None, rope_parameters=rope)
    folder = HfFolder(tmp_path)
    assert (folder.spec.rope_theta, folder.spec.rope_scaling) == (500000.0, scaling)


def test_a_sliding_window_limits_the_context_to_where_it_never_slides(tmp_path):
    write_hf_folder(tmp_path / "on", model_type="mistral", sliding_window=16)
    write_hf_folder(tmp_path / "off", sliding_window=16, use_sliding_window=False)
    assert HfFolder(tmp_path / "on").spec.max_seq_len == 16
    assert HfFolder(tmp_path / "off").spec.max_seq_len == 64


def test_a_head_beside_tied_embeddings_and_derived_tensors_are_left_out(tmp_path):
    spec = small_spec(tied_embeddings=True)
    write_hf_folder(tmp_path, spec)
    tensors = hf_tensors(spec, seed=7)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    write_safetensors(tmp_path / "model.safetensors", tensors)
    assert "head" not in HfFolder(tmp_path).tensors


def test_tensors_at_odd_places_read_aligned(tmp_path):
    write_hf_folder(tmp_path, float_type=FloatType.F32)
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    wanted = HfFolder(tmp_path).read("layers.0.v").copy()
    path.write_bytes(struct.pack("<Q", size + 1) + data[8 : 8 + size] + b" " + data[8 + size :])
    found = HfFolder(tmp_path).read("layers.0.v")
    assert np.array_equal(found, wanted)
    assert found.ctypes.data % 4 == 0


@pytest.mark.parametrize("target", [FloatType.Q40, FloatType.Q80, FloatType.F16, FloatType.BF16, FloatType.F32])
@pytest.mark.parametrize("tied", [False, True])
def test_matrices_become_the_weights_asked_for(tmp_path, target, tied):
    write_hf_folder(tmp_path, small_spec(tied_embeddings=tied))
    original, source = HfFolder(tmp_path), open_model(tmp_path, target)
    assert source.spec == replace(original.spec, weight_type=target)
    for name, info in source.tensors.items():
        kept = info.name.endswith("norm") or (name == "embedding" and not tied)
        wanted = FloatType.Q80 if name == "embedding" and target is FloatType.Q40 else target
        assert info.float_type is (original.tensors[name].float_type if kept else wanted), name
        values = dequantize(original.read(name), original.tensors[name].float_type)
        assert np.array_equal(source.read(name), quantize(values, info.float_type)), name
    source.close()


def test_folders_are_read_as_q80_unless_something_else_is_asked_for(tmp_path):
    write_hf_folder(tmp_path)
    source = open_model(tmp_path)
    assert isinstance(source, ReweightedSource)
    assert source.spec.weight_type is FloatType.Q80
    assert source.converted_types == {"bf16": FloatType.Q80}


def test_weights_that_do_not_fit_rows_are_refused(tmp_path):
    write_hf_folder(tmp_path, small_spec(dim=48, n_heads=4, weight_type=FloatType.F32))
    with pytest.raises(DllamaError, match="dim is 48, but a multiple of 32"):
        open_model(tmp_path, FloatType.Q40)


def test_numbers_that_are_none_are_reported_with_tensor_and_row(tmp_path):
    spec = small_spec()
    write_hf_folder(tmp_path, spec)
    tensors = hf_tensors(spec, seed=7)
    tensors["model.layers.1.mlp.up_proj.weight"][5, 3] = np.inf
    save_file(tensors, tmp_path / "model.safetensors")
    source = open_model(tmp_path, FloatType.Q80)
    with pytest.raises(DllamaError, match=r"layers\.1\.up, from row 0 on: row 5 holds inf at column 3"):
        source.read("layers.1.up")


def _change_config(folder: Path, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "model_type is 'mamba', which is not supported"),
        ({"model_type": 3}, "model_type is 3, but a string is wanted"),
        ({"hidden_size": "64"}, "hidden_size is '64', but a whole number is wanted"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": 128}, r"shape \[128, 64\], but \[128, 128\] is wanted"),
        ({"num_hidden_layers": 10**9}, "n_layers is 1000000000, but 1 to 4096 is wanted"),
        ({"num_hidden_layers": 3}, "should have 3 layers, but its tensors are those of 2"),
        ({"num_key_value_heads": 3}, "n_kv_heads is 3"),
        ({"num_attention_heads": 0}, "n_heads is 0"),
        ({"rms_norm_eps": True}, "rms_norm_eps is True, but a number is wanted"),
        ({"attention_bias": True}, "attention_bias is True, but only False is supported"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', but only 'silu' is supported"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4}}, "rope_type is 'longrope'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4, "mscale": 1.0}}, "RoPE scaling with mscale"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}, "rope_theta": 1.0}, "with YaRN rope_theta is 1 and"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4, "beta_fast": 0.5}},
            "beta_fast and beta_slow are 0.5 and 1",
        ),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4}}, "low_freq_factor is missing"),
        ({"rope_scaling": 3}, "rope_scaling is 3, but an object is wanted"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized already"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no', but true or false is wanted"),
    ],
)
def test_configurations_that_cannot_be_are_refused(tmp_path, changes, message):
    write_hf_folder(tmp_path)
    _change_config(tmp_path, **changes)
    with pytest.raises(DllamaError, match=message):
        HfFolder(tmp_path)


@pytest.mark.parametrize("text", ["", "[1]", "{", "null", "[" * 100_000, '{"model_type": "llama"'])
def test_a_configuration_that_is_no_json_object_is_refused(tmp_path, text):
    write_hf_folder(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(DllamaError, match=r"config\.json"):
        HfFolder(tmp_path)


def test_folders_without_a_model_say_what_is_missing(tmp_path):
    with pytest.raises(DllamaError, match=r"folder without config\.json"):
        open_model(tmp_path)
    (tmp_path / "some.gguf").touch()
    with pytest.raises(DllamaError, match=r"give a model file in it, such as .*some\.gguf"):
        open_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(hf_config(small_spec())))
    with pytest.raises(DllamaError, match=r"neither model\.safetensors nor"):
        open_model(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(DllamaError, match="PyTorch's own format"):
        open_model(tmp_path)


def test_incomplete_and_mixed_up_shards_are_refused(tmp_path):
    write_hf_folder(tmp_path, n_files=3)
    second = tmp_path / "model-00002-of-00003.safetensors"
    data = second.read_bytes()
    second.unlink()
    with pytest.raises(DllamaError, match=r"lacks model-00002-of-00003\.safetensors, one of its 3"):
        HfFolder(tmp_path)
    second.write_bytes((tmp_path / "model-00001-of-00003.safetensors").read_bytes())
    with pytest.raises(DllamaError, match="has no tensor"):
        HfFolder(tmp_path)
    second.write_bytes(data[:-100])
    with pytest.raises(DllamaError, match=r"00002-of-00003.safetensors has \d+ bytes, but its tensors end at byte"):
        HfFolder(tmp_path)


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a\\b", 7])
def test_an_index_cannot_lead_out_of_the_folder(tmp_path, name):
    write_hf_folder(tmp_path, n_files=2)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(DllamaError, match="which is no file name"):
        HfFolder(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.layers.0.self_attn.q_proj.bias", "is a bias"),
        ("model.layers.0.mlp.experts.0.gate_proj.weight", "has no place in the architecture llama"),
        ("transformer.wte.weight", "has no place in the architecture llama"),
        ("model.layers.7.mlp.up_proj.weight", "should have 2 layers, but its tensors are those of 8"),
    ],
)
def test_tensors_of_other_models_are_refused(tmp_path, name, message):
    spec = small_spec()
    write_hf_folder(tmp_path, spec)
    write_safetensors(tmp_path / "model.safetensors", hf_tensors(spec, 7) | {name: np.ones((4, 4), np.float32)})
    with pytest.raises(DllamaError, match=message):
        HfFolder(tmp_path)
