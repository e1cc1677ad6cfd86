"""`.m` files: what the writer writes, seen by a second reader made from the format's tables, and reading it back."""

from __future__ import annotations

import contextlib
import errno
import io
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dllama_gpu.errors import DllamaError
from dllama_gpu.model.codecs import dequantize, quantize
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.m_file import MFile, MFileWriter
from dllama_gpu.model.spec import Architecture, ModelSpec, RopeScaling, RopeStyle
from tests.support.models import random_tensors, small_spec, write_random_m

LLAMA = small_spec(dim=64, hidden_dim=96, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=40, max_seq_len=128)
LLAMA31 = replace(LLAMA, rope_theta=500000.0, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192))
HALF_SPLIT = replace(LLAMA, rope_style=RopeStyle.HALF_SPLIT)
QWEN3 = replace(LLAMA, architecture=Architecture.QWEN3, rope_style=RopeStyle.HALF_SPLIT, head_dim=32, norm_epsilon=1e-6)
QWEN3_MOE = replace(
    QWEN3, architecture=Architecture.QWEN3_MOE, n_experts=3, n_active_experts=2, moe_hidden_dim=32, hidden_dim=50
)
SPECS = {
    "llama": LLAMA,
    "llama 3.1": LLAMA31,
    "llama, half split": HALF_SPLIT,
    "qwen3": QWEN3,
    "qwen3 moe": QWEN3_MOE,
}


def _write(path: Path, spec: ModelSpec) -> None:
    with MFileWriter(path, spec) as writer:
        for name, values in random_tensors(spec, seed=7):
            writer.write(name, quantize(values, writer.tensors[name].float_type))


def _expected_pairs(spec: ModelSpec) -> list[tuple[int, int]]:
    """The header in the order of the original's converter for Hugging Face models, keys as numbers."""
    architecture = {Architecture.LLAMA: 0xABCD00, Architecture.QWEN3: 0xABCD01, Architecture.QWEN3_MOE: 0xABCD02}
    weights = {FloatType.F32: 0, FloatType.F16: 1, FloatType.Q40: 2, FloatType.Q80: 3}
    pairs = [(0, 0), (1, architecture[spec.architecture]), (11, 1), (2, spec.dim), (3, spec.hidden_dim)]
    pairs += [(4, spec.n_layers), (5, spec.n_heads), (6, spec.n_kv_heads), (13, weights[spec.weight_type])]
    pairs += [(10, spec.max_seq_len), (9, spec.vocab_size), (7, spec.n_experts), (8, spec.n_active_experts)]
    pairs += [(12, int(spec.rope_theta))]
    if spec.rope_scaling:
        pairs += [(14, 8), (15, 1), (16, 4), (17, 8192), (18, 2)]
    elif spec.architecture is Architecture.LLAMA and spec.rope_style is RopeStyle.HALF_SPLIT:
        pairs += [(18, 1)]
    pairs += [(19, spec.head_dim), (20, {1e-5: 5, 1e-6: 6}[spec.norm_epsilon])]
    if spec.moe_hidden_dim:
        pairs += [(21, spec.moe_hidden_dim)]
    return pairs


def _expected_order(spec: ModelSpec) -> list[tuple[str, int, bool]]:
    """(name, number of elements, whether always F32) in the order of the format's table."""
    d, q, kv = spec.dim, spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    order = [("embedding", spec.vocab_size * d, True)]
    for layer in range(spec.n_layers):
        part: list[tuple[str, int, bool]] = [("q", q * d, False), ("k", kv * d, False), ("v", kv * d, False)]
        part += [("o", d * q, False)]
        if spec.n_experts:
            part += [("router", spec.n_experts * d, True)]
            for expert in range(spec.n_experts):
                part += [(f"experts.{expert}.{w}", spec.moe_hidden_dim * d, False) for w in ("gate", "down", "up")]
        else:
            part += [(w, spec.hidden_dim * d, False) for w in ("gate", "down", "up")]
        if spec.architecture is not Architecture.LLAMA:
            part += [("q_norm", spec.head_dim, True), ("k_norm", spec.head_dim, True)]
        part += [("attention_norm", d, True), ("ffn_norm", d, True)]
        order += [(f"layers.{layer}.{name}", size, is_f32) for name, size, is_f32 in part]
    return [*order, ("final_norm", d, True), ("head", spec.vocab_size * d, False)]


@pytest.mark.parametrize("weight_type", [FloatType.F32, FloatType.F16, FloatType.Q40, FloatType.Q80])
@pytest.mark.parametrize("name", SPECS)
def test_writer_follows_the_format_byte_for_byte(tmp_path: Path, name: str, weight_type: FloatType) -> None:
    spec = replace(SPECS[name], weight_type=weight_type)
    path = tmp_path / "model.m"
    _write(path, spec)
    data = path.read_bytes()

    magic, header_size = struct.unpack_from("<II", data)
    pairs = list(struct.iter_unpack("<ii", data[8:header_size]))
    assert (magic, header_size) == (0x0A00ABCD, 8 + 8 * len(pairs))
    assert pairs == _expected_pairs(spec)

    values = dict(random_tensors(spec, seed=7))
    bits = {FloatType.F32: 32, FloatType.F16: 16, FloatType.Q40: 4.5, FloatType.Q80: 8.5}[weight_type]
    position = header_size
    for tensor, n_elements, is_f32 in _expected_order(spec):
        n_bytes = n_elements * 4 if is_f32 else int(n_elements * bits / 8)
        stored = data[position : position + n_bytes]
        if is_f32:
            assert stored == values[tensor].astype("<f4").tobytes(), tensor
        else:
            assert stored == quantize(values[tensor], weight_type).tobytes(), tensor
        position += n_bytes
    assert position == len(data)


@pytest.mark.parametrize("name", SPECS)
def test_reader_gives_back_what_was_written(tmp_path: Path, name: str) -> None:
    spec = SPECS[name]
    path = tmp_path / "model.m"
    _write(path, spec)
    model = MFile(path)
    assert model.path == path
    assert model.spec == spec
    assert list(model.tensors) == [tensor for tensor, _, _ in _expected_order(spec)]
    for tensor, values in random_tensors(spec, seed=7):
        info = model.tensors[tensor]
        raw = model.read(tensor)
        assert raw.shape == (info.n_rows, info.row_bytes)
        expected = dequantize(quantize(values, info.float_type), info.float_type)
        assert np.array_equal(dequantize(raw, info.float_type), expected)
        del raw
    model.close()


def test_reads_are_views_that_survive_release(tmp_path: Path) -> None:
    path = tmp_path / "model.m"
    _write(path, LLAMA)
    model = MFile(path)
    raw = model.read("layers.1.down")
    assert not raw.flags.owndata
    assert not raw.flags.writeable
    before = raw.copy()
    for name in model.tensors:
        model.release(name)
    assert np.array_equal(raw, before)


def test_closing_while_an_array_is_alive_is_harmless(tmp_path: Path) -> None:
    path = tmp_path / "model.m"
    _write(path, LLAMA)
    model = MFile(path)
    raw = model.read("head")
    before = raw.copy()
    model.close()
    model.close()
    assert np.array_equal(raw, before)
    with pytest.raises(ValueError, match="is closed"):
        model.read("head")


def test_head_is_stored_for_a_spec_with_tied_embeddings(tmp_path: Path) -> None:
    path = tmp_path / "model.m"
    _write(path, replace(LLAMA, tied_embeddings=True))
    assert MFile(path).spec == LLAMA


def test_absent_keys_have_the_defaults_of_the_format(tmp_path: Path) -> None:
    path = tmp_path / "model.m"
    _write(path, LLAMA)
    data = path.read_bytes()
    header_size = struct.unpack_from("<I", data, 4)[0]
    optional = {0, 7, 8, 11, 12, 18, 19, 20}
    kept = [pair for pair in struct.iter_unpack("<ii", data[8:header_size]) if pair[0] not in optional]
    header = b"".join(struct.pack("<ii", *pair) for pair in kept)
    path.write_bytes(struct.pack("<II", 0x0A00ABCD, 8 + len(header)) + header + data[header_size:])
    assert MFile(path).spec == LLAMA


def test_the_last_of_two_equal_keys_wins(tmp_path: Path) -> None:
    path = tmp_path / "model.m"
    _write(path, LLAMA)
    data = path.read_bytes()
    size = struct.unpack_from("<I", data, 4)[0]
    extended = data[:4] + struct.pack("<I", size + 8) + data[8:size] + struct.pack("<ii", 10, 77) + data[size:]
    path.write_bytes(extended)
    assert MFile(path).spec == replace(LLAMA, max_seq_len=77)


def test_scaling_numbers_decide_for_llama_whatever_the_rope_type(tmp_path: Path) -> None:
    path = tmp_path / "model.m"
    _write(path, LLAMA31)
    path.write_bytes(path.read_bytes().replace(struct.pack("<ii", 18, 2), struct.pack("<ii", 18, 0)))
    assert MFile(path).spec == LLAMA31


def test_qwen_rotates_halves_whatever_the_rope_type(tmp_path: Path) -> None:
    path = tmp_path / "model.m"
    _write(path, QWEN3)
    data = path.read_bytes()
    size = struct.unpack_from("<I", data, 4)[0]
    path.write_bytes(data[:4] + struct.pack("<I", size + 8) + data[8:size] + struct.pack("<ii", 18, 0) + data[size:])
    assert MFile(path).spec.rope_style is RopeStyle.HALF_SPLIT


def test_a_tensor_may_come_in_pieces(tmp_path: Path) -> None:
    whole, pieces = tmp_path / "whole.m", tmp_path / "pieces.m"
    _write(whole, LLAMA)
    with MFileWriter(pieces, LLAMA) as writer:
        for name, values in random_tensors(LLAMA, seed=7):
            raw = quantize(values, writer.tensors[name].float_type)
            for start in range(0, len(raw), 7):
                writer.write(name, raw[start : start + 7])
    assert whole.read_bytes() == pieces.read_bytes()


def test_writer_leaves_no_file_behind_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "model.m"
    path.write_text("what was there before")
    with pytest.raises(DllamaError, match=r"tensor layers\.0\.q is missing"), MFileWriter(path, LLAMA) as writer:
        writer.write("embedding", np.zeros((40, 256), dtype=np.uint8))
    with contextlib.suppress(KeyboardInterrupt), MFileWriter(path, LLAMA) as writer:
        writer.write("embedding", np.zeros((40, 256), dtype=np.uint8))
        raise KeyboardInterrupt
    assert [file.name for file in tmp_path.iterdir()] == ["model.m"]
    assert path.read_text() == "what was there before"


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("head", np.zeros((40, 256), np.uint8), "tensor head was given, but embedding is next"),
        ("embedding", np.zeros((41, 256), np.uint8), r"given as uint8 \[41, 256\], but at most 40 rows"),
        ("embedding", np.zeros((40, 255), np.uint8), r"rows of uint8 \[256\] \(f32\) are wanted"),
        ("embedding", np.zeros((40, 256), np.float32), "given as float32"),
        ("embedding", np.zeros(256, np.uint8), r"given as uint8 \[256\]"),
    ],
)
def test_writer_refuses_what_does_not_fit(tmp_path: Path, name: str, rows: np.ndarray, message: str) -> None:
    with pytest.raises(DllamaError, match=message), MFileWriter(tmp_path / "model.m", LLAMA) as writer:
        writer.write(name, rows)
    assert not list(tmp_path.iterdir())


def test_writer_refuses_a_tensor_after_the_last(tmp_path: Path) -> None:
    with MFileWriter(tmp_path / "model.m", LLAMA) as writer:
        for name, values in random_tensors(LLAMA, seed=7):
            writer.write(name, quantize(values, writer.tensors[name].float_type))
        with pytest.raises(DllamaError, match="all tensors are already written"):
            writer.write("head", np.zeros((1, 36), np.uint8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_epsilon": 1e-4}, "stores no norm epsilon of 0.0001, only 1e-05, 1e-06"),
        ({"rope_theta": 10000.5}, "stores rope_theta as a 32-bit integer, which 10000.5 is not"),
        ({"rope_theta": 1e10}, "stores rope_theta as a 32-bit integer"),
        ({"weight_type": FloatType.Q41}, "stores no weight type of q41, only f32, f16, q40, q80"),
        ({"rope_scaling": RopeScaling(2.5, 1.0, 4.0, 8192)}, "rope_scaling_factor as a 32-bit integer"),
        ({"dim": 48}, "dim is 48, but a multiple of 32"),
        ({"n_layers": 0}, "n_layers is 0"),
    ],
)
def test_writer_refuses_a_spec_that_the_format_cannot_hold(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(DllamaError, match=message):
        MFileWriter(tmp_path / "model.m", replace(LLAMA, **change))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


class _FullDisk(io.BytesIO):
    def write(self, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_writer_reports_a_full_disk_and_removes_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_the_disk() -> None:
        with MFileWriter(tmp_path / "model.m", LLAMA) as writer:
            writer._file.close()
            monkeypatch.setattr(writer, "_file", _FullDisk())
            writer.write("embedding", np.zeros((40, 256), np.uint8))

    with pytest.raises(DllamaError, match=r"the disk became full while .*[/\\]model\.m was written; free some"):
        fill_the_disk()
    assert not list(tmp_path.iterdir())


def test_writer_names_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DllamaError, match="cannot be created"):
        MFileWriter(tmp_path / "nowhere" / "model.m", LLAMA)


def test_random_model_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    files = []
    for number, seed in enumerate((1, 1, 2)):
        path = tmp_path / f"{number}.m"
        write_random_m(
            path, dim=32, hidden_dim=32, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=10, max_seq_len=8,
            weight_type=FloatType.Q40, seed=seed,
        )  # fmt: skip
        files.append(path.read_bytes())
    assert files[0] == files[1] != files[2]
