"""From the event loop to the engine's thread and back: requests are submitted together and told of in one queue."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence

from dllama_gpu.api.engine_interface import Engine, Ticket
from dllama_gpu.api.errors import ApiError, unavailable
from dllama_gpu.engine.errors import EngineUnavailableError, PromptTooLongError, QueueFullError
from dllama_gpu.engine.events import Event, FailedEvent
from dllama_gpu.engine.request import CompletionRequest
from dllama_gpu.errors import DllamaError


class Submission:
    """Requests under way in the engine. Belongs to one event loop, and must be closed whatever happens.

    The engine never waits for a reader: what has come and was not fetched yet is kept, and that is no more than the
    context holds.
    """

    def __init__(
        self, engine: Engine, requests: Sequence[CompletionRequest], active: ActiveSubmissions, prompt_field: str
    ) -> None:
        """Submits all requests, or none. `prompt_field` is the field to blame for a prompt that is too long.

        Raises ApiError 400, 429 or 503 when the engine does not take them.
        """
        self._queue: asyncio.Queue[tuple[int, Event] | ApiError] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._tickets: list[Ticket] = []
        self._active = active
        self.n_requests = len(requests)
        active.add(self)
        try:
            for index, request in enumerate(requests):
                self._tickets.append(engine.submit(request, self._receiver(index)))
        except DllamaError as error:
            self.close()
            raise refusal(error, prompt_field) from None
        except BaseException:
            self.close()
            raise

    async def next(self) -> tuple[int, Event]:
        """The next event, and which request it belongs to.

        Raises ApiError 503 when a request failed or the server ends.
        """
        item = await self._queue.get()
        if isinstance(item, ApiError):
            raise item
        if isinstance(item[1], FailedEvent):
            raise _failure(item[1].error)
        return item

    def end(self, error: ApiError) -> None:
        """Ends it with an error after what has come already."""
        self._queue.put_nowait(error)
        self._cancel()

    def close(self) -> None:
        """Ends what has not ended yet, at once, so that its slot is free. May be called several times."""
        self._active.discard(self)
        self._cancel()

    def _cancel(self) -> None:
        for ticket in self._tickets:
            ticket.cancel()

    def _receiver(self, index: int) -> Callable[[Event], None]:
        def receive(event: Event) -> None:
            try:
                self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, event))
            except RuntimeError:  # the loop was closed: the server has ended, and nobody is there to read
                return

        return receive


class ActiveSubmissions:
    """Everything that is under way; for the end of the server."""

    def __init__(self) -> None:
        self._all: set[Submission] = set()
        self._closing: ApiError | None = None

    def __len__(self) -> int:
        return len(self._all)

    @property
    def closing(self) -> ApiError | None:
        """Why nothing new is taken; None as long as it is."""
        return self._closing

    def add(self, submission: Submission) -> None:
        """Raises ApiError 503 when the server ends."""
        if self._closing is not None:
            raise self._closing
        self._all.add(submission)

    def discard(self, submission: Submission) -> None:
        """It has ended."""
        self._all.discard(submission)

    def refuse_new(self) -> None:
        """From now on nothing is taken."""
        self._closing = unavailable("the server is ending; ask again when it has started anew", code="shutting_down")

    def end_all(self) -> None:
        """Ends all with an error."""
        self.refuse_new()
        for submission in list(self._all):
            submission.end(unavailable("the server ended before the answer was complete", code="shutting_down"))


def refusal(error: DllamaError, prompt_field: str) -> ApiError:
    """The answer for a request that the engine does not take."""
    message = str(error)
    if isinstance(error, QueueFullError):
        wait = max(1, math.ceil(error.retry_after_seconds))
        return ApiError(429, message, code="queue_full", headers={"Retry-After": str(wait)})
    if isinstance(error, EngineUnavailableError):
        return _failure(error)
    if isinstance(error, PromptTooLongError):
        return ApiError(400, message, param=prompt_field, code="context_length_exceeded")
    return ApiError(400, message, code="invalid_value")


def _failure(error: DllamaError) -> ApiError:
    """The answer for a request that the engine could not finish or cannot take now."""
    wait = max(1, math.ceil(error.retry_after_seconds)) if isinstance(error, EngineUnavailableError) else None
    return unavailable(str(error), retry_after=wait)
