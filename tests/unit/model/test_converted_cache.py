"""Converted matrices on disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dllama_gpu.model import converted_cache
from dllama_gpu.model.converted_cache import CachedConversion, cache_folder
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.hf_folder import HfFolder
from dllama_gpu.model.reweighted import ReweightedSource
from tests.support.hf_models import write_hf_folder


@pytest.fixture(autouse=True)
def small_models_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converted_cache, "_WORTH_BYTES", 1)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_hf_folder(tmp_path / "model")
    return tmp_path / "model"


def opened(model: Path, weights: FloatType = FloatType.Q80, **limit: int) -> CachedConversion:
    return CachedConversion(ReweightedSource(HfFolder(model), weights), model.parent / "cache", **limit)


def read_all(source: CachedConversion) -> dict[str, bytes]:
    return {name: source.read(name).tobytes() for name in source.tensors}


def refuse_conversion(source: CachedConversion, monkeypatch: pytest.MonkeyPatch) -> None:
    original = source.original
    kept = original.read

    def read(name: str) -> object:
        assert not original.is_converted(name), f"{name} is converted again"
        return kept(name)

    monkeypatch.setattr(original, "read", read)


def test_the_second_start_converts_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ReweightedSource(HfFolder(model), FloatType.Q80)
    wanted = {name: plain.read(name).tobytes() for name in plain.tensors}
    first = opened(model)
    assert not first.is_complete
    assert read_all(first) == wanted
    second = opened(model)
    assert second.is_complete
    refuse_conversion(second, monkeypatch)
    assert read_all(second) == wanted
    assert second.tensors == plain.tensors
    assert second.spec == plain.spec


def test_other_weights_and_changed_files_are_converted_anew(model: Path) -> None:
    before = read_all(opened(model))
    assert not opened(model, FloatType.Q40).is_complete
    write_hf_folder(model, seed=8)
    changed = opened(model)
    assert not changed.is_complete
    assert read_all(changed)["layers.0.q"] != before["layers.0.q"]


@pytest.mark.parametrize("damage", ["flipped", "short", "empty", "folder"])
def test_what_is_damaged_is_converted_anew(model: Path, damage: str) -> None:
    wanted = read_all(opened(model))
    location = opened(model).location
    assert location is not None
    path = location / "layers.0.q"
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[100] ^= 1
        path.write_bytes(data)
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(data[:50] if damage == "short" else b"")
    assert read_all(opened(model)) == wanted
    if damage != "folder":
        assert path.stat().st_size == len(data)


def test_a_disk_without_room_to_spare_is_left_alone(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4 << 30))
    source = opened(model)
    assert read_all(source)
    assert source.location is None
    assert not opened(model).is_complete


def test_a_folder_that_cannot_be_made_costs_nothing_but_time(model: Path) -> None:
    (model.parent / "cache").touch()
    source = opened(model)
    assert source.location is None
    assert read_all(source)


def test_the_models_used_longest_ago_make_room(model: Path) -> None:
    first = opened(model)
    read_all(first)
    size = sum(file.stat().st_size for file in first.location.iterdir())
    second = opened(model, FloatType.Q40)
    read_all(second)
    os.utime(first.location, (1, 1))
    third = opened(model, FloatType.F32, limit=10 * size)
    assert first.location.exists()
    assert third.location.exists()
    fourth = opened(model, FloatType.F16, limit=3 * size)
    assert not first.location.exists()
    assert second.location.exists()
    assert fourth.location.exists()
    assert opened(model, FloatType.F32, limit=size).location is None  # it alone is too much


def test_the_environment_names_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLLAMA_GPU_CONVERTED_CACHE", "none")
    assert cache_folder() is None
    monkeypatch.setenv("DLLAMA_GPU_CONVERTED_CACHE", "/some/where")
    assert cache_folder() == Path("/some/where")
    monkeypatch.delenv("DLLAMA_GPU_CONVERTED_CACHE")
    assert cache_folder().name == "converted"


def test_views_outlive_the_tensor_s_next_reading(model: Path) -> None:
    read_all(opened(model))
    source = opened(model)
    first = source.read("layers.0.v")
    source.release("layers.0.v")
    assert np.array_equal(first, source.read("layers.0.v"))
