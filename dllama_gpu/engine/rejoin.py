"""When to go on without a worker that was lost: the policy of a cluster's recovery."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.batch import Program

_log = logging.getLogger(__name__)


class Connected(Protocol):
    """Nodes that answered."""

    def close(self) -> None:
        """Lets them go."""


_Connected = TypeVar("_Connected", bound=Connected)


class Rejoin(Generic[_Connected]):
    """Builds a lost cluster anew, attempt by attempt; an instance may be used for one loss after the other.

    `connect` connects to all nodes of old that answer and says by name which do not, a sentence each. For
    `grace_seconds` after the loss those are waited for that were there until then, as a worker that crashed is often
    back in a moment; then it goes on with those who are there. `load` shares out the model among them and may say
    (DllamaError) that it does not fit; a later attempt may find more of them.
    """

    def __init__(
        self,
        connect: Callable[[], tuple[_Connected, Mapping[str, str]]],
        load: Callable[[_Connected], Program],
        *,
        grace_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connect = connect
        self._load = load
        self._grace_seconds = grace_seconds
        self._clock = clock
        self._lost_at = 0.0
        self.missing: tuple[str, ...] = ()
        """Those that the last program does without."""

    def __call__(self, attempt: int) -> Program:
        """Implements `recovery.Rebuild`."""
        if attempt == 0:
            self._lost_at = self._clock()
        nodes, missing = self._connect()
        try:
            newly_lost = set(missing).difference(self.missing)
            if newly_lost and self._clock() - self._lost_at < self._grace_seconds:
                raise DllamaError("; ".join(missing.values()))
            program = self._load(nodes)
        except BaseException:
            nodes.close()
            raise
        for sentence in missing.values():
            _log.warning("going on without a worker: %s", sentence)
        self.missing = tuple(missing)
        return program


class ReturnWatch:
    """Looks now and then, in a thread of its own, whether one of the nodes that are missing is there again."""

    def __init__(self, is_back: Callable[[str], bool], *, every_seconds: float) -> None:
        self._is_back = is_back
        self._every_seconds = every_seconds
        self._missing: Sequence[str] = ()
        self._found = threading.Event()
        self._wake = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def has_found(self) -> bool:
        """Whether one is back."""
        return self._found.is_set()

    def look_for(self, missing: Sequence[str]) -> None:
        """From now on these are missing; what was found before is forgotten."""
        self._missing = tuple(missing)
        self._found.clear()
        if missing and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="return watch", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Looks no more."""
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._wake.wait(self._every_seconds):
            missing = self._missing
            if self._found.is_set():
                continue
            if any(not self._closing and self._is_back(name) for name in missing) and missing is self._missing:
                self._found.set()
