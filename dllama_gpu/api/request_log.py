"""Around every request: an id, a line in the log, a count, and an answer even where we made a mistake."""

from __future__ import annotations

import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dllama_gpu.api.metrics import Metrics
from dllama_gpu.api.request_context import RequestContext, new_context

_log = logging.getLogger("dllama_gpu.api")
_ID_HEADER = "X-Request-Id"
_CLIENT_LEFT = 499
_METHODS = frozenset(("GET", "HEAD", "OPTIONS", "POST"))
_QUIET_PATHS = frozenset(("/health", "/metrics", "/api/cluster"))
"""Asked for again and again, so a line is written at level debug only."""


class RequestLog:
    """The outermost layer."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = new_context(scope, Headers(scope=scope).get(_ID_HEADER))
        started = time.monotonic()
        status = 0
        finished = False

        async def told(message: Message) -> None:
            nonlocal status, finished
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[_ID_HEADER] = context.id
            finished = finished or (message["type"] == "http.response.body" and not message.get("more_body", False))
            await send(message)

        try:
            await self._app(scope, receive, told)
        except Exception:  # the application has answered 500 already, if nothing else was
            _log.exception("this should not have happened", extra={"request_id": context.id})
        finally:
            if not finished:  # the client left, or takes nothing any more
                status = _CLIENT_LEFT
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.count(method, _route(scope), status)
            _write_line(scope, context, status, time.monotonic() - started)


def _route(scope: Scope) -> str:
    route = scope.get("route")
    path = getattr(route, "path", None)
    return path if isinstance(path, str) else "other"


def _write_line(scope: Scope, context: RequestContext, status: int, seconds: float) -> None:
    level = logging.DEBUG if scope["path"] in _QUIET_PATHS and status < 400 else logging.INFO
    fields = {
        "request_id": context.id,
        "client": context.client,
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
        "seconds": round(seconds, 4),
        **context.notes,
    }
    _log.log(level, "request", extra={"fields": fields})
