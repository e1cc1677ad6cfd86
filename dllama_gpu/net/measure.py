"""How fast a device really is: a moment of a small model with the device's own kernels."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.architectures import build_graph
from dllama_gpu.graph.batch import Batch, Device, Program, Row
from dllama_gpu.graph.options import GraphOptions
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.source import TensorInfo
from dllama_gpu.model.spec import Architecture, ModelSpec

_HEAD_DIM = 64
_DIM, _LEAST_DIM = 1024, 64
_OP_LAYERS = 8  # over which the cost of an op is taken
_VOCAB_SIZE = 1024
_LAYERS_BYTES = 48 << 20  # more than most caches hold, so that memory is measured as well
_WIDE_LAYER_BYTES = 192 << 20  # for devices that read that much in the time of the ops between
_MOST_ROWS = 64
_SECONDS = 0.15


@dataclass(frozen=True)
class NodeSpeed:
    """What a device reaches with weights of one type; the meaning is that of `graph.profile.NodeProfile`."""

    bytes_per_second: float
    flops_per_second: float
    op_seconds: float


def measure_speed(device: Device, weight_type: FloatType) -> NodeSpeed:
    """Runs models of zeros for about a second: many rows, one row, and ops with next to no weights.

    The difference between the last two is what the matmuls take. Where that is little, as on a large GPU, one layer
    that is much wider is measured too, if there is room for it.
    """
    layer_bytes = _layer_elements(_DIM) // weight_type.block_size * weight_type.block_bytes
    speed, share = _measured(device, weight_type, _DIM, max(1, _LAYERS_BYTES // layer_bytes))
    if share >= 0.5:
        return speed
    wide = 256 * int((_WIDE_LAYER_BYTES / layer_bytes) ** 0.5 * _DIM / 256)
    try:
        wide_speed, wide_share = _measured(device, weight_type, max(_DIM, wide), 1)
    except DllamaError:  # a GPU with little memory
        return speed
    return wide_speed if wide_share > share else speed


def _measured(device: Device, weight_type: FloatType, dim: int, n_layers: int) -> tuple[NodeSpeed, float]:
    """Also the share of one row's time that matmuls take. Many rows come first: they wake a GPU."""
    source = _ZeroSource(weight_type, dim, dim * 11 // 4, n_layers)
    graph = build_graph(source.spec, source.tensors, GraphOptions(max_rows=_MOST_ROWS, seq_len=_MOST_ROWS))
    program = device.compile(graph, source)
    many_rows, one_row = _best_seconds(program, _MOST_ROWS), _best_seconds(program, 1)
    empty = _ZeroSource(weight_type, _LEAST_DIM, _LEAST_DIM, max(n_layers, _OP_LAYERS))
    empty_graph = build_graph(empty.spec, empty.tensors, GraphOptions(max_rows=1, seq_len=_MOST_ROWS))
    op_seconds = _best_seconds(device.compile(empty_graph, empty), 1) / len(empty_graph.steps)
    for_ops = op_seconds * len(graph.steps)
    # What was disturbed must not make a device look many times as fast as it is.
    matmuls = [max(seconds - for_ops, seconds / 4) for seconds in (one_row, many_rows)]
    flops = 2.0 * _MOST_ROWS * _layer_elements(dim) * n_layers
    speed = NodeSpeed(graph.weight_bytes() / matmuls[0], flops / matmuls[1], op_seconds)
    return speed, (one_row - for_ops) / one_row


def _layer_elements(dim: int) -> int:
    return 4 * dim * dim + 3 * dim * (dim * 11 // 4)


def _best_seconds(program: Program, n_rows: int) -> float:
    """The least time of the steps of about `_SECONDS`; others were disturbed."""
    batch = Batch.of([Row(0, 0, position, position == n_rows - 1) for position in range(n_rows)])
    program.run(batch)
    best, started = math.inf, time.perf_counter()
    while True:
        begin = time.perf_counter()
        program.run(batch)
        now = time.perf_counter()
        best = min(best, now - begin)
        if now - started >= _SECONDS:
            return best


class _ZeroSource:
    """A model whose weights are all zero: kernels take the same time for every number."""

    path = Path("measurement")

    def __init__(self, weight_type: FloatType, dim: int, hidden_dim: int, n_layers: int) -> None:
        self.spec = ModelSpec(
            architecture=Architecture.LLAMA,
            dim=dim,
            hidden_dim=hidden_dim,
            n_layers=n_layers,
            n_heads=dim // _HEAD_DIM,
            n_kv_heads=dim // _HEAD_DIM,
            head_dim=_HEAD_DIM,
            vocab_size=_VOCAB_SIZE,
            max_seq_len=_MOST_ROWS,
            weight_type=weight_type,
            tied_embeddings=True,
        )
        shapes: dict[str, tuple[int, ...]] = {"embedding": (_VOCAB_SIZE, dim), "final_norm": (dim,)}
        for layer in range(n_layers):
            for name in ("q", "k", "v", "o"):
                shapes[f"layers.{layer}.{name}"] = (dim, dim)
            for name, shape in (
                ("gate", (hidden_dim, dim)),
                ("up", (hidden_dim, dim)),
                ("down", (dim, hidden_dim)),
            ):
                shapes[f"layers.{layer}.{name}"] = shape
            for name in ("attention_norm", "ffn_norm"):
                shapes[f"layers.{layer}.{name}"] = (dim,)
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(name, shape, weight_type if len(shape) == 2 else FloatType.F32)
            for name, shape in shapes.items()
        }

    def read(self, name: str) -> npt.NDArray[np.uint8]:
        info = self.tensors[name]
        return np.zeros((info.n_rows, info.row_bytes), np.uint8)

    def release(self, name: str) -> None:
        """Nothing is mapped."""

    def close(self) -> None:
        """Nothing is open."""
