"""What stands between the network and the endpoints: keys, sizes, patience."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dllama_gpu.api.errors import ApiError
from dllama_gpu.api.json_text import JsonResponse

_OPEN_PATHS = ("/", "/health")
_DISCARD_BYTES = 128 << 20
_DISCARD_SECONDS = 5.0
_OPEN_FOLDER = "/static/"
# RFC 6761, RFC 6762, RFC 8375, and what ICANN has promised never to give away or routers commonly use.
_PRIVATE_ENDS = (".localhost", ".local", ".home.arpa", ".internal", ".lan", ".home", ".localdomain", ".test")


class ApiKeyGuard:
    """Lets in who knows one of the keys. The page itself, which holds no secret, and /health are open to all."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on a request, or answers 401."""
        if scope["type"] != "http" or self._is_open(scope["path"]) or self._knows_key(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        error = ApiError(
            401,
            "this server wants a key that it knows in the header `Authorization: Bearer KEY`",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await _answer(error, scope, receive, send)

    def _is_open(self, path: str) -> bool:
        return path in _OPEN_PATHS or path.startswith(_OPEN_FOLDER)

    def _knows_key(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("Authorization", "").partition(" ")
        found = given.strip().encode()
        # All are compared, in constant time, so that the time tells nothing.
        matches = [hmac.compare_digest(found, key) for key in self._keys]
        return scheme.lower() == "bearer" and any(matches)


class HostGuard:
    """Refuses requests that a browser was led to send here under the name of a foreign site.

    A site whose name suddenly resolves to 127.0.0.1 is of the same origin as this server to a browser (DNS rebinding).
    The header Host still tells its name.
    """

    def __init__(self, app: ASGIApp, allowed: Sequence[str]) -> None:
        self._app = app
        self._allowed = frozenset(name.lower() for name in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on a request, or answers 403."""
        host = host_name(Headers(scope=scope).get("Host", "")) if scope["type"] == "http" else ""
        if not host or host in self._allowed or is_private_name(host):
            await self._app(scope, receive, send)
            return
        error = ApiError(
            403,
            f"the header Host says {host[:100]!r}, which this server does not know as a name of its own; start it with "
            f"--allow-host {host[:100]}, or with --api-key",
            param="Host",
            code="unknown_host",
        )
        await _answer(error, scope, receive, send)


def host_name(header: str) -> str:
    """The name or number in a header Host, without the port."""
    host = header.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".")


def is_private_name(host: str) -> bool:
    """Whether no stranger can own this name: a number, a name without a dot, or one that the public DNS never has."""
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return True
    return "." not in host or host.endswith(_PRIVATE_ENDS)


class BodyGuard:
    """Reads a body no further than its limits: `max_bytes`, and `seconds` until it is complete."""

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on a request, or answers 408 or 413."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("Content-Length", "")
        if declared.isascii() and declared.isdigit() and int(declared[:20]) > self._max_bytes:
            await _answer(self._too_large(), scope, receive, send)
            return
        try:
            messages = await asyncio.wait_for(self._read(receive), self._seconds)
        except asyncio.TimeoutError:
            error = ApiError(408, f"the body was not complete after {self._seconds:g} seconds", code="body_timeout")
            await _answer(error, scope, receive, send, discard=False)
            return
        except ApiError as error:
            await _answer(error, scope, receive, send)
            return
        if messages is None:  # the client left before it had sent everything
            return

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, replay, send)

    async def _read(self, receive: Receive) -> list[Message] | None:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size > self._max_bytes:
                raise self._too_large()
            parts.append(part)
            if not message.get("more_body", False):
                return [{"type": "http.request", "body": b"".join(parts), "more_body": False}]

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"the body is larger than the {self._max_bytes} bytes that this server reads", code="body_too_large"
        )


async def _answer(error: ApiError, scope: Scope, receive: Receive, send: Send, *, discard: bool = True) -> None:
    """Refuses a request whose body was not read, and ends the connection.

    A client that still sends would be cut off and never see the answer, so for a while it is let send into the void.
    """
    if discard:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_discard(receive), _DISCARD_SECONDS)
    headers = {**error.headers, "Connection": "close"}
    await JsonResponse(error.body(), status_code=error.status, headers=headers)(scope, receive, send)


async def _discard(receive: Receive) -> None:
    size = 0
    while size < _DISCARD_BYTES:
        message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body", False):  # the end of the body, or of the connection
            return
