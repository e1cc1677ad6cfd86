import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from dllama_gpu.errors import DllamaError
from dllama_gpu.formats.mapped_file import MappedFile
from dllama_gpu.formats.safetensors_header import read_safetensors_header


def _write(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return MappedFile(path)


def _tensor(dtype="F32", shape=(2, 3), begin=0, end=24):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_reads_what_the_library_wrote(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.arange(5, dtype=np.float16),
        "c": np.zeros((0, 4), np.int64),
        "d": np.array(3, np.int8),
    }
    save_file(tensors, path, {"format": "pt"})
    file = MappedFile(path)
    header = read_safetensors_header(file)
    with safe_open(path, "numpy") as library:
        assert set(header) == set(library.keys())
    for name, values in tensors.items():
        found = header[name]
        assert found.shape == values.shape
        assert file.view(found.offset, found.n_bytes).tobytes() == values.tobytes()


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": _tensor()}, bytes(20), "truncated"),
        ({"a": _tensor()}, bytes(28), "4 bytes behind its last tensor"),
        ({"a": _tensor(end=20)}, bytes(20), "lies at bytes 0 to 20, but F32 .* takes 24"),
        ({"a": _tensor(begin=24, end=0)}, bytes(24), "lies at bytes 24 to 0"),
        ({"a": _tensor(begin=-24, end=0)}, bytes(24), "lies at bytes -24 to 0"),
        ({"a": _tensor(begin=8, end=32)}, bytes(32), "starts at byte .*, but the one before it ends"),
        ({"a": _tensor(), "b": _tensor()}, bytes(24), "starts at byte .*, but the one before it ends"),
        ({"a": _tensor(dtype="F3")}, bytes(24), "unknown number format 'F3'"),
        ({"a": _tensor(shape=(-2, -3))}, bytes(24), "impossible shape"),
        ({"a": _tensor(shape=(1 << 60, 1 << 60))}, bytes(24), "impossible shape"),
        ({"a": _tensor(shape=[1] * 100)}, bytes(4), "impossible shape"),
        ({"a": _tensor(shape=(2.5, 3))}, bytes(24), "not described as it must be"),
        ({"a": {"dtype": "F32"}}, bytes(24), "not described as it must be"),
        ({"a": 3}, bytes(24), "not described as it must be"),
        ({"a\n": _tensor()}, bytes(24), "too long or not printable"),
        (b"{", b"", "not the JSON that is wanted"),
        (b"[1]", b"", "no safetensors file"),
        (b'{"a":' + b"[" * 50_000, b"", "not the JSON that is wanted|not described as it must be"),
        (b'{"\xff":1}', b"", "not the JSON that is wanted|not described"),
    ],
)
def test_damaged_headers_are_refused(tmp_path, header, data, message):
    with pytest.raises(DllamaError, match=message):
        read_safetensors_header(_write(tmp_path / "x", header, data))


@pytest.mark.parametrize("start", [b"\x01", b"GGUF" + bytes(20), struct.pack("<Q", 1 << 40) + b"{}", bytes(64)])
def test_other_files_are_refused(tmp_path, start):
    (tmp_path / "x").write_bytes(start)
    with pytest.raises(DllamaError, match=r"no safetensors file|too few"):
        read_safetensors_header(MappedFile(tmp_path / "x"))


def test_a_header_longer_than_the_file_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(struct.pack("<Q", 1000) + b"{}")
    with pytest.raises(DllamaError, match="its header alone ends at byte 1008"):
        read_safetensors_header(MappedFile(tmp_path / "x"))


@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_crash_the_reader(tmp_path_factory, data, framed):
    path = tmp_path_factory.mktemp("fuzz") / "x"
    path.write_bytes((struct.pack("<Q", len(data)) + data if framed else data) or b"\0")
    file = MappedFile(path)
    try:
        header = read_safetensors_header(file)
    except DllamaError:
        return
    assert all(tensor.offset + tensor.n_bytes <= file.size for tensor in header.values())
