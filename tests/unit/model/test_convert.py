"""Conversion to `.m`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from dllama_gpu.errors import DllamaError
from dllama_gpu.model.codecs import QuantizationMethod, dequantize, quantize
from dllama_gpu.model.convert import convert_to_m
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.gguf_file import GgufFile
from dllama_gpu.model.m_file import MFile
from tests.support.models import write_random_gguf

_SIZES: dict[str, Any] = {
    "dim": 64,
    "hidden_dim": 96,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "vocab_size": 50,
    "max_seq_len": 32,
}


def _gguf(path: Path, ggml_type: str = "F32", **changes: Any) -> GgufFile:
    write_random_gguf(path, **(_SIZES | changes), ggml_type=gguf.GGMLQuantizationType[ggml_type], seed=4)
    return GgufFile(path)


@pytest.mark.parametrize("weight_type", [FloatType.F32, FloatType.F16, FloatType.Q40, FloatType.Q80])
@pytest.mark.parametrize("method", ["absmax", "search"])
def test_every_tensor_is_encoded_in_its_type(
    tmp_path: Path, weight_type: FloatType, method: QuantizationMethod
) -> None:
    source = _gguf(tmp_path / "in.gguf")
    convert_to_m(source, tmp_path / "out.m", weight_type, method)
    result = MFile(tmp_path / "out.m")
    assert result.spec == replace(source.spec, weight_type=weight_type)
    for name, info in result.tensors.items():
        values = dequantize(source.read(name), source.tensors[name].float_type)
        is_f32 = name == "embedding" or name.endswith("norm")
        assert info.float_type is (FloatType.F32 if is_f32 else weight_type)
        assert np.array_equal(result.read(name), quantize(values, info.float_type, method)), name


def test_tied_embeddings_are_stored_again_as_the_head(tmp_path: Path) -> None:
    source = _gguf(tmp_path / "in.gguf", tied_embeddings=True)
    convert_to_m(source, tmp_path / "out.m", FloatType.Q80)
    result = MFile(tmp_path / "out.m")
    assert not result.spec.tied_embeddings
    embedding = dequantize(source.read("embedding"), FloatType.F32)
    assert np.array_equal(dequantize(result.read("embedding"), FloatType.F32), embedding)
    assert np.array_equal(result.read("head"), quantize(embedding, FloatType.Q80))


@pytest.mark.parametrize(("ggml_type", "weight_type"), [("Q4_0", FloatType.Q40), ("Q8_0", FloatType.Q80)])
def test_blocks_of_the_right_type_are_copied_unchanged(tmp_path: Path, ggml_type: str, weight_type: FloatType) -> None:
    source = _gguf(tmp_path / "in.gguf", ggml_type)
    convert_to_m(source, tmp_path / "out.m", weight_type, "search")
    result = MFile(tmp_path / "out.m")
    for name, info in result.tensors.items():
        if info.float_type is weight_type:
            assert np.array_equal(result.read(name), source.read(name)), name
    embedding = dequantize(source.read("embedding"), weight_type)
    assert np.array_equal(dequantize(result.read("embedding"), FloatType.F32), embedding)


def test_progress_rises_to_the_total(tmp_path: Path) -> None:
    source = _gguf(tmp_path / "in.gguf")
    calls: list[tuple[int, int]] = []
    convert_to_m(source, tmp_path / "out.m", progress=lambda done, total: calls.append((done, total)))
    result = MFile(tmp_path / "out.m")
    total = sum(info.n_bytes for info in result.tensors.values())
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert {call[1] for call in calls} == {total}
    assert calls[-1] == (total, total)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_epsilon": 1e-4}, "stores no norm epsilon of 0.0001"),
        ({"rope_theta": 1234.5}, "stores rope_theta as a 32-bit integer, which 1234.5 is not"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    source = _gguf(tmp_path / "in.gguf", **changes)
    with pytest.raises(DllamaError, match=message):
        convert_to_m(source, tmp_path / "out.m")
    assert not (tmp_path / "out.m").exists()


def test_rows_that_are_no_whole_blocks_are_refused(tmp_path: Path) -> None:
    source = _gguf(tmp_path / "in.gguf", dim=48, n_heads=2, n_kv_heads=1)
    with pytest.raises(DllamaError, match="dim is 48, but a multiple of 32"):
        convert_to_m(source, tmp_path / "out.m", FloatType.Q40)
    convert_to_m(source, tmp_path / "out.m", FloatType.F32)
    assert MFile(tmp_path / "out.m").spec == source.spec


def test_the_source_is_never_overwritten(tmp_path: Path) -> None:
    source = _gguf(tmp_path / "in.gguf")
    before = source.path.read_bytes()
    with pytest.raises(DllamaError, match="is the model to convert itself"):
        convert_to_m(source, tmp_path / "." / "in.gguf")
    assert source.path.read_bytes() == before


def test_a_damaged_tensor_is_named_and_no_file_is_left(tmp_path: Path) -> None:
    _gguf(tmp_path / "in.gguf").close()
    tensor = next(t for t in gguf.GGUFReader(tmp_path / "in.gguf").tensors if t.name == "blk.1.ffn_up.weight")
    with (tmp_path / "in.gguf").open("r+b") as file:
        file.seek(tensor.data_offset + 4 * 64 * 3)
        file.write(np.float32(np.nan).tobytes())
    source = GgufFile(tmp_path / "in.gguf")
    with pytest.raises(DllamaError, match=r"the tensor layers\.1\.up, from row 0 on: row 3 holds nan at column 0"):
        convert_to_m(source, tmp_path / "out.m")
    assert [file.name for file in tmp_path.iterdir()] == ["in.gguf"]


def test_a_damaged_scale_is_named(tmp_path: Path) -> None:
    _gguf(tmp_path / "in.gguf", "Q8_0").close()
    tensor = next(t for t in gguf.GGUFReader(tmp_path / "in.gguf").tensors if t.name == "blk.0.attn_k.weight")
    with (tmp_path / "in.gguf").open("r+b") as file:
        file.seek(tensor.data_offset + 34 * 2 * 5)  # rows of 64 are two blocks of 34 bytes
        file.write(np.float16(np.inf).tobytes() + bytes([0]))
    with pytest.raises(DllamaError, match=r"the tensor layers\.0\.k, from row 0 on: row 5 holds nan at column 0"):
        convert_to_m(GgufFile(tmp_path / "in.gguf"), tmp_path / "out.m", FloatType.Q40)


def test_default_model_in_plain_q40_has_its_shape(smollm2_q40_m: Path, smollm2_gguf: Path) -> None:
    result, source = MFile(smollm2_q40_m), GgufFile(smollm2_gguf)
    assert result.spec == replace(source.spec, weight_type=FloatType.Q40, tied_embeddings=False)
    embedding = dequantize(result.read("embedding")[::101], FloatType.F32)
    assert np.array_equal(embedding, dequantize(result.read("head")[::101], FloatType.Q40))
    original = dequantize(source.read("layers.7.gate"), FloatType.Q41)
    assert np.array_equal(result.read("layers.7.gate"), quantize(original, FloatType.Q40))
