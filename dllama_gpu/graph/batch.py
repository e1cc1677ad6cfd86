"""The rows of one step, and what a device offers to compute them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.graph import Exchange, Graph
from dllama_gpu.model.source import ModelSource

IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Row:
    """One token to compute: it stands at `position` of the sequence kept in KV slot `slot`."""

    token: int
    slot: int
    position: int
    wants_logits: bool = False
    temperature: float = 1.0
    """Divides the logits inside the log-sum-exp that comes with the row's candidates."""


@dataclass(frozen=True)
class Batch:
    """The rows of one step as columns. Rows of one slot stand together in ascending position.

    `tokens`, `slots`, `positions` are (n_rows,); `logit_rows` (n_logit_rows,) lists the rows that want logits in
    ascending order and `temperatures` (n_logit_rows,) belongs to them.
    """

    tokens: IntArray
    slots: IntArray
    positions: IntArray
    logit_rows: IntArray
    temperatures: npt.NDArray[np.float32]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Batch:
        """Turns a list of rows into columns."""
        wanting = [i for i, row in enumerate(rows) if row.wants_logits]
        return cls(
            tokens=np.array([row.token for row in rows], np.int32),
            slots=np.array([row.slot for row in rows], np.int32),
            positions=np.array([row.position for row in rows], np.int32),
            logit_rows=np.array(wanting, np.int32),
            temperatures=np.array([rows[i].temperature for i in wanting], np.float32),
        )

    def check(self, graph: Graph) -> None:
        """Raises DllamaError unless the batch is what this class promises and fits the sizes of `graph`."""
        # Plain Python: a step of one row takes as long as a handful of NumPy calls whose code fell out of the cache.
        n_rows, n_logit_rows = len(self.tokens), len(self.logit_rows)
        if not 0 < n_rows <= graph.max_rows:
            raise DllamaError(f"a batch needs 1 to {graph.max_rows} rows, not {n_rows}")
        if not len(self.slots) == len(self.positions) == n_rows or len(self.temperatures) != n_logit_rows:
            raise DllamaError("the columns of a batch differ in length")
        limit = n_rows if graph.max_logit_rows is None else graph.max_logit_rows
        if n_logit_rows > limit:
            raise DllamaError(f"{n_logit_rows} rows of a batch want logits, but at most {limit} may")
        slots, positions, logit_rows = self.slots.tolist(), self.positions.tolist(), self.logit_rows.tolist()
        _check_range("token", self.tokens.tolist(), graph.vocab_size)
        _check_range("slot", slots, graph.n_slots)
        _check_range("position", positions, graph.seq_len)
        _check_range("logit row", logit_rows, n_rows)
        if any(row >= following for row, following in itertools.pairwise(logit_rows)):
            raise DllamaError("the logit rows of a batch must be in ascending order, each once")
        last_of_slot: dict[int, int] = {}
        slot_before = None
        for slot, position in zip(slots, positions, strict=True):
            if slot in last_of_slot and (slot != slot_before or position <= last_of_slot[slot]):
                raise DllamaError("rows of one slot must stand together in a batch, in ascending position")
            last_of_slot[slot] = position
            slot_before = slot
        if not all(0 < temperature < math.inf for temperature in self.temperatures.tolist()):
            raise DllamaError("a row's temperature must be a number above 0")


def _check_range(what: str, values: list[int], limit: int) -> None:
    if min(values, default=0) < 0 or max(values, default=0) >= limit:
        bad = next(value for value in values if not 0 <= value < limit)
        raise DllamaError(f"{what} {bad} in a batch is outside 0..{limit - 1}")


class ExchangeHandler(Protocol):
    """Carries out an exchange between the nodes of a cluster."""

    def __call__(self, exchange: Exchange, batch: Batch) -> None:
        """Returns when this node's buffers hold the result."""


class Program(Protocol):
    """A graph compiled for one device, its weights loaded."""

    @property
    def graph(self) -> Graph:
        """What was compiled."""

    def run(self, batch: Batch, exchange: ExchangeHandler | None = None) -> None:
        """Computes one step; releases the GIL. Buffers hold the results until the next run.

        A graph of a cluster's node stops at every exchange and calls `exchange`, which reads and writes `buffer` views.
        Raises DllamaError when a row lies outside the graph's sizes, or when there is an exchange and no handler.
        """

    def buffer(self, name: str, n_rows: int) -> npt.NDArray[Any]:
        """The first `n_rows` rows of a buffer as an array (n_rows, width): a view for F32 and I32, a copy for Q80.

        A view shows what the next run writes; copy what must outlive it.
        """


@runtime_checkable
class PrefixCopier(Protocol):
    """A program that can copy keys and values from slot to slot; not every one can."""

    def copy_prefix(self, source: int, target: int, n_positions: int) -> None:
        """Slot `target` holds the first `n_positions` of `source` afterwards, and nothing else of use."""


def check_prefix_copy(graph: Graph, source: int, target: int, n_positions: int) -> None:
    """Raises ValueError for slots or positions that `graph` has not."""
    slots = range(graph.n_slots)
    if source not in slots or target not in slots or not 0 <= n_positions <= graph.seq_len:
        raise ValueError(f"cannot copy {n_positions} positions from slot {source} to slot {target}")


LoadProgress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) while weights load."""


class Device(Protocol):
    """A processor that runs graphs."""

    @property
    def name(self) -> str:
        """For people, e.g. `cpu (avx512, 2 threads)`."""

    def compile(self, graph: Graph, source: ModelSource, progress: LoadProgress | None = None) -> Program:
        """Loads the graph's weights from `source` and prepares its ops.

        Raises DllamaError when the graph is unsound, a tensor is missing, or the device cannot run it.
        """
