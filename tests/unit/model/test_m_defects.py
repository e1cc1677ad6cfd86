"""Damaged, truncated and implausible `.m` files: each is one sentence that names the file and the defect."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dllama_gpu.errors import DllamaError
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.m_file import MFile
from tests.support.models import write_random_m

_HEADER_PAIRS = 16  # of the file that the fixture writes
_ANY_I32 = st.one_of(st.sampled_from([0, 1, -1, 2**31 - 1, -(2**31), 31, 64]), st.integers(-(2**31), 2**31 - 1))


@pytest.fixture(scope="module")
def model_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("m") / "model.m"
    write_random_m(
        path, dim=32, hidden_dim=64, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=20, max_seq_len=16,
        weight_type=FloatType.Q40, seed=0,
    )  # fmt: skip
    data = path.read_bytes()
    assert struct.unpack_from("<I", data, 4)[0] == 8 + 8 * _HEADER_PAIRS
    return data


def _set_key(data: bytes, key: int, value: int) -> bytes:
    """The file with one more header pair, which wins over an earlier one of the same key."""
    size = struct.unpack_from("<I", data, 4)[0]
    return data[:4] + struct.pack("<I", size + 8) + data[8:size] + struct.pack("<ii", key, value) + data[size:]


def _drop_key(data: bytes, key: int) -> bytes:
    size = struct.unpack_from("<I", data, 4)[0]
    pairs = b"".join(struct.pack("<ii", *pair) for pair in struct.iter_unpack("<ii", data[8:size]) if pair[0] != key)
    return data[:4] + struct.pack("<I", 8 + len(pairs)) + pairs + data[size:]


def _open_fails(path: Path, data: bytes, message: str) -> None:
    path.write_bytes(data)
    with pytest.raises(DllamaError, match=message) as caught:
        MFile(path)
    assert str(path) in str(caught.value)


def _opens_whole_or_fails(path: Path) -> None:
    try:
        model = MFile(path)
    except DllamaError:
        return
    assert path.stat().st_size - 400 < sum(info.n_bytes for info in model.tensors.values()) < path.stat().st_size
    for name, info in model.tensors.items():
        assert model.read(name).shape == (info.n_rows, info.row_bytes)
    model.close()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (1, 0xABCD07, r"arch_type is 0xabcd07, but one of 0xabcd00 \(llama\)"),
        (2, 0, "dim is 0, but 1 to"),
        (2, -32, "dim is -32"),
        (2, 2**31 - 1, "dim is 2147483647"),
        (2, 48, "dim is 48, but a multiple of 32, the block length of q40"),
        (3, 0, "hidden_dim is 0"),
        (3, 40, "hidden_dim is 40, but a multiple of 32"),
        (4, 0, "n_layers is 0"),
        (4, -1, "n_layers is -1"),
        (4, 2**31 - 1, "n_layers is 2147483647"),
        (4, 3, "bytes are missing"),
        (4, 1, "bytes are too many"),
        (5, 0, "n_heads is 0"),
        (5, -4, "n_heads is -4"),
        (5, 3, "n_kv_heads is 2, but a divisor of n_heads, which is 3"),
        (6, 0, "n_kv_heads is 0"),
        (7, 4, "n_experts is 4, but 0 for the architecture llama"),
        (9, 0, "vocab_size is 0"),
        (10, -5, "max_seq_len is -5"),
        (11, 0, "hidden_act is 0 .gelu., but only models with silu"),
        (11, 9, "hidden_act is 0x9"),
        (12, 0, "rope_theta is 0"),
        (13, 4, r"weights_float_type is 0x4, but one of 0x0 \(f32\)"),
        (14, -8, "rope_scaling_factor is -8"),
        (14, 8, "rope_scaling_low_freq_factor is 0 and rope_scaling_high_freq_factor 0"),
        (18, 3, "rope_type is 0x3"),
        (19, 7, "head_dim is 7, but an even number"),
        (20, 7, r"norm_epsilon is 0x7, but one of 0x5 \(1e-05\), 0x6 \(1e-06\)"),
        (22, 1, "header key at byte 136 is 22, but only 0 to 21 are known"),
        (-1, 1, "header key at byte 136 is -1"),
    ],
)
def test_a_wrong_header_value_is_named(tmp_path: Path, model_bytes: bytes, key: int, value: int, message: str) -> None:
    _open_fails(tmp_path / "model.m", _set_key(model_bytes, key, value), message)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (1, "arch_type"),
        (2, "dim"),
        (3, "hidden_dim"),
        (4, "n_layers"),
        (5, "n_heads"),
        (6, "n_kv_heads"),
        (9, "vocab_size"),
        (10, "max_seq_len"),
        (13, "weights_float_type"),
    ],
)
def test_a_missing_header_key_is_named(tmp_path: Path, model_bytes: bytes, key: int, name: str) -> None:
    message = rf"the header has no {name} \(key {key}\)"
    _open_fails(tmp_path / "model.m", _drop_key(model_bytes, key), message)


def test_implausible_mixture_of_experts_is_named(tmp_path: Path, model_bytes: bytes) -> None:
    data = _set_key(model_bytes, 1, 0xABCD02)
    _open_fails(tmp_path / "model.m", data, "n_experts is 0, but 1 to")
    data = _set_key(_set_key(_set_key(data, 7, 4), 8, 5), 21, 32)
    _open_fails(tmp_path / "model.m", data, "n_active_experts is 5, but at most n_experts, 4")


@pytest.mark.parametrize("magic", [0xABCD00, 0xABCD01])
def test_an_old_format_is_named(tmp_path: Path, model_bytes: bytes, magic: int) -> None:
    _open_fails(tmp_path / "model.m", struct.pack("<I", magic) + model_bytes[4:], "old format")


def test_a_foreign_file_is_named(tmp_path: Path) -> None:
    _open_fails(tmp_path / "model.m", b"GGUF" + bytes(100), "is no .m file: it starts with 0x46554747")


@pytest.mark.parametrize("size", [0, 7, 9, 8 + 8 * 300, 2**32 - 8])
def test_a_wrong_header_size_is_named(tmp_path: Path, model_bytes: bytes, size: int) -> None:
    data = model_bytes[:4] + struct.pack("<I", size) + model_bytes[8:]
    _open_fails(tmp_path / "model.m", data, f"the header size at byte 4 is {size}")


def test_extra_bytes_are_counted(tmp_path: Path, model_bytes: bytes) -> None:
    _open_fails(tmp_path / "model.m", model_bytes + bytes(5), "5 bytes are too many")


def test_missing_bytes_are_counted(tmp_path: Path, model_bytes: bytes) -> None:
    _open_fails(tmp_path / "model.m", model_bytes[:-5], "5 bytes are missing")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_truncation_is_a_sentence(tmp_path: Path, model_bytes: bytes, data: st.DataObject) -> None:
    length = data.draw(st.one_of(st.integers(0, 200), st.integers(0, len(model_bytes) - 1)))
    _open_fails(tmp_path / "model.m", model_bytes[:length], "empty|bytes")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.integers(-2, 24), value=_ANY_I32)
def test_any_header_value_opens_or_is_a_sentence(tmp_path: Path, model_bytes: bytes, key: int, value: int) -> None:
    path = tmp_path / "model.m"
    path.write_bytes(_set_key(model_bytes, key, value))
    _opens_whole_or_fails(path)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 8 + 8 * _HEADER_PAIRS - 1), bits=st.integers(1, 255))
def test_any_flipped_header_byte_opens_or_is_a_sentence(
    tmp_path: Path, model_bytes: bytes, position: int, bits: int
) -> None:
    damaged = bytearray(model_bytes)
    damaged[position] ^= bits
    path = tmp_path / "model.m"
    path.write_bytes(damaged)
    _opens_whole_or_fails(path)
