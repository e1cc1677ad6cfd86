"""Random weights of a published shape, made while they are loaded: no file, and no more memory than a tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dllama_gpu.model.codecs import Bytes, quantize
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.m_format import tensor_layout
from dllama_gpu.model.source import TensorInfo
from dllama_gpu.model.spec import ModelSpec

_BLOCKS = 1 << 16  # that differ; they repeat


class RandomSource:
    """Implements `dllama_gpu.model.source.ModelSource`: Q40 in every matrix, norms of one."""

    def __init__(self, name: str, spec: ModelSpec) -> None:
        self.path = Path(name)
        self.spec = spec
        self.tensors: dict[str, TensorInfo] = {}
        for info in tensor_layout(spec):
            if info.name == "head" and spec.tied_embeddings:
                continue
            float_type = FloatType.Q40 if len(info.shape) == 2 else FloatType.F32
            self.tensors[info.name] = TensorInfo(info.name, info.shape, float_type)
        generator = np.random.default_rng(0)
        self._blocks = np.empty((_BLOCKS, FloatType.Q40.block_bytes), np.uint8)
        self._blocks[:, 2:] = np.frombuffer(generator.bytes(16 * _BLOCKS), np.uint8).reshape(_BLOCKS, 16)
        self._scales = generator.uniform(0.5, 1.5, _BLOCKS) * generator.choice([-1.0, 1.0], _BLOCKS)

    def read(self, name: str) -> Bytes:
        """Raw rows (n_rows, row_bytes), whose products keep the size of what they are multiplied with."""
        info = self.tensors[name]
        if len(info.shape) == 1:
            return quantize(np.ones((1, info.n_columns), np.float32), FloatType.F32)
        scales = self._scales * (info.n_columns**-0.5 / 4.64)  # root mean square of -8..7
        self._blocks[:, :2] = scales.astype("<f2").view(np.uint8).reshape(_BLOCKS, 2)
        return np.resize(self._blocks, (info.n_rows, info.row_bytes))

    def release(self, name: str) -> None:
        """Nothing is mapped."""

    def close(self) -> None:
        """Nothing is open."""
