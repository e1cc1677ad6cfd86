"""Answers that take long: server-sent events, and single ones; both end at once when the client leaves.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import anyio
from anyio.abc import TaskGroup
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dllama_gpu.api.errors import ApiError
from dllama_gpu.api.json_text import encode_json

_SILENCE_SECONDS = 15.0
_DONE = b"data: [DONE]\n\n"
_STILL_HERE = b": the answer is still being made\n\n"

Result = TypeVar("Result")


def event_data(value: Any) -> bytes:
    """One event."""
    return b"data: " + encode_json(value) + b"\n\n"


class EventStream(Response):
    """Server-sent events. `close` is called in any case, as soon as nothing more is wanted.

    An ApiError that `chunks` raises becomes the last event. A client that takes nothing for `write_seconds` counts as
    gone. Where nothing comes for a while, a comment keeps the connection alive.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        chunks: AsyncGenerator[Mapping[str, Any], None],
        close: Callable[[], None],
        *,
        write_seconds: float,
        on_error: Callable[[ApiError], None] | None = None,
    ) -> None:
        super().__init__(None, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._chunks = chunks
        self._close = close
        self._write_seconds = write_seconds
        self._on_error = on_error
        self._lock = anyio.Lock()
        self._written = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends all events."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch, receive, tasks.cancel_scope)
                await self._send_all(send, tasks)
                tasks.cancel_scope.cancel()
        finally:
            self._close()

    async def _watch(self, receive: Receive, scope: anyio.CancelScope) -> None:
        await _client_left(receive)
        scope.cancel()

    async def _send_all(self, send: Send, tasks: TaskGroup) -> None:
        try:
            with anyio.fail_after(self._write_seconds):
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            tasks.start_soon(self._keep_alive, send, tasks.cancel_scope)
            try:
                async with aclosing(self._chunks) as chunks:
                    async for chunk in chunks:
                        await self._write(send, event_data(chunk))
            except ApiError as error:
                if self._on_error is not None:
                    self._on_error(error)
                await self._write(send, event_data(error.body()))
            await self._write(send, _DONE)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            return  # the client takes nothing any more

    async def _write(self, send: Send, data: bytes) -> None:
        async with self._lock:
            self._written = True
            with anyio.fail_after(self._write_seconds):
                await send({"type": "http.response.body", "body": data, "more_body": True})

    async def _keep_alive(self, send: Send, scope: anyio.CancelScope) -> None:
        try:
            while True:
                self._written = False
                await anyio.sleep(_SILENCE_SECONDS)
                if not self._written:
                    await self._write(send, _STILL_HERE)
        except TimeoutError:
            scope.cancel()


async def while_connected(receive: Receive, work: Callable[[], Awaitable[Result]]) -> Result | None:
    """What `work` gives; None when the client left before, and `work` was cancelled."""
    results: list[Result] = []
    errors: list[ApiError] = []
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            await _client_left(receive)
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        try:
            results.append(await work())
        except ApiError as error:  # a task group would wrap it
            errors.append(error)
        tasks.cancel_scope.cancel()
    if errors:
        raise errors[0]
    return results[0] if results else None


async def _client_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
