"""How fast a device really is: a moment of a small model with the device's own kernels."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dllama_gpu.graph.batch import Batch, Device, Row
from dllama_gpu.graph.llama import GraphOptions, build_llama
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.source import TensorInfo
from dllama_gpu.model.spec import Architecture, ModelSpec

_DIM = 1024
_HIDDEN_DIM = 2816
_HEAD_DIM = 64
_VOCAB_SIZE = 1024
_LAYER_ELEMENTS = 4 * _DIM * _DIM + 3 * _DIM * _HIDDEN_DIM
_WEIGHT_BYTES = 48 << 20  # more than most caches hold, so that memory is measured as well


def measure_speed(device: Device, weight_type: FloatType, seconds: float = 0.15) -> float:
    """Bytes of weights of `weight_type` that the device reads per second while it decodes, one row a step.

    The best step of about `seconds` counts: others were disturbed.
    """
    layer_bytes = _LAYER_ELEMENTS // weight_type.block_size * weight_type.block_bytes
    source = _ZeroSource(weight_type, n_layers=max(1, _WEIGHT_BYTES // layer_bytes))
    graph = build_llama(source.spec, source.tensors, GraphOptions(max_rows=1, seq_len=32))
    program = device.compile(graph, source)
    batch = Batch.of([Row(0, 0, 0, wants_logits=True)])
    program.run(batch)
    best, started = float("inf"), time.perf_counter()
    while True:
        begin = time.perf_counter()
        program.run(batch)
        now = time.perf_counter()
        best = min(best, now - begin)
        if now - started >= seconds:
            return graph.weight_bytes() / best


class _ZeroSource:
    """A model whose weights are all zero: kernels take the same time for every number."""

    path = Path("measurement")

    def __init__(self, weight_type: FloatType, n_layers: int) -> None:
        self.spec = ModelSpec(
            architecture=Architecture.LLAMA,
            dim=_DIM,
            hidden_dim=_HIDDEN_DIM,
            n_layers=n_layers,
            n_heads=_DIM // _HEAD_DIM,
            n_kv_heads=_DIM // _HEAD_DIM,
            head_dim=_HEAD_DIM,
            vocab_size=_VOCAB_SIZE,
            max_seq_len=32,
            weight_type=weight_type,
            tied_embeddings=True,
        )
        shapes: dict[str, tuple[int, ...]] = {"embedding": (_VOCAB_SIZE, _DIM), "final_norm": (_DIM,)}
        for layer in range(n_layers):
            for name in ("q", "k", "v", "o"):
                shapes[f"layers.{layer}.{name}"] = (_DIM, _DIM)
            for name, shape in (
                ("gate", (_HIDDEN_DIM, _DIM)),
                ("up", (_HIDDEN_DIM, _DIM)),
                ("down", (_DIM, _HIDDEN_DIM)),
            ):
                shapes[f"layers.{layer}.{name}"] = shape
            for name in ("attention_norm", "ffn_norm"):
                shapes[f"layers.{layer}.{name}"] = (_DIM,)
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
