"""When to go on without a worker that was lost: the policy of a cluster's recovery."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.batch import Program

_log = logging.getLogger(__name__)
GRACE_SECONDS = 5.0


class Connected(Protocol):
    """Nodes that answered."""

    def close(self) -> None:
        """Lets them go."""


_Connected = TypeVar("_Connected", bound=Connected)


class Rejoin(Generic[_Connected]):
    """Builds a lost cluster anew, attempt by attempt; an instance may be used for one loss after the other.

    `connect` connects to all nodes of old that answer and says which do not, a sentence each. For `grace_seconds` after
    the loss all are waited for, as a worker that crashed is often back in a moment; then it goes on with those who are
    there. `load` shares out the model among them and may say (DllamaError) that it does not fit; a later attempt may
    find more of them.
    """

    def __init__(
        self,
        connect: Callable[[], tuple[_Connected, list[str]]],
        load: Callable[[_Connected], Program],
        *,
        grace_seconds: float = GRACE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connect = connect
        self._load = load
        self._grace_seconds = grace_seconds
        self._clock = clock
        self._lost_at = 0.0

    def __call__(self, attempt: int) -> Program:
        """Implements `recovery.Rebuild`."""
        if attempt == 0:
            self._lost_at = self._clock()
        nodes, missing = self._connect()
        try:
            if missing and self._clock() - self._lost_at < self._grace_seconds:
                raise DllamaError("; ".join(missing))
            program = self._load(nodes)
        except BaseException:
            nodes.close()
            raise
        for sentence in missing:
            _log.warning("going on without a worker: %s", sentence)
        return program
