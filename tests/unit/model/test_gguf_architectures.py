"""GGUF files of every architecture give the tensors and the spec that were written."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from dllama_gpu.errors import DllamaError
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.gguf_file import GgufFile
from dllama_gpu.model.spec import Architecture, RopeScaling
from tests.support.architectures import architecture_spec, random_source, write_architecture_gguf


@pytest.mark.parametrize("merged_experts", [True, False])
@pytest.mark.parametrize("architecture", Architecture)
def test_a_file_gives_back_its_model(tmp_path: Path, architecture: Architecture, merged_experts: bool) -> None:
    spec = architecture_spec(architecture)
    path = tmp_path / "model.gguf"
    write_architecture_gguf(path, spec, merged_experts=merged_experts)
    wanted = random_source(spec)
    model = GgufFile(path)
    assert model.spec == spec
    assert set(model.tensors) == set(wanted.tensors)
    for name in wanted.tensors:
        assert model.tensors[name] == wanted.tensors[name]
        assert np.array_equal(model.read(name), wanted.read(name)), name
    model.close()


def test_more_experts_than_tensors_are_refused_before_a_list_of_them_is_made(tmp_path: Path) -> None:
    spec = architecture_spec(Architecture.QWEN3_MOE)
    path = tmp_path / "model.gguf"
    write_architecture_gguf(path, spec)
    data = path.read_bytes()
    key = b"qwen3moe.expert_count" + (4).to_bytes(4, "little")
    path.write_bytes(data.replace(key + (8).to_bytes(4, "little"), key + (4096).to_bytes(4, "little")))
    with pytest.raises(DllamaError, match=r"has only \d+ tensors, where its layers should have 24594"):
        GgufFile(path)


def test_gemmas_27b_model_alone_scales_its_scores_by_the_width(tmp_path: Path) -> None:
    spec = replace(architecture_spec(Architecture.GEMMA3), n_layers=62)
    path = tmp_path / "model.gguf"
    write_architecture_gguf(path, spec)
    model = GgufFile(path)
    assert model.spec.attention_scale == (spec.dim / spec.n_heads) ** -0.5
    model.close()


def test_yarn_numbers_are_read(tmp_path: Path) -> None:
    def add_yarn(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(32768)

    spec = architecture_spec(Architecture.QWEN2)
    path = tmp_path / "model.gguf"
    write_architecture_gguf(path, spec, prepare=add_yarn)
    model = GgufFile(path)
    assert model.spec.rope_scaling == RopeScaling(4.0, 1.0, 1.0, 32768, 32.0, 1.0, 0.1 * math.log(4.0) + 1.0)
    model.close()


def test_a_router_is_read_as_f32(tmp_path: Path) -> None:
    spec = architecture_spec(Architecture.MIXTRAL)
    path = tmp_path / "model.gguf"
    write_architecture_gguf(path, spec)
    model = GgufFile(path)
    assert model.tensors["layers.0.router"].float_type is FloatType.F32
    model.close()
