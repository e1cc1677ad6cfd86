"""Damaged and truncated GGUF files: each is one sentence, never a traceback, a hang or a huge allocation."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dllama_gpu.errors import DllamaError
from dllama_gpu.model.gguf_file import GgufFile
from tests.support.models import write_random_gguf


@pytest.fixture(scope="module")
def model_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_random_gguf(
        path, dim=32, hidden_dim=32, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=9, max_seq_len=16,
        ggml_type=gguf.GGMLQuantizationType.Q4_0, seed=0,
    )  # fmt: skip
    return path.read_bytes()


@pytest.fixture(scope="module")
def header_size(model_bytes: bytes, tmp_path_factory: pytest.TempPathFactory) -> int:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    path.write_bytes(model_bytes)
    return int(gguf.GGUFReader(path).data_offset)


def _file(*fields: bytes, n_tensors: int = 0, tail: bytes = b"") -> bytes:
    """A GGUF file made of encoded metadata fields and whatever follows."""
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, len(fields)) + b"".join(fields) + tail


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _tensor(name: str, dims: list[int], type_code: int = 0, offset: int = 0) -> bytes:
    return _text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type_code, offset)


def _with_tensors(*tensors: bytes) -> bytes:
    """A GGUF file with these entries in its tensor table and a few bytes of data."""
    return _file(_ARCHITECTURE, n_tensors=len(tensors), tail=b"".join(tensors) + bytes(_DATA_BYTES))


_DATA_BYTES = 100
_ARCHITECTURE = _text("general.architecture") + struct.pack("<I", 8) + _text("llama")


def _open_fails(path: Path, data: bytes, message: str) -> None:
    path.write_bytes(data)
    with pytest.raises(DllamaError, match=message) as caught:
        GgufFile(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GGML" + bytes(40), "is no GGUF file: it starts with b'GGML'"),
        (b"GG", "is no GGUF file"),
        (b"GGUF\x03", "the version needs 4 bytes, but the file ends at byte 5"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "has GGUF version 1, but only versions 2 and 3"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "the number of tensors is 9223372036854775808, more than"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**40), "the number of metadata fields is 1099511627776, more than"),
        (_file(struct.pack("<Q", 2**64 - 1) + bytes(20)), "the length of a metadata key is 18446744073709551615"),
        (_file(struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<II", 4, 0)), r"a metadata key is not UTF-8"),
        (_file(_text("bell\a") + struct.pack("<II", 4, 0)), r"a metadata key is 'bell\\x07', which is too long or not"),
        (_with_tensors(_tensor("x" * 300, [4])), "a tensor's name is 'xxxxxxxx"),
        (_file(_text("key") + struct.pack("<II", 13, 0)), "the metadata field key has the unknown type 13"),
        (_file(_text("key") + struct.pack("<IIQ", 9, 4, 2**60)), "the length of the metadata field key is 1152921504"),
        (_file(_text("key") + struct.pack("<IIQ", 9, 8, 2**60)), "the length of the metadata field key is 1152921504"),
        (_file(_text("key") + struct.pack("<IIQ", 9, 9, 1) + bytes(12)), "is an array of arrays"),
        (_file(_text("key") + struct.pack("<IIQQ", 9, 8, 1, 2**50)), "the metadata field key needs 1125899906842624"),
        (_file(_text("key") + struct.pack("<IIQ", 9, 8, 2) + _text("longer than 8")), "needs 8 bytes"),
        (_file(_ARCHITECTURE, _ARCHITECTURE), "the metadata field general.architecture comes twice"),
        (
            _file(_ARCHITECTURE, _text("general.alignment") + struct.pack("<II", 4, 24)),
            "general.alignment is 24, but a power of two",
        ),
        (
            _file(_ARCHITECTURE, _text("general.alignment") + struct.pack("<II", 4, 0)),
            "general.alignment is 0, but a power of two",
        ),
        (_file(_ARCHITECTURE), r"the tensor token_embd\.weight is missing"),
        (_with_tensors(_tensor("x", [])), "has 0 dimensions"),
        (_with_tensors(_tensor("x", [1] * 5)), "has 5 dimensions"),
        (_with_tensors(_tensor("x", [4, 0])), r"has the impossible shape \[0, 4\]"),
        (_with_tensors(_tensor("x", [2**63])), "has the impossible shape"),
        (_with_tensors(_tensor("x", [4], type_code=999)), "the tensor x has the unknown type 999"),
        (_with_tensors(_tensor("x", [33], type_code=2)), "has rows of 33, no multiple of the 32"),
        (_with_tensors(_tensor("x", [4], offset=1)), "is not aligned to 32 bytes"),
        (_with_tensors(_tensor("x", [400])), "the file is truncated"),
        (
            _with_tensors(_tensor("x", [4]), _tensor("y", [4])),
            "overlaps the one before it",
        ),
        (
            _with_tensors(_tensor("x", [4]), _tensor("x", [4], offset=32)),
            "the tensor x comes twice",
        ),
    ],
)  # fmt: skip
def test_a_defect_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    _open_fails(tmp_path / "model.gguf", data, message)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_truncation_is_a_sentence(
    tmp_path: Path, model_bytes: bytes, header_size: int, data: st.DataObject
) -> None:
    length = data.draw(st.one_of(st.integers(0, header_size), st.integers(0, len(model_bytes) - 32)))
    _open_fails(
        tmp_path / "model.gguf", model_bytes[:length], "ends at byte|more than the file has room for|empty|is no GGUF"
    )


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_flipped_header_byte_opens_or_is_a_sentence(
    tmp_path: Path, model_bytes: bytes, header_size: int, data: st.DataObject
) -> None:
    damaged = bytearray(model_bytes)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, header_size - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "model.gguf"
    path.write_bytes(damaged)
    try:
        model = GgufFile(path)
    except DllamaError:
        return
    for name, info in model.tensors.items():
        assert model.read(name).shape == (info.n_rows, info.row_bytes)
    model.close()


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tail=st.binary(max_size=300))
def test_any_bytes_behind_the_magic_are_a_sentence(tmp_path: Path, tail: bytes) -> None:
    _open_fails(tmp_path / "model.gguf", b"GGUF\x03\x00\x00\x00" + tail, r"model\.gguf")


def test_padding_behind_the_last_tensor_is_allowed(tmp_path: Path, model_bytes: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(model_bytes + bytes(500))
    assert GgufFile(path).spec.vocab_size == 9


@pytest.mark.parametrize("key", ["general.architecture", "llama.logit_scale", "general.alignment"])
def test_a_message_counts_an_array_and_does_not_print_it(tmp_path: Path, key: str) -> None:
    array = struct.pack("<IIQ", 9, 6, 5000) + bytes(4 * 5000)  # float32
    fields = ([] if key == "general.architecture" else [_ARCHITECTURE]) + [_text(key) + array]
    _open_fails(tmp_path / "array.gguf", _file(*fields), f"{key} is a list of 5000 values")
