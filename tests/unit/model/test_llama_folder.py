"""Folders from Meta, and the checkpoints in them."""

from __future__ import annotations

import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllama_gpu.errors import DllamaError
from dllama_gpu.formats.mapped_file import MappedFile
from dllama_gpu.formats.pth_file import read_pth
from dllama_gpu.model.codecs import dequantize, quantize
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.llama_folder import LlamaFolder
from dllama_gpu.model.open import open_model
from dllama_gpu.model.spec import RopeScaling
from tests.support.models import random_tensors, small_spec
from tests.support.pth_models import write_llama_folder, write_pth


@pytest.mark.parametrize("float_type", [FloatType.F32, FloatType.F16, FloatType.BF16])
@pytest.mark.parametrize(("n_files", "embedding_axis"), [(1, 0), (2, 0), (2, 1)])
def test_every_tensor_reads_as_it_was_made(
    tmp_path: Path, float_type: FloatType, n_files: int, embedding_axis: int
) -> None:
    spec = replace(small_spec(), weight_type=float_type)
    write_llama_folder(tmp_path, spec, n_files=n_files, embedding_axis=embedding_axis, float_type=float_type)
    folder = LlamaFolder(tmp_path)
    assert folder.spec == spec
    for name, values in random_tensors(replace(spec, weight_type=FloatType.F32), seed=7):
        info = folder.tensors[name]
        stored = dequantize(quantize(values, float_type), float_type)
        assert np.array_equal(dequantize(folder.read(name), info.float_type), stored), name
        folder.release(name)
    folder.close()


def test_scaled_rope_of_small_models_is_that_of_llama_3_2(tmp_path: Path) -> None:
    write_llama_folder(tmp_path, small_spec(rope_theta=500000.0, rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192)))
    source = open_model(tmp_path, FloatType.Q80)
    assert source.spec.rope_scaling == RopeScaling(32.0, 1.0, 4.0, 8192)
    assert source.spec.weight_type is FloatType.Q80


def test_incomplete_folders_are_refused(tmp_path: Path) -> None:
    write_llama_folder(tmp_path, small_spec(), n_files=2)
    (tmp_path / "consolidated.01.pth").unlink()
    with pytest.raises(DllamaError, match=r"has the shape \[\d+, \d+\], but \[\d+, \d+\] is wanted"):
        LlamaFolder(tmp_path)
    (tmp_path / "consolidated.00.pth").unlink()
    with pytest.raises(DllamaError, match=r"no consolidated\.00\.pth"):
        LlamaFolder(tmp_path)


class _Evil:
    def __reduce__(self) -> object:
        return os.system, ("touch /tmp/dllama-gpu-was-here",)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    write_pth(path, {"a": _Evil()})
    with pytest.raises(DllamaError, match=r"holds (posix|nt)\.system, which is no part of a dictionary of tensors"):
        read_pth(MappedFile(path))
    assert not Path("/tmp/dllama-gpu-was-here").exists()


@pytest.mark.parametrize("name", ["eval", "getattr", "__import__"])
def test_builtins_are_out_of_reach(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", f"cbuiltins\n{name}\n(S'1'\ntR.".encode())
    with pytest.raises(DllamaError, match=rf"holds builtins\.{name}"):
        read_pth(MappedFile(path))


def test_what_does_not_lie_row_by_row_or_inside_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    values = np.ones((4, 6), np.float32)
    for arguments, message in (
        ({"strides": (1, 4)}, "does not lie row by row"),
        ({"first": 1}, "goes beyond its 96 bytes"),
        ({"compression": zipfile.ZIP_DEFLATED}, "is compressed or out of place"),
    ):
        write_pth(path, {"a": values}, **arguments)  # type: ignore[arg-type]
        with pytest.raises(DllamaError, match=message):
            read_pth(MappedFile(path))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\x03\x04", "no PyTorch checkpoint that can be read"),
        (b"\x80\x02}q\x00.", "no PyTorch checkpoint that can be read"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(DllamaError, match=message):
        read_pth(MappedFile(tmp_path / "x.pth"))


def test_a_pickle_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    for value, message in (([1], "holds list instead of tensors"), ({3: 1}, "a tensor is called 3")):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", pickle.dumps(value))
        with pytest.raises(DllamaError, match=message):
            read_pth(MappedFile(path))


@given(st.binary(max_size=120), st.integers(0, 400), st.booleans())
def test_no_bytes_crash_the_reader(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int, as_pickle: bool
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x.pth"
    if as_pickle:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", noise)
    else:
        write_pth(path, {"a": np.ones((2, 3), np.float32)})
        data = path.read_bytes()
        path.write_bytes(data[:at] + noise + data[at + len(noise) :])
    file = MappedFile(path)
    try:
        tensors = read_pth(file)
    except DllamaError:
        return
    assert all(tensor.offset + tensor.n_bytes <= file.size for tensor in tensors.values())
