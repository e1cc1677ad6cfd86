"""The process that listens: uvicorn with patience limits, and an end that leaves no client without a word."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Generator
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from dllama_gpu.api.submission import ActiveSubmissions

_log = logging.getLogger("dllama_gpu.api")
_HEADER_SECONDS = 20.0
_KEEP_ALIVE_SECONDS = 75
_CLOSE_SECONDS = 3
_CONNECTIONS = 16384
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class ApiServer(uvicorn.Server):
    """Serves `app` until SIGINT or SIGTERM.

    Then nothing new is taken; what runs may go on for `drain_seconds` and then ends with an error. A second signal
    ends it at once. A client has 20 s for the head of a request.
    """

    def __init__(self, app: ASGIApp, active: ActiveSubmissions, drain_seconds: float) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_PatientProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_CLOSE_SECONDS,
                backlog=1024,
            )
        )
        self._active = active
        self._drain_seconds = drain_seconds

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handles signals during the block; afterwards the process goes on and cleans up."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends the server in peace, the second at once."""
        self.force_exit = self.should_exit
        self.should_exit = True

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until a signal comes."""
        _allow_many_connections()
        super().run(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Lets what runs come to an end, or ends it."""
        self._active.refuse_new()
        _log.info("ending", extra={"fields": {"running": len(self._active), "seconds": self._drain_seconds}})
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._drain_seconds
        while len(self._active) and not self.force_exit and loop.time() < deadline:
            await asyncio.sleep(0.05)
        self._active.end_all()
        await super().shutdown(sockets)


class _PatientProtocol(H11Protocol):
    """HTTP/1.1 for one client, which is let go if the head of its request does not come to an end."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(_HEADER_SECONDS, transport.close)

    def data_received(self, data: bytes) -> None:
        """A part of a request, perhaps all of it."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(_HEADER_SECONDS, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._stop_timer()
        super().connection_lost(exc)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _allow_many_connections() -> None:
    """Each client takes a file descriptor, of which programs on Unix get few unless they ask for more."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _CONNECTIONS if hard == resource.RLIM_INFINITY else min(hard, _CONNECTIONS)
        if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
