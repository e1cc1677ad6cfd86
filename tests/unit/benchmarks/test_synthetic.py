"""Synthetic models: one set of weights, whatever the file format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.q40_gguf import write_q40_gguf
from benchmarks.synthetic import SHAPES, main, random_rows, write_gguf, write_m
from dllama_gpu.cpu.device import CpuDevice
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.architectures import build_graph
from dllama_gpu.graph.batch import Batch, Row
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.model.codecs import Bytes, dequantize
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.open import open_model
from dllama_gpu.model.source import TensorInfo
from dllama_gpu.tokenizer.open_tokenizer import open_tokenizer
from tests.support.models import small_spec

TIED = small_spec(vocab_size=288, tied_embeddings=True)
SPECS = {"tied head": TIED, "head of its own": replace(TIED, tied_embeddings=False)}


@pytest.fixture(params=SPECS.values(), ids=SPECS.keys())
def files(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    gguf_path, m_path = tmp_path / "model.gguf", tmp_path / "model.m"
    write_gguf(gguf_path, request.param)
    write_m(m_path, request.param)
    return gguf_path, m_path


def test_gguf_and_m_hold_the_same_blocks(files: tuple[Path, Path]) -> None:
    gguf_model, m_model = map(open_model, files)
    for name, info in m_model.tensors.items():
        tied = name == "head" and gguf_model.spec.tied_embeddings
        blocks = gguf_model.read("embedding" if tied else name)
        if name == "embedding":
            blocks = dequantize(blocks, FloatType.Q40).view(np.uint8)
        np.testing.assert_array_equal(m_model.read(name), blocks, err_msg=f"{name} {info}")


def test_every_matrix_of_the_gguf_is_q40(files: tuple[Path, Path]) -> None:
    for info in open_model(files[0]).tensors.values():
        assert info.float_type is (FloatType.Q40 if len(info.shape) == 2 else FloatType.F32)


def test_both_files_give_the_same_finite_logits(files: tuple[Path, Path]) -> None:
    gguf_logits, m_logits = map(_logits, files)
    assert np.isfinite(gguf_logits).all()
    assert 0.1 < gguf_logits.std() < 10
    np.testing.assert_allclose(m_logits, gguf_logits, rtol=1e-5, atol=1e-5)


def test_the_seed_alone_decides_the_weights(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.gguf", "b.gguf", "c.gguf")]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        write_gguf(path, TIED, seed)
    assert paths[0].read_bytes() == paths[1].read_bytes() != paths[2].read_bytes()


def test_pieces_of_a_large_tensor_differ() -> None:
    pieces = list(random_rows(TIED, TensorInfo("embedding", (3, 1 << 21), FloatType.Q40), 0))
    assert [len(piece) for piece in pieces] == [1, 1, 1]
    assert not np.array_equal(pieces[0], pieces[1])


def test_its_tokenizer_encodes_any_text(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", TIED)
    tokenizer = open_tokenizer(tmp_path / "model.gguf")
    text = "any text, ü and 字 too"
    ids = tokenizer.encode(text)
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == text
    assert tokenizer.vocab_size == TIED.vocab_size


def test_a_vocabulary_too_small_for_the_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DllamaError, match="vocab_size is 200, but a tokenizer needs at least 257"):
        write_gguf(tmp_path / "model.gguf", replace(TIED, vocab_size=200))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_not_finished_is_not_left_behind(tmp_path: Path) -> None:
    def failing_rows(info: TensorInfo) -> Iterator[Bytes]:
        yield from random_rows(TIED, info, 0)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        write_q40_gguf(tmp_path / "model.gguf", TIED, "unfinished", failing_rows)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_file_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DllamaError, match=r"must end in \.gguf or \.m"):
        main([next(iter(SHAPES)), str(tmp_path / "model.bin")])


def test_the_shapes_have_the_published_numbers_of_weights() -> None:
    # Hugging Face's model cards, in millions: a tied head is counted once.
    for name, millions in {"smollm2-135m": 134.5, "llama-3.2-1b": 1235.8, "llama-3.1-8b": 8030.3}.items():
        spec = SHAPES[name]
        attention = 2 * spec.dim * (spec.q_dim + spec.kv_dim)
        layer = attention + 3 * spec.dim * spec.hidden_dim + 2 * spec.dim
        ends = spec.vocab_size * spec.dim * (1 if spec.tied_embeddings else 2) + spec.dim
        assert (spec.n_layers * layer + ends) / 1e6 == pytest.approx(millions, abs=0.1)


def _logits(path: Path) -> npt.NDArray[np.float32]:
    source = open_model(path)
    graph = build_graph(source.spec, source.tensors, GraphOptions(seq_len=16, max_rows=8))
    program = CpuDevice(1).compile(graph, source)
    program.run(Batch.of([Row(token, 0, position, position == 4) for position, token in enumerate((5, 0, 287, 9, 31))]))
    logits: npt.NDArray[np.float32] = program.buffer("logits", 1)[0].copy()
    return logits
