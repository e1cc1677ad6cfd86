"""What the server needs of an engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from dllama_gpu.engine.events import Event
from dllama_gpu.engine.request import CompletionRequest
from dllama_gpu.engine.statistics import EngineStatistics


class Ticket(Protocol):
    """A request under way."""

    def cancel(self) -> None:
        """Ends it at once, from any thread; does nothing when it has ended."""


class Engine(Protocol):
    """What the server needs of `dllama_gpu.engine.engine.Engine`."""

    def submit(self, request: CompletionRequest, on_event: Callable[[Event], None]) -> Ticket:
        """Takes a request; `on_event` is called on another thread.

        Raises QueueFullError, EngineUnavailableError, PromptTooLongError or another DllamaError.
        """

    def statistics(self) -> EngineStatistics:
        """As of now; may be called from any thread."""
