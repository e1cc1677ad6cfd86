"""Writes a random model of any Llama shape: GGUF with Q4_0 in every matrix, or `.m` with the same blocks as Q40.

Speed depends on a model's shape and number format, not on what it learned, so a file of random blocks measures as
well as a download of the real one. Scales are those of a trained model (unit variance after every matrix, residual
branches damped by depth): activations stay finite and of usual size.

    python -m benchmarks.synthetic llama-3.2-1b model.gguf
    python -m benchmarks.synthetic llama-3.2-1b model.m
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from benchmarks.q40_gguf import write_q40_gguf
from dllama_gpu.errors import DllamaError
from dllama_gpu.model.codecs import Bytes, dequantize, quantize, row_chunks
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.m_file import MFileWriter
from dllama_gpu.model.source import TensorInfo
from dllama_gpu.model.spec import Architecture, ModelSpec
from launcher.guard import guarded

SHAPES: Mapping[str, ModelSpec] = MappingProxyType(
    {
        "smollm2-135m": ModelSpec(
            architecture=Architecture.LLAMA,
            dim=576,
            hidden_dim=1536,
            n_layers=30,
            n_heads=9,
            n_kv_heads=3,
            head_dim=64,
            vocab_size=49152,
            max_seq_len=8192,
            weight_type=FloatType.Q40,
            rope_theta=100000.0,
            tied_embeddings=True,
        ),
        "llama-3.2-1b": ModelSpec(
            architecture=Architecture.LLAMA,
            dim=2048,
            hidden_dim=8192,
            n_layers=16,
            n_heads=32,
            n_kv_heads=8,
            head_dim=64,
            vocab_size=128256,
            max_seq_len=131072,
            weight_type=FloatType.Q40,
            rope_theta=500000.0,
            tied_embeddings=True,
        ),
        "llama-3.2-3b": ModelSpec(
            architecture=Architecture.LLAMA,
            dim=3072,
            hidden_dim=8192,
            n_layers=28,
            n_heads=24,
            n_kv_heads=8,
            head_dim=128,
            vocab_size=128256,
            max_seq_len=131072,
            weight_type=FloatType.Q40,
            rope_theta=500000.0,
            tied_embeddings=True,
        ),
        "llama-3.1-8b": ModelSpec(
            architecture=Architecture.LLAMA,
            dim=4096,
            hidden_dim=14336,
            n_layers=32,
            n_heads=32,
            n_kv_heads=8,
            head_dim=128,
            vocab_size=128256,
            max_seq_len=131072,
            weight_type=FloatType.Q40,
            rope_theta=500000.0,
        ),
    }
)
"""Published shapes by name. The scaling of RoPE's frequencies, which costs nothing, is left out."""

_PIECE_ELEMENTS = 1 << 21  # weights made at once: a few MiB, whatever the size of the model
_NIBBLE_RMS = 4.64  # root mean square of -8..7, each as likely as the others


def write_gguf(path: Path, spec: ModelSpec, seed: int = 0) -> None:
    """Writes `path` as GGUF; the head is a tensor of its own unless `spec.tied_embeddings`.

    Raises DllamaError for a vocabulary too small for a tokenizer.
    """
    write_q40_gguf(path, spec, "random weights", lambda info: random_rows(spec, info, seed))


def write_m(path: Path, spec: ModelSpec, seed: int = 0) -> None:
    """Writes the same model as `.m`: the embedding as the F32 numbers that its blocks stand for, as the format wants.

    Raises DllamaError when the format cannot express `spec`.
    """
    with MFileWriter(path, spec) as writer:
        for name, info in writer.tensors.items():
            is_embedding = name == "embedding"
            tied = name == "head" and spec.tied_embeddings
            stored = TensorInfo(
                "embedding" if tied else name, info.shape, FloatType.Q40 if is_embedding else info.float_type
            )
            for rows in random_rows(spec, stored, seed):
                writer.write(name, quantize(dequantize(rows, FloatType.Q40), FloatType.F32) if is_embedding else rows)


def random_rows(spec: ModelSpec, info: TensorInfo, seed: int) -> Iterator[Bytes]:
    """One tensor's rows in pieces, uint8 [n, row_bytes]: Q40 for a matrix, F32 for a norm.

    They depend on the seed and the tensor's name and shape alone, so every file format gets the same.
    """
    rng = np.random.default_rng([seed, zlib.crc32(info.name.encode())])
    if len(info.shape) == 1:
        yield quantize(rng.normal(1.0, 0.1, (1, info.n_columns)).astype(np.float32), FloatType.F32)
        return
    deviation = info.n_columns**-0.5  # of the weights
    if info.name.endswith((".o", ".down")):
        deviation *= (2 * spec.n_layers) ** -0.5
    for rows in row_chunks(info.n_rows, info.n_columns, _PIECE_ELEMENTS):
        n_blocks = (rows.stop - rows.start) * info.n_columns // 32
        blocks = np.empty((n_blocks, FloatType.Q40.block_bytes), np.uint8)
        # Nibbles have the mean -0.5; scales of both signs, which real files have too, keep weights from sharing it.
        scales = rng.uniform(0.5, 1.5, n_blocks) * rng.choice([-1.0, 1.0], n_blocks) * (deviation / _NIBBLE_RMS)
        blocks[:, :2] = scales.astype("<f2").view(np.uint8).reshape(n_blocks, 2)
        blocks[:, 2:] = np.frombuffer(rng.bytes(16 * n_blocks), np.uint8).reshape(n_blocks, 16)
        yield blocks.reshape(rows.stop - rows.start, info.row_bytes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the file that the command line asks for and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.synthetic", description="Write a random model.")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("path", type=Path, help="the file to write, ending in .gguf or .m")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    writers = {".gguf": write_gguf, ".m": write_m}
    if options.path.suffix not in writers:
        raise DllamaError(f"{options.path} must end in .gguf or .m, which says what format to write")
    if options.seed < 0:
        raise DllamaError(f"--seed must be 0 or more, not {options.seed}")
    writers[options.path.suffix](options.path, SHAPES[options.shape], options.seed)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
