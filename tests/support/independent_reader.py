"""Readers of `.m` and `.t` files that share nothing with the package: written from the tables of the formats alone.

Every byte is accounted for, or ValueError is raised. Numbers are decoded one block at a time, slowly and plainly.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MODEL_MAGIC, TOKENIZER_MAGIC = 0x0A00ABCD, 0x567124
LLAMA, QWEN3, QWEN3_MOE = 0xABCD00, 0xABCD01, 0xABCD02
(
    VERSION, ARCH, DIM, HIDDEN_DIM, N_LAYERS, N_HEADS, N_KV_HEADS, N_EXPERTS, N_ACTIVE, VOCAB, SEQ_LEN, ACT, THETA,
    WEIGHTS, SCALING, LOW, HIGH, ORIGINAL, ROPE_TYPE, HEAD_DIM, EPSILON, MOE_HIDDEN_DIM,
) = range(22)  # fmt: skip
F32, F16, Q40, Q80 = range(4)


@dataclass
class ModelFile:
    """Header pairs in file order, and float32 tensors by their place in the file."""

    pairs: list[tuple[int, int]]
    tensors: dict[str, npt.NDArray[np.float32]]

    @property
    def header(self) -> dict[int, int]:
        return dict(self.pairs)


def read_model(data: bytes) -> ModelFile:
    magic, header_size = struct.unpack_from("<II", data)
    if magic != MODEL_MAGIC or header_size % 8:
        raise ValueError("header")
    pairs = [struct.unpack_from("<ii", data, at) for at in range(8, header_size, 8)]
    h = {THETA: 10000, SCALING: 1, ROPE_TYPE: 0, EPSILON: 5, N_EXPERTS: 0, **dict(pairs)}
    if set(h) - set(range(22)) or h[ARCH] not in (LLAMA, QWEN3, QWEN3_MOE) or h[EPSILON] not in (5, 6):
        raise ValueError("keys")
    head_dim = h.get(HEAD_DIM, h[DIM] // h[N_HEADS])
    q_dim, kv_dim = head_dim * h[N_HEADS], head_dim * h[N_KV_HEADS]
    ff = h[MOE_HIDDEN_DIM] if h[ARCH] == QWEN3_MOE else h[HIDDEN_DIM]
    position = header_size
    tensors: dict[str, npt.NDArray[np.float32]] = {}

    def take(name: str, n_rows: int, n_columns: int, kind: int) -> None:
        nonlocal position
        values, position = _decode(data, position, n_rows * n_columns, kind)
        tensors[name] = values.reshape(n_rows, n_columns)

    take("embedding", h[VOCAB], h[DIM], F32)
    for layer in range(h[N_LAYERS]):
        prefix = f"{layer}."
        take(prefix + "q", q_dim, h[DIM], h[WEIGHTS])
        take(prefix + "k", kv_dim, h[DIM], h[WEIGHTS])
        take(prefix + "v", kv_dim, h[DIM], h[WEIGHTS])
        take(prefix + "o", h[DIM], q_dim, h[WEIGHTS])
        groups = [prefix]
        if h[ARCH] == QWEN3_MOE:
            take(prefix + "router", h[N_EXPERTS], h[DIM], F32)
            groups = [f"{prefix}{expert}." for expert in range(h[N_EXPERTS])]
        for group in groups:
            take(group + "w1", ff, h[DIM], h[WEIGHTS])
            take(group + "w2", h[DIM], ff, h[WEIGHTS])
            take(group + "w3", ff, h[DIM], h[WEIGHTS])
        if h[ARCH] != LLAMA:
            take(prefix + "q_norm", 1, head_dim, F32)
            take(prefix + "k_norm", 1, head_dim, F32)
        take(prefix + "norm0", 1, h[DIM], F32)
        take(prefix + "norm1", 1, h[DIM], F32)
    take("final_norm", 1, h[DIM], F32)
    take("head", h[VOCAB], h[DIM], h[WEIGHTS])
    if position != len(data):
        raise ValueError(f"{len(data) - position} bytes too many")
    return ModelFile(pairs, tensors)


def _decode(data: bytes, position: int, count: int, kind: int) -> tuple[npt.NDArray[np.float32], int]:
    if kind == F32:
        values = np.array(struct.unpack_from(f"<{count}f", data, position), np.float32)
        return values, position + 4 * count
    if kind == F16:
        values = np.array(struct.unpack_from(f"<{count}e", data, position), np.float32)
        return values, position + 2 * count
    found: list[float] = []
    for _ in range(count // 32):
        (scale,) = struct.unpack_from("<e", data, position)
        if kind == Q40:
            nibbles = data[position + 2 : position + 18]
            found += [((byte & 15) - 8) * scale for byte in nibbles]
            found += [((byte >> 4) - 8) * scale for byte in nibbles]
            position += 18
        else:
            found += [quant * scale for quant in struct.unpack_from("<32b", data, position + 2)]
            position += 34
    return np.array(found, np.float32), position


@dataclass
class TokenizerContents:
    """What a `.t` file says."""

    header: dict[int, int]
    template: str | None
    eos_ids: list[int]
    tokens: list[bytes]
    scores: list[float]


def read_tokenizer(data: bytes) -> TokenizerContents:
    magic, header_size = struct.unpack_from("<II", data)
    if magic != TOKENIZER_MAGIC:
        raise ValueError("magic")
    header = dict(struct.unpack_from("<ii", data, at) for at in range(8, header_size, 8))
    if header[0] != 1 or set(header) - {0, 1, 2, 3, 7, 9, 10}:
        raise ValueError("keys")
    position = header_size
    template = None
    if header.get(7, 0) > 0:
        template = data[position : position + header[7]].decode()
        position += header[7]
    eos_ids = list(struct.unpack_from(f"<{header[9]}i", data, position))
    position += 4 * header[9]
    tokens, scores = [], []
    for _ in range(header[1]):
        score, length = struct.unpack_from("<fI", data, position)
        tokens.append(data[position + 8 : position + 8 + length])
        scores.append(score)
        if not 1 <= length <= header[2] or len(tokens[-1]) != length:
            raise ValueError("token")
        position += 8 + length
    if position != len(data) or max(map(len, tokens)) != header[2]:
        raise ValueError("end")
    return TokenizerContents(header, template, eos_ids, tokens, scores)
