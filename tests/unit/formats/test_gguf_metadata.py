"""The metadata reader against the `gguf` package's writer and reader."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllama_gpu.errors import DllamaError
from dllama_gpu.formats.gguf_header import read_gguf_metadata


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "sample.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("a.u8", 200)
    writer.add_int8("a.i8", -3)
    writer.add_uint16("a.u16", 60000)
    writer.add_int16("a.i16", -300)
    writer.add_uint32("a.u32", 4_000_000_000)
    writer.add_int32("a.i32", -5)
    writer.add_uint64("a.u64", 1 << 63)
    writer.add_int64("a.i64", -(1 << 62))
    writer.add_float32("a.f32", 0.5)
    writer.add_float64("a.f64", 1e300)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "grün 中 👋")
    writer.add_array("a.texts", ["", "Ġthe", "▁"])
    writer.add_array("a.ints", [1, -2, 3])
    writer.add_array("a.floats", [0.5, -1.5])
    writer.add_array("a.bools", [True, False])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_all_types_are_read_as_the_gguf_package_reads_them(sample: Path) -> None:
    metadata = read_gguf_metadata(sample)
    fields = gguf.GGUFReader(sample).fields
    assert dict(metadata) == {key: field.contents() for key, field in fields.items() if not key.startswith("GGUF.")}
    assert metadata["a.texts"] == ["", "Ġthe", "▁"]
    assert len(metadata) == 17


def test_a_file_cut_at_any_byte_is_refused_with_a_sentence(sample: Path, tmp_path: Path) -> None:
    data = sample.read_bytes()
    end = read_end(data)
    path = tmp_path / "cut.gguf"
    for size in range(end):
        path.write_bytes(data[:size])
        with pytest.raises(DllamaError, match=r"is no GGUF file|damaged or truncated|is empty|truncated, repeat"):
            read_gguf_metadata(path)


def read_end(data: bytes) -> int:
    """Where the last entry (`a.bools`) ends: its key, type, item type, length and two bytes."""
    return data.index(b"a.bools") + len("a.bools") + 4 + 4 + 8 + 2


@settings(max_examples=300, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_give_metadata_or_a_sentence(
    sample: Path, tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(sample.read_bytes())
    for position, byte in changes:
        data[position % len(data)] = byte
    path = tmp_path_factory.getbasetemp() / "changed.gguf"
    path.write_bytes(data)
    with contextlib.suppress(DllamaError):  # anything else fails the test
        assert isinstance(read_gguf_metadata(path), dict)


def head(n_entries: int = 1, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, 0, n_entries)


def entry(type_id: int, value: bytes, key: bytes = b"k") -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", type_id) + value


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04" + bytes(30), "starts with b'PK\\x03\\x04' instead of b'GGUF'"),
        (head(version=1) + bytes(30), "has GGUF version 1"),
        (head(version=0x03000000) + bytes(30), "big-endian"),
        (head(n_entries=1 << 60) + bytes(30), "the number of metadata fields is 1152921504606846976"),
        (head() + entry(13, bytes(8)), "the metadata field k has the unknown type 13"),
        (head() + entry(9, struct.pack("<IQ", 9, 1)), "k is an array of arrays"),
        (
            head() + entry(9, struct.pack("<IQ", 8, 1 << 60)),
            "the length of the metadata field k is 1152921504606846976",
        ),
        (
            head() + entry(9, struct.pack("<IQ", 6, 1 << 60)),
            "the length of the metadata field k is 1152921504606846976",
        ),
        (head() + entry(8, struct.pack("<Q", 1 << 63)), "the length of the metadata field k is 9223372036854775808"),
        (head() + entry(8, struct.pack("<Q", 2) + b"\xff\xff"), "the metadata field k is not UTF-8"),
    ],
)
def test_each_defect_is_named(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with pytest.raises(DllamaError) as caught:
        read_gguf_metadata(path)
    assert said in str(caught.value)


def test_a_missing_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DllamaError, match="does not exist"):
        read_gguf_metadata(tmp_path / "none.gguf")
