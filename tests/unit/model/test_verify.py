"""Check of a conversion by reading it back."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from dllama_gpu.errors import DllamaError
from dllama_gpu.model.convert import convert_to_m
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.gguf_file import GgufFile
from dllama_gpu.model.m_file import MFile
from dllama_gpu.model.verify import verify_m
from tests.support.models import write_random_gguf


@pytest.fixture
def source(tmp_path: Path) -> GgufFile:
    path = tmp_path / "in.gguf"
    write_random_gguf(
        path,
        dim=64,
        hidden_dim=96,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        vocab_size=50,
        max_seq_len=32,
        ggml_type=gguf.GGMLQuantizationType.F32,
        seed=4,
        tied_embeddings=True,
    )
    return GgufFile(path)


@pytest.mark.parametrize(
    ("weight_type", "lowest", "highest"),
    [
        (FloatType.F32, 0.0, 0.0),
        (FloatType.F16, 1e-5, 1e-3),
        (FloatType.Q80, 1e-3, 2e-2),
        (FloatType.Q40, 5e-2, 0.2),
    ],
)
def test_a_sound_conversion_has_the_error_of_its_number_format(
    tmp_path: Path, source: GgufFile, weight_type: FloatType, lowest: float, highest: float
) -> None:
    out = tmp_path / "out.m"
    convert_to_m(source, out, weight_type)
    told: list[tuple[int, int]] = []
    error = verify_m(out, source, weight_type, lambda done, total: told.append((done, total)))
    assert lowest <= error <= highest
    assert told[-1][0] == told[-1][1] == sum(info.n_bytes for info in MFile(out).tensors.values())


@pytest.mark.parametrize("weight_type", [FloatType.F32, FloatType.Q40])
@pytest.mark.parametrize("place", [0.3, 0.6, 0.999])
@pytest.mark.parametrize("damage", [bytes(300), b"\xff" * 300, np.random.default_rng(1).bytes(300)])
def test_a_few_damaged_rows_are_named(
    tmp_path: Path, source: GgufFile, weight_type: FloatType, place: float, damage: bytes
) -> None:
    out = tmp_path / "out.m"
    convert_to_m(source, out, weight_type)
    data = bytearray(out.read_bytes())
    at = int(place * len(data)) - 300
    data[at : at + 300] = damage
    out.write_bytes(data)
    with pytest.raises(DllamaError, match=r"out\.m: row \d+ of the tensor [a-z0-9_.]+ reads back"):
        verify_m(out, source, weight_type)


def test_another_header_is_seen(tmp_path: Path, source: GgufFile) -> None:
    out = tmp_path / "out.m"
    convert_to_m(source, out, FloatType.Q80)
    data = out.read_bytes()
    key = data.index((10).to_bytes(4, "little"), 8)  # max_seq_len
    out.write_bytes(data[: key + 4] + (31).to_bytes(4, "little") + data[key + 8 :])
    with pytest.raises(DllamaError, match="header reads back as"):
        verify_m(out, source, FloatType.Q80)
