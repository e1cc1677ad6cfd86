"""GGUF models in several files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from dllama_gpu.engine.loading import open_with_tokenizer
from dllama_gpu.errors import DllamaError
from dllama_gpu.formats.gguf_parts import GgufParts
from dllama_gpu.model.files import file_states
from dllama_gpu.model.gguf_file import GgufFile
from tests.support.tiny import write_tiny_gguf


def split(folder: Path, count: int = 3, **changes: dict[str, int]) -> list[Path]:
    """The tiny model in `count` files, as llama.cpp's splitter writes it; `changes` replace fields of a part ("p1")."""
    write_tiny_gguf(folder / "whole.gguf")
    reader = gguf.GGUFReader(folder / "whole.gguf")
    paths = []
    for number in range(count):
        path = folder / f"tiny-{number + 1:05}-of-{count:05}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        fields: dict[str, Any] = {"split.no": number, "split.count": count, "split.tensors.count": len(reader.tensors)}
        for key, value in (fields | changes.get(f"p{number}", {})).items():
            writer.add_uint32(key, value)
        if number == 0:
            for field in reader.fields.values():
                if not field.name.startswith(("GGUF.", "general.architecture")):
                    writer.add_key_value(field.name, field.contents(), field.types[0], *field.types[1:2])
        for tensor in reader.tensors[number::count]:
            writer.add_tensor(tensor.name, np.array(tensor.data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(path)
    return paths


@pytest.mark.parametrize("given", [0, 1, 2])
def test_any_part_opens_the_whole(tmp_path: Path, given: int) -> None:
    paths = split(tmp_path)
    whole, parts = GgufFile(tmp_path / "whole.gguf"), GgufFile(paths[given])
    assert parts.path == paths[0]
    assert parts.spec == whole.spec
    assert dict(parts.tensors) == dict(whole.tensors)
    for name in whole.tensors:
        assert np.array_equal(parts.read(name), whole.read(name)), name
        parts.release(name)
    parts.close()
    with open_with_tokenizer(paths[given]) as model:
        assert model.tokenizer.encode("th") == [258]


def test_missing_and_mixed_up_parts_are_named(tmp_path: Path) -> None:
    paths = split(tmp_path)
    data = paths[1].read_bytes()
    paths[1].unlink()
    with pytest.raises(DllamaError, match=r"tiny-00002-of-00003\.gguf is missing, one of 3 parts"):
        GgufParts(paths[0])
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(DllamaError, match="says that it is part 2 of 3, counted from 0, but its name says part 1"):
        GgufParts(paths[0])
    paths[1].write_bytes(data[:-4000])
    with pytest.raises(DllamaError, match="the file is truncated"):
        GgufParts(paths[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"p0": {"split.tensors.count": 99}}, "but 99 are announced"),
        ({"p2": {"split.count": 4}}, "part 2 of 4, counted from 0, but its name says part 2 of 3"),
        ({"p0": {"split.count": 100_000}}, "split.count is 100000, which is no number of files"),
        ({"p0": {"split.count": 4}}, "is one of 4 parts of a split model, but is not called like one"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    tmp_path: Path, changes: dict[str, dict[str, int]], message: str
) -> None:
    with pytest.raises(DllamaError, match=message):
        GgufParts(split(tmp_path, **changes)[0])


def test_a_tensor_in_two_parts_is_refused(tmp_path: Path) -> None:
    paths = split(tmp_path, 2)
    writer = gguf.GGUFWriter(paths[1], "llama")
    for key, value in (("split.no", 1), ("split.count", 2)):
        writer.add_uint32(key, value)
    writer.add_tensor(next(iter(gguf.GGUFReader(paths[0]).tensors)).name, np.ones((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(DllamaError, match="is in another part too"):
        GgufParts(paths[0])


def test_a_change_of_any_part_is_seen(tmp_path: Path) -> None:
    paths = split(tmp_path)
    before = file_states(paths[0])
    assert [name for name, _, _ in before] == [path.name for path in paths]
    os.utime(paths[2], (1, 1))
    assert file_states(paths[1]) != before
    assert len(file_states(tmp_path / "whole.gguf")) == 1
