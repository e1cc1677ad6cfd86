"""GGUF files of every architecture give the tensors and the spec that were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dllama_gpu.errors import DllamaError
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.gguf_file import GgufFile
from dllama_gpu.model.spec import Architecture
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


def test_a_router_is_read_as_f32(tmp_path: Path) -> None:
    spec = architecture_spec(Architecture.MIXTRAL)
    path = tmp_path / "model.gguf"
    write_architecture_gguf(path, spec)
    model = GgufFile(path)
    assert model.tensors["layers.0.router"].float_type is FloatType.F32
    model.close()
