"""Whether a device computes what a trusted one does: every kind of op on random data, in a second or two.

Drivers of GPUs have bugs that no error tells of. Each case is a small graph that ends in the op; what it leaves in
its buffers is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.batch import Batch, Device, Row
from dllama_gpu.graph.graph import (
    Activation,
    Attention,
    Buffer,
    BufferType,
    CacheType,
    Embed,
    ExpertGatedMatmul,
    ExpertMatmul,
    GatedMatmul,
    Graph,
    KvCache,
    Matmul,
    RmsNorm,
    RopeAngles,
    RopeStore,
    Rows,
    Step,
    TensorSlice,
    TopCandidates,
    TopExperts,
    Weight,
)
from dllama_gpu.model.codecs import quantize
from dllama_gpu.model.float_type import FloatType
from dllama_gpu.model.source import TensorInfo
from dllama_gpu.model.spec import Architecture, ModelSpec, RopeStyle

_DIM, _HIDDEN, _VOCAB = 160, 96, 333  # no powers of two
_HEADS, _KV_HEADS, _HEAD_DIM = 6, 3, 32
_SEQ_LEN, _MAX_ROWS = 96, 40
_LONG, _LONG_ROW_COUNTS = 1024, (*[_MAX_ROWS] * 7, 2)
"""Enough for graphics cards to cut a row's positions into parts."""
_FEW, _WIDTH = 12, 16384
_MANY, _MANY_ROWS = (1240, 2104, 4168, 8200), 200
"""Enough for graphics cards to take tiles of every size."""
CUT_BYTES = 20000
"""What the device that `cut_cases` are for sees of a buffer."""
_EXACT, _ROUNDED = 2e-3, 3e-2
"""Tolerances, of the largest value: a row that is rounded to Q80 may round the other way."""


_ROW_COUNTS = (1, 5, _MAX_ROWS)


@dataclass(frozen=True)
class Case:
    """A graph and the buffers that hold its result. `is_rounded`: whether something is rounded to Q80 on the way."""

    name: str
    graph: Graph
    results: tuple[str, ...]
    is_rounded: bool = False
    row_counts: tuple[int, ...] = _ROW_COUNTS
    """Of the steps."""
    grows: bool = False
    """Whether each step continues the one before it; row counts are even then."""


@dataclass(frozen=True)
class Failure:
    """A case that came out differently, and how. `error`: what was raised in place of a result."""

    case: str
    what: str
    error: DllamaError | None = None


def compare_devices(
    device: Device, trusted: Device, cases: Callable[[RandomSource], Iterator[Case]] | None = None
) -> list[Failure]:
    """The cases (None: all that suit any device) in which the devices disagree; an error of `device` is a failure too.

    Raises DllamaError when the trusted device itself fails.
    """
    failures = []
    source = RandomSource()
    for case in (cases or usual_cases)(source):
        wanted = _results(trusted, case, source)
        try:
            found = _results(device, case, source)
        except DllamaError as error:
            failures.append(Failure(case.name, str(error), error))
            continue
        tolerance = _ROUNDED if case.is_rounded else _EXACT
        for n_rows, ours, theirs in zip(case.row_counts, found, wanted, strict=True):
            difference = _difference(ours, theirs)
            if not difference <= tolerance:  # not a number is no less either
                failures.append(Failure(case.name, f"{n_rows} rows differ by {difference:.2g} of their largest value"))
                break
    return failures


def usual_cases(source: RandomSource) -> Iterator[Case]:
    """All kinds of ops; weights are added to `source`."""
    embedding = source.add("embedding", _VOCAB, _DIM, FloatType.F32)
    norm = source.add("norm", 1, _DIM, FloatType.F32)
    x, normed = Buffer("x", _DIM), Buffer("normed", _DIM)
    start = Embed("embedding", "x")
    for type in FloatType:
        table = source.add(f"table_{type.value}", _VOCAB, _DIM, type)
        yield Case(f"embed {type.value}", _graph([x], [table], [Embed(table.name, "x")]), ("x",))
    added = Buffer("added", _DIM)
    for out_type in (BufferType.F32, BufferType.Q80):
        out = Buffer("out", _DIM, out_type)
        steps: list[Step] = [start, Embed("embedding", "added"), RmsNorm("x", "added", "norm", "out", 1e-5)]
        graph = _graph([x, added, out], [embedding, norm], steps)
        yield Case(f"rms norm to {out_type.value}", graph, ("x", "out"), out_type is BufferType.Q80)
    for type in FloatType:
        for input_type in (BufferType.F32, BufferType.Q80) if type.is_quantized else (BufferType.F32,):
            normed = Buffer("normed", _DIM, input_type)
            begin: list[Step] = [start, RmsNorm("x", None, "norm", "normed", 1e-5)]
            name = f"{type.value} with {input_type.value} rows"
            rounded = input_type is BufferType.Q80
            matrix = source.add(f"matrix_{type.value}", _HIDDEN + 3, _DIM, type)
            out = Buffer("out", _HIDDEN + 8)
            graph = _graph(
                [x, normed, out], [embedding, norm, matrix], [*begin, Matmul("normed", matrix.name, "out", 5)]
            )
            yield Case(f"matmul {name}", graph, ("out",), rounded)
            gate, up = (source.add(f"{which}_{type.value}", _HIDDEN, _DIM, type) for which in ("gate", "up"))
            out = Buffer("out", _HIDDEN, input_type)
            steps = [*begin, GatedMatmul("normed", gate.name, up.name, "out")]
            yield Case(
                f"gated matmul {name}", _graph([x, normed, out], [embedding, norm, gate, up], steps), ("out",), rounded
            )
    for input_type in (BufferType.F32, BufferType.Q80):
        yield _long_rows_case(source, input_type)
    yield from _attention_cases(source, embedding)
    yield from _special_attention_cases(source, embedding)
    for type in (FloatType.F32, FloatType.Q40):
        yield _experts_case(source, embedding, type)
    yield _candidates_case(source, embedding)


def cut_cases(source: RandomSource) -> Iterator[Case]:
    """Matrices longer than CUT_BYTES, for a device whose shaders see no more of a buffer."""
    n_rows, width = 600, 96
    weights = [source.add(f"cut_{name}", n_rows, width, FloatType.Q40) for name in ("table", "matrix", "gate", "up")]
    table, matrix, gate, up = (weight.name for weight in weights)
    buffers = [Buffer("x", width), Buffer("out", n_rows), Buffer("hidden", n_rows)]
    steps: list[Step] = [Embed(table, "x"), Matmul("x", matrix, "out"), GatedMatmul("x", gate, up, "hidden")]
    graph = replace(_graph(buffers, weights, steps), vocab_size=n_rows, max_rows=3)
    yield Case("matrices in parts", graph, ("x", "out", "hidden"), row_counts=(1, 3))


def tile_cases(source: RandomSource) -> Iterator[Case]:
    """Matmuls of many rows by matrices of many rows, for GPUs with matrix units, which have tiles of several sizes."""
    embedding = source.add("embedding", _VOCAB, _DIM, FloatType.F32)
    norm = source.add("norm", 1, _DIM, FloatType.F32)
    for n in _MANY:
        matrix = source.add(f"many_{n}", n, _DIM, FloatType.Q40)
        gate, up = (source.add(f"many_{name}_{n}", n // 64 * 32, _DIM, FloatType.Q40) for name in ("gate", "up"))
        buffers = [
            Buffer("x", _DIM),
            Buffer("normed", _DIM, BufferType.Q80),
            Buffer("out", n),
            Buffer("hidden", gate.n_rows, BufferType.Q80),
        ]
        steps: list[Step] = [
            Embed("embedding", "x"),
            RmsNorm("x", None, "norm", "normed", 1e-5),
            Matmul("normed", matrix.name, "out"),
            GatedMatmul("normed", gate.name, up.name, "hidden"),
        ]
        graph = replace(
            _graph(buffers, [embedding, norm, matrix, gate, up], steps), max_rows=_MANY_ROWS, seq_len=_MANY_ROWS
        )
        yield Case(f"matmuls by {n} rows", graph, ("out", "hidden"), True, row_counts=(_MANY_ROWS,))


def _long_rows_case(source: RandomSource, type: BufferType) -> Case:
    """So few rows, and so long ones, that a graphics card has all lanes of a workgroup share one."""
    table = source.add("long_table", _FEW, _WIDTH, FloatType.Q40)
    norm = source.add("long_norm", 1, _WIDTH, FloatType.F32)
    matrix = source.add("long_matrix", _FEW, _WIDTH, FloatType.Q40)
    buffers = [Buffer("x", _WIDTH), Buffer("normed", _WIDTH, type), Buffer("out", _FEW)]
    steps: list[Step] = [
        Embed(table.name, "x"),
        RmsNorm("x", None, norm.name, "normed", 1e-5),
        Matmul("normed", matrix.name, "out"),
    ]
    graph = replace(_graph(buffers, [table, norm, matrix], steps), vocab_size=_FEW, max_rows=5)
    return Case(f"long rows of {type.value}", graph, ("out",), type is BufferType.Q80, row_counts=(1, 5))


def _attention_cases(source: RandomSource, embedding: Weight) -> Iterator[Case]:
    projection = source.add("qkv", (_HEADS + 2 * _KV_HEADS) * _HEAD_DIM, _DIM, FloatType.F32)
    frequencies = tuple(float(10000.0 ** (-2 * i / _HEAD_DIM)) for i in range(_HEAD_DIM // 2))
    for style in RopeStyle:
        for type in (BufferType.F32, BufferType.Q80):
            buffers = [
                Buffer("x", _DIM),
                Buffer("qkv", projection.n_rows),
                Buffer("angles", _HEAD_DIM),
                Buffer("out", _HEADS * _HEAD_DIM, type),
            ]
            steps: list[Step] = [
                Embed("embedding", "x"),
                RopeAngles(frequencies, "angles"),
                Matmul("x", "qkv", "qkv"),
                RopeStore("qkv", "angles", "kv", _HEADS, style),
                Attention("qkv", "kv", "out", _HEADS, _HEADS // _KV_HEADS, _HEAD_DIM**-0.5),
            ]
            graph = _graph(buffers, [embedding, projection], steps, [KvCache("kv", _KV_HEADS, _HEAD_DIM)])
            rounded = type is BufferType.Q80
            yield Case(f"rope {style.value} and attention to {type.value}", graph, ("angles", "out"), rounded)
            if style is RopeStyle.HALF_SPLIT:
                long = replace(graph, seq_len=_LONG)
                yield Case(f"long attention to {type.value}", long, ("out",), rounded, _LONG_ROW_COUNTS, grows=True)


def _special_attention_cases(source: RandomSource, embedding: Weight) -> Iterator[Case]:
    """What only some architectures have: biases, norms of heads, a window, other caches."""
    widths = {"q": _HEADS * _HEAD_DIM, "k": _KV_HEADS * _HEAD_DIM, "v": _KV_HEADS * _HEAD_DIM}
    projection = source.add("qkv", sum(widths.values()), _DIM, FloatType.F32)
    biases = [source.add(f"{name}_bias", 1, width, FloatType.F32) for name, width in widths.items()]
    norms = [source.add(f"{name}_norm", 1, _HEAD_DIM, FloatType.F32) for name in ("q", "k")]
    frequencies = tuple(float(10000.0 ** (-2 * i / _HEAD_DIM)) for i in range(_HEAD_DIM // 2))
    buffers = [
        Buffer("x", _DIM),
        Buffer("qkv", projection.n_rows),
        Buffer("angles", _HEAD_DIM),
        Buffer("out", _HEADS * _HEAD_DIM),
    ]
    begin: list[Step] = [
        Embed("embedding", "x", 1.5),
        RopeAngles(frequencies, "angles", 0.9),
        Matmul("x", "qkv", "qkv"),
    ]
    group, scale = _HEADS // _KV_HEADS, _HEAD_DIM**-0.5
    style = RopeStyle.HALF_SPLIT
    for name, store, window, type in (
        ("biases", {"biases": ("q_bias", "k_bias", "v_bias")}, 0, CacheType.F16),
        ("norms of heads, a window", {"norms": ("q_norm", "k_norm"), "epsilon": 1e-5}, 7, CacheType.F32),
        ("keys and values in q80", {}, 0, CacheType.Q80),
    ):
        steps: list[Step] = [
            *begin,
            RopeStore("qkv", "angles", "kv", _HEADS, style, **store),
            Attention("qkv", "kv", "out", _HEADS, group, scale, window=window),
        ]
        caches = [KvCache("kv", _KV_HEADS, _HEAD_DIM, type)]
        graph = _graph(buffers, [embedding, projection, *biases, *norms], steps, caches)
        yield Case(f"attention with {name}", graph, ("out",), type is CacheType.Q80)


def _experts_case(source: RandomSource, embedding: Weight, type: FloatType) -> Case:
    n_experts, k = 6, 2
    norm = source.add("norm", 1, _DIM, FloatType.F32)
    router = source.add("router", n_experts, _DIM, FloatType.F32)
    gate, up = (source.add_experts(f"experts_{w}_{type.value}", n_experts, _HIDDEN, _DIM, type) for w in ("gate", "up"))
    down = source.add_experts(f"experts_down_{type.value}", n_experts, _DIM, _HIDDEN, type)
    row_type = BufferType.Q80 if type.is_quantized else BufferType.F32
    buffers = [
        Buffer("x", _DIM),
        Buffer("normed", _DIM),
        Buffer("input", _DIM, row_type),
        Buffer("logits", n_experts),
        Buffer("ids", k, BufferType.I32),
        Buffer("weights", k),
        Buffer("hidden", k * _HIDDEN, row_type),
        Buffer("out", _DIM),
    ]
    steps: list[Step] = [
        Embed("embedding", "x"),
        RmsNorm("x", None, "norm", "normed", 1e-5),
        RmsNorm("x", None, "norm", "input", 1e-5),
        Matmul("normed", "router", "logits"),
        TopExperts("logits", "ids", "weights", normalize=True),
        ExpertGatedMatmul("input", "ids", gate.name, up.name, "hidden", activation=Activation.GELU_TANH),
        ExpertMatmul("hidden", "ids", "weights", down.name, "out"),
    ]
    graph = _graph(buffers, [embedding, norm, router, gate, up, down], steps)
    return Case(f"experts {type.value}", graph, ("weights", "out"), type.is_quantized)


def _candidates_case(source: RandomSource, embedding: Weight) -> Case:
    norm = source.add("norm", 1, _DIM, FloatType.F32)
    head = source.add("head", 2 * _VOCAB, _DIM, FloatType.F32)
    buffers = [
        Buffer("x", _DIM),
        Buffer("last", _DIM, rows=Rows.LOGITS),
        Buffer("logits", head.n_rows, rows=Rows.LOGITS),
        Buffer("values", 16, rows=Rows.LOGITS),
        Buffer("ids", 16, BufferType.I32, Rows.LOGITS),
        Buffer("sums", 1, rows=Rows.LOGITS),
    ]
    steps: list[Step] = [
        Embed("embedding", "x"),
        RmsNorm("x", None, "norm", "last", 1e-5),
        Matmul("last", "head", "logits"),
        TopCandidates("logits", "values", "ids", "sums"),
    ]
    graph = _graph(buffers, [embedding, norm, head], steps)
    return Case("best candidates", graph, ("logits", "values", "sums"))


def _graph(
    buffers: Sequence[Buffer], weights: Sequence[Weight], steps: Sequence[Step], caches: Sequence[KvCache] = ()
) -> Graph:
    return Graph(
        tuple(buffers),
        tuple(caches),
        tuple(weights),
        tuple(steps),
        _VOCAB,
        _MAX_ROWS,
        n_slots=2,
        seq_len=_SEQ_LEN,
    )


def _results(device: Device, case: Case, source: RandomSource) -> list[npt.NDArray[np.float64]]:
    """The result buffers side by side for each step; rows go to both slots, behind what is there."""
    program = device.compile(case.graph, source)
    generator = np.random.default_rng(1)
    found, past = [], 0
    for n_rows in case.row_counts:
        tokens = generator.integers(0, case.graph.vocab_size, n_rows)
        first = (n_rows + 1) // 2
        rows = [Row(int(token), 0, past + i, True) for i, token in enumerate(tokens[:first])]
        rows += [Row(int(token), 1, past + i, True, 0.7) for i, token in enumerate(tokens[first:])]
        program.run(Batch.of(rows))
        past += first if n_rows == 1 or case.grows else 0  # so that the second slot has no gaps
        found.append(np.concatenate([program.buffer(name, n_rows) for name in case.results], axis=1).astype(np.float64))
    return found


def _difference(ours: npt.NDArray[np.float64], theirs: npt.NDArray[np.float64]) -> float:
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-9))


class RandomSource:
    """Implements `dllama_gpu.model.source.ModelSource` with what cases have asked for."""

    path = Path("self-test")

    def __init__(self) -> None:
        self.spec = ModelSpec(
            architecture=Architecture.LLAMA,
            dim=_DIM,
            hidden_dim=_HIDDEN,
            n_layers=1,
            n_heads=_HEADS,
            n_kv_heads=_KV_HEADS,
            head_dim=_HEAD_DIM,
            vocab_size=_VOCAB,
            max_seq_len=_SEQ_LEN,
            weight_type=FloatType.F32,
        )
        self.tensors: dict[str, TensorInfo] = {}
        self._raw: dict[str, npt.NDArray[np.uint8]] = {}
        self._generator = np.random.default_rng(0)

    def add(self, name: str, n_rows: int, n_columns: int, type: FloatType) -> Weight:
        """A tensor of random numbers around 0, as a weight."""
        if name not in self.tensors:
            values = self._generator.standard_normal((n_rows, n_columns)).astype(np.float32)
            self.tensors[name] = TensorInfo(name, (n_rows, n_columns) if n_rows > 1 else (n_columns,), type)
            self._raw[name] = quantize(values / (1 if n_rows == 1 else n_columns**0.5), type)
        return Weight(name, type, n_rows, n_columns, (TensorSlice(name, 0, n_rows, 0, n_columns),))

    def add_experts(self, name: str, n_experts: int, n_rows: int, n_columns: int, type: FloatType) -> Weight:
        """As many matrices in one weight."""
        parts = [self.add(f"{name}_{expert}", n_rows, n_columns, type).parts[0] for expert in range(n_experts)]
        return Weight(name, type, n_experts * n_rows, n_columns, tuple(parts), n_experts)

    def read(self, name: str) -> npt.NDArray[np.uint8]:
        """Raw rows."""
        return self._raw[name]

    def release(self, name: str) -> None:
        """Nothing is mapped."""

    def close(self) -> None:
        """Nothing is open."""
