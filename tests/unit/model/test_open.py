"""Opening by content, and what is said about files that are no models."""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from dllama_gpu.errors import DllamaError
from dllama_gpu.model.codecs import dequantize
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.gguf_file import GgufFile
from dllama_gpu.model.m_file import MFile
from dllama_gpu.model.open import open_model
from tests.support.models import write_random_gguf, write_random_m

_SIZES: dict[str, Any] = {
    "dim": 32,
    "hidden_dim": 64,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "vocab_size": 9,
    "max_seq_len": 8,
}


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    m_path, gguf_path = tmp_path / "really_m.gguf", tmp_path / "really_gguf.m"
    write_random_m(m_path, **_SIZES, weight_type=FloatType.F32, seed=1)
    write_random_gguf(gguf_path, **_SIZES, ggml_type=gguf.GGMLQuantizationType.F32, seed=1)
    assert isinstance(open_model(m_path), MFile)
    assert isinstance(open_model(gguf_path), GgufFile)


def test_both_formats_give_the_same_model(tmp_path: Path) -> None:
    m_path, gguf_path = tmp_path / "model.m", tmp_path / "model.gguf"
    spec = write_random_m(m_path, **_SIZES, weight_type=FloatType.Q80, seed=1)
    write_random_gguf(gguf_path, **_SIZES, ggml_type=gguf.GGMLQuantizationType.Q8_0, seed=1)
    from_m, from_gguf = open_model(m_path), open_model(gguf_path)
    assert from_m.spec == from_gguf.spec == spec
    assert set(from_m.tensors) == set(from_gguf.tensors)
    for name, info in from_m.tensors.items():
        if name == "embedding":  # F32 in .m, Q8_0 in this GGUF
            expected = dequantize(from_gguf.read(name), FloatType.Q80)
            assert np.allclose(dequantize(from_m.read(name), info.float_type), expected, atol=0.02)
        else:
            assert info == from_gguf.tensors[name]
            assert np.array_equal(from_m.read(name), from_gguf.read(name))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (struct.pack("<I", 0x567124) + bytes(60), "is a tokenizer file"),
        (struct.pack("<I", 0x567123) + bytes(60), "is a tokenizer file"),
        (struct.pack("<Q", 500) + b'{"__metadata__":{}}', "is a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is only a Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "is a web page, so the download failed"),
        (b"\n<HTML>", "is a web page"),
        (struct.pack("<I", 0xABCD00) + bytes(60), "is a .m file of an old format"),
        (b"\x00\x01\x02", r"is no model file \(it starts with 00 01 02\)"),
    ],
)
def test_a_file_that_is_no_model_is_described(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DllamaError, match=message) as caught:
        open_model(path)
    assert str(path) in str(caught.value)


def test_a_zip_archive_is_described(tmp_path: Path) -> None:
    path = tmp_path / "consolidated.00.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", "")
    with pytest.raises(DllamaError, match="is a zip archive"):
        open_model(path)


def test_a_folder_and_a_missing_file_are_described(tmp_path: Path) -> None:
    with pytest.raises(DllamaError, match="is a folder"):
        open_model(tmp_path)
    with pytest.raises(DllamaError, match="does not exist"):
        open_model(tmp_path / "model.m")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DllamaError, match="is a device or pipe"):
        open_model(tmp_path / "pipe")
