"""Types of the native module; see native/bindings.cpp."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

class WeightType:
    F32: WeightType
    F16: WeightType
    BF16: WeightType
    Q40: WeightType
    Q41: WeightType
    Q80: WeightType

class CacheType:
    F16: CacheType
    Q80: CacheType
    F32: CacheType

class ThreadPool:
    def __init__(self, n_threads: int, pin: bool) -> None: ...
    @property
    def n_threads(self) -> int: ...

class PackedWeight:
    def __init__(
        self, data: npt.NDArray[np.uint8], type: WeightType, n_rows: int, n_columns: int, between: int = 0
    ) -> None: ...

class PackedExperts:
    def __init__(
        self, data: npt.NDArray[np.uint8], type: WeightType, n_experts: int, n_rows: int, n_columns: int
    ) -> None: ...

class RowSource:
    def __init__(
        self, rows: npt.NDArray[np.uint8] | PackedWeight, type: WeightType = ..., n_columns: int = ...
    ) -> None: ...

class ActivationBuffer:
    @property
    def width(self) -> int: ...

class KvCache:
    def __init__(
        self,
        keys: npt.NDArray[np.uint8],
        values: npt.NDArray[np.uint8],
        type: CacheType,
        n_slots: int,
        n_kv_heads: int,
        seq_len: int,
        head_dim: int,
    ) -> None: ...

class AttentionWork:
    def __init__(self, max_rows: int, n_heads: int, padded_head_dim: int, seq_len: int) -> None: ...

class ExpertWork:
    def __init__(self, max_rows: int, k: int, first_expert: int, n_experts: int) -> None: ...

class Step: ...

class Program:
    def __init__(
        self,
        pool: ThreadPool,
        kernels: str,
        max_rows: int,
        max_logit_rows: int,
        vocab_size: int,
        n_slots: int,
        seq_len: int,
    ) -> None: ...
    def step(
        self,
        tokens: npt.NDArray[np.int32],
        slots: npt.NDArray[np.int32],
        positions: npt.NDArray[np.int32],
        logit_rows: npt.NDArray[np.int32],
        temperatures: npt.NDArray[np.float32],
    ) -> Step: ...
    def add_embed(self, weight: RowSource, out: ActivationBuffer, scale: float) -> None: ...
    def add_rope_angles(self, frequencies: Sequence[float], out: ActivationBuffer, scale: float) -> None: ...
    def add_rms_norm(
        self,
        x: ActivationBuffer,
        add: ActivationBuffer | None,
        weight: npt.NDArray[np.float32],
        out: ActivationBuffer,
        epsilon: float,
    ) -> None: ...
    def add_matmul(self, x: ActivationBuffer, weight: PackedWeight, out: ActivationBuffer, out_column: int) -> None: ...
    def add_gated_matmul(
        self, x: ActivationBuffer, gate: PackedWeight, up: PackedWeight, out: ActivationBuffer, gelu: bool
    ) -> None: ...
    def add_rope_store(
        self,
        qkv: ActivationBuffer,
        angles: ActivationBuffer | None,
        cache: KvCache,
        n_heads: int,
        half_split: bool,
        biases: Sequence[npt.NDArray[np.float32]],
        norms: Sequence[npt.NDArray[np.float32]],
        epsilon: float,
    ) -> None: ...
    def add_attention(
        self,
        qkv: ActivationBuffer,
        cache: KvCache,
        out: ActivationBuffer,
        n_heads: int,
        group: int,
        first_head: int,
        window: int,
        scale: float,
        work: AttentionWork,
    ) -> None: ...
    def add_top_experts(
        self, logits: ActivationBuffer, ids: ActivationBuffer, weights: ActivationBuffer, normalize: bool
    ) -> None: ...
    def add_expert_sort(self, ids: ActivationBuffer, work: ExpertWork) -> None: ...
    def add_expert_gated_matmul(
        self,
        x: ActivationBuffer,
        gate: PackedExperts,
        up: PackedExperts,
        out: ActivationBuffer,
        gelu: bool,
        work: ExpertWork,
    ) -> None: ...
    def add_expert_matmul(
        self,
        x: ActivationBuffer,
        weights: ActivationBuffer,
        down: PackedExperts,
        out: ActivationBuffer,
        work: ExpertWork,
    ) -> None: ...
    def add_top_candidates(
        self,
        logits: ActivationBuffer,
        values: ActivationBuffer,
        ids: ActivationBuffer,
        log_sum_exp: ActivationBuffer,
        first_id: int,
        x: ActivationBuffer | None = None,
        head: PackedWeight | None = None,
    ) -> None: ...
    @property
    def n_ops(self) -> int: ...
    def streams_weights(self, op: int) -> bool: ...
    def run(self, step: Step, begin: int, end: int) -> None: ...
    def run_timed(self, step: Step, begin: int, end: int, seconds: npt.NDArray[np.float64]) -> None: ...

def kernel_names() -> list[str]: ...
def cpu_features() -> list[str]: ...
def explain_bus_error(sentence: str) -> None: ...
def read_rate(pool: ThreadPool, words: npt.NDArray[np.uint64]) -> float: ...
def q80_bytes(rows: int, width: int) -> int: ...
def packed_bytes(type: WeightType, n_rows: int, n_columns: int) -> int: ...
def kv_cache_bytes(type: CacheType, n_slots: int, n_kv_heads: int, seq_len: int, head_dim: int) -> int: ...
def pack(
    pool: ThreadPool,
    data: npt.NDArray[np.uint8],
    type: WeightType,
    n_rows: int,
    n_columns: int,
    source: npt.NDArray[np.uint8],
    first_row: int,
    between: int = 0,
) -> int: ...
def f32_buffer(array: npt.NDArray[np.float32], logit_rows_only: bool) -> ActivationBuffer: ...
def i32_buffer(array: npt.NDArray[np.int32], logit_rows_only: bool) -> ActivationBuffer: ...
def q80_buffer(array: npt.NDArray[np.uint8], max_rows: int, width: int, logit_rows_only: bool) -> ActivationBuffer: ...
def read_q80(buffer: ActivationBuffer, n_rows: int) -> npt.NDArray[Any]: ...
