"""Headers with any numbers in them: a model, or a sentence, and never much memory."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllama_gpu.errors import DllamaError
from dllama_gpu.model.open import open_stored
from dllama_gpu.tokenizer import open_tokenizer
from tests.support.hf_models import write_hf_folder
from tests.support.tiny import write_tiny_gguf, write_tiny_model
from tests.unit.tokenizer.library_tokenizers import write_tokenizer_folder

_MOST_MEMORY = 64 << 20
_HUGE = (0xFF, 0x7F, 0x80, 0x00, 0x01)

_FIELDS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_theta", "model_type"),
)

changes = st.lists(
    st.tuples(st.integers(0, 4095), st.sampled_from(_HUGE) | st.integers(0, 255), st.integers(1, 8)), max_size=6
)
cuts = st.none() | st.integers(0, 4095)


@contextmanager
def little_memory() -> Iterator[None]:
    """Fails when more than 64 MB are taken at once inside."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < _MOST_MEMORY
    finally:
        tracemalloc.stop()


def damaged(data: bytes, places: list[tuple[int, int, int]], cut: int | None) -> bytes:
    """Runs of bytes overwritten near the beginning, and the end cut off."""
    result = bytearray(data)
    for at, byte, length in places:
        start = at % min(len(data), 4096)
        result[start : start + length] = bytes([byte]) * len(result[start : start + length])
    return bytes(result) if cut is None else bytes(result[:cut])


def opens_or_refuses(path: Path, damaged_file: Path, open_it: Callable[[Path], object]) -> None:
    """Opens `path`; an error must be a sentence that names the file or its folder."""
    sentence = None
    with little_memory():
        try:
            opened = open_it(path)
        except DllamaError as error:
            sentence = str(error)
        else:
            close = getattr(opened, "close", None)
            if close is not None:
                close()
    if sentence is not None:
        assert str(damaged_file.parent) in sentence or damaged_file.name in sentence
        assert "\n" not in sentence


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of each kind."""
    folder = tmp_path_factory.mktemp("hostile")
    write_tiny_model(folder)
    write_tiny_gguf(folder / "tiny.gguf")
    write_hf_folder(folder / "hf", n_files=2)
    write_tokenizer_folder(folder / "hf", "smollm")
    (folder / "work").mkdir()
    return folder


@pytest.mark.parametrize(
    ("name", "open_it"), [("tiny.m", open_stored), ("tiny.gguf", open_stored), ("tiny.t", open_tokenizer)]
)
@settings(max_examples=120)
@given(places=changes, cut=cuts)
def test_a_file(
    made: Path, name: str, open_it: Callable[[Path], object], places: list[tuple[int, int, int]], cut: int | None
) -> None:
    path = made / "work" / name
    path.write_bytes(damaged((made / name).read_bytes(), places, cut))
    opens_or_refuses(path, path, open_it)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors", "tokenizer.json"]
)
@settings(max_examples=60)
@given(places=changes, cut=cuts)
def test_a_file_of_a_folder(made: Path, name: str, places: list[tuple[int, int, int]], cut: int | None) -> None:
    path = made / "hf" / name
    original = path.read_bytes()
    try:
        path.write_bytes(damaged(original, places, cut))
        opens_or_refuses(path.parent, path, open_tokenizer if name == "tokenizer.json" else open_stored)
    finally:
        path.write_bytes(original)


@settings(max_examples=80)
@given(
    key=st.sampled_from(_FIELDS),
    value=st.integers() | st.floats() | st.none() | st.text(max_size=5) | st.lists(st.integers(), max_size=2),
)
def test_any_value_of_a_configuration(made: Path, key: str, value: object) -> None:
    path = made / "hf" / "config.json"
    original = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(original) | {key: value}))
        opens_or_refuses(path.parent, path, open_stored)
    finally:
        path.write_text(original)


@pytest.mark.parametrize("name", ["tiny.m", "tiny.t"])
def test_a_cut_at_every_field_is_refused(made: Path, name: str) -> None:
    data = (made / name).read_bytes()
    (header_size,) = struct.unpack_from("<I", data, 4)
    path = made / "work" / name
    open_it = open_stored if name == "tiny.m" else open_tokenizer
    for size in (*range(1, header_size + 41), len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(DllamaError):
            open_it(path)
