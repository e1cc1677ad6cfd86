"""Building a lost program anew, in the background and as often as it takes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.batch import Program

_log = logging.getLogger(__name__)
_FIRST_DELAY = 0.25
_DELAY = 1.0
_LATE_ATTEMPT, _LATE_DELAY = 60, 5.0

Rebuild = Callable[[int], Program]
"""Builds a program like the one that was lost, or raises DllamaError; told the number of the attempt, from 0 on."""


class Recovery:
    """Calls `rebuild` again and again until it gives a program. Whoever started it looks at `program` now and then."""

    def __init__(self, rebuild: Rebuild) -> None:
        self._rebuild = rebuild
        self._stopped = threading.Event()
        self.program: Program | None = None
        self.problem: str | None = None
        """Why the last attempt failed."""
        self.done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recovery", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No further attempt; returns when the one under way has ended."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        attempt = 0
        while not self._stopped.is_set():
            try:
                self.program = self._rebuild(attempt)
                self.done.set()
                return
            except DllamaError as error:
                self.problem = str(error)
            except Exception as error:  # a mistake of ours must not leave requests waiting without a word
                _log.exception("an attempt to recover failed")
                self.problem = f"{type(error).__name__}: {error}"
            self._stopped.wait(delay_before(attempt + 1))
            attempt += 1


def delay_before(attempt: int) -> float:
    """Seconds to wait before an attempt: short at first, then a second, and a few when it has long been in vain."""
    if attempt == 0:
        return 0.0
    return _LATE_DELAY if attempt >= _LATE_ATTEMPT else min(_FIRST_DELAY * attempt, _DELAY)
