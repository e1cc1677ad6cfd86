"""Requests to the hub that survive a bad line: patience, waiting as the server asks, and errors in sentences."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, urljoin, urlsplit

import requests

import dllama_gpu
from dllama_gpu.errors import DllamaError
from dllama_gpu.formats.shown import shown_text

ENDPOINT = "https://huggingface.co"
_CONNECT_SECONDS, _READ_SECONDS = 15.0, 30.0
_MOST_FAILURES = 8  # in a row, without a byte in between
_LONGEST_WAIT = 60.0
_LONG_ENOUGH_TO_TELL = 2.0
_MOST_REDIRECTS = 5
_LARGEST_JSON = 64 << 20
_CHUNK_BYTES = 1 << 15  # as much may be lost where a connection is cut
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)

Result = TypeVar("Result")


class TemporaryError(DllamaError):
    """A request failed in a way that may pass; `wait` is how long the server asks to be left alone, in seconds."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True)
class RemoteFile:
    """A file on the hub: where it is and what its content is known to be."""

    url: str
    size: int
    identity: str
    """SHA-256 in hex of the content where the hub says it, a Git blob's SHA-1 for small files, else the ETag."""

    @property
    def sha256(self) -> str | None:
        """The SHA-256 that the content must have, if it is known."""
        return self.identity if _is_hex(self.identity, 64) else None

    @property
    def git_sha1(self) -> str | None:
        """The SHA-1 that the content must have as a Git blob, if it is known."""
        return self.identity if _is_hex(self.identity, 40) else None


class HubClient:
    """Requests to one endpoint. `endpoint`, `token`: default from HF_ENDPOINT and HF_TOKEN; proxies as usual."""

    def __init__(
        self,
        endpoint: str | None = None,
        token: str | None = None,
        *,
        sleep: Callable[[float], None] = time.sleep,
        waiting: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`waiting` is told, in a sentence, when a request failed and is to be repeated after a while.

        Raises DllamaError when the endpoint is no http or https address.
        """
        self.endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")
        parts = urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise DllamaError(f"the endpoint {self.endpoint!r} is no address like {ENDPOINT}")
        self._token = token or os.environ.get("HF_TOKEN") or None
        self._sleep = sleep
        self._waiting = waiting

    def file_url(self, repository: str, name: str, revision: str = "main") -> str:
        """Where a repository has a file."""
        return f"{self.endpoint}/{quote(repository)}/resolve/{quote(revision, safe='')}/{quote(name)}"

    def json(self, path: str, what: str) -> Any:
        """What the API answers at `path`. Raises DllamaError when it does not."""

        def fetch() -> Any:
            with self.get(f"{self.endpoint}{path}", what) as response:
                data = bytearray()
                for chunk in body_chunks(response, what):
                    data += chunk
                    if len(data) > _LARGEST_JSON:
                        raise DllamaError(f"{what}: the answer of {self.endpoint} is too long to be one")
            try:
                return json.loads(data)
            except (ValueError, RecursionError) as error:
                raise DllamaError(f"{what}: {self.endpoint} answers with something that is no JSON") from error

        return self.patiently(fetch)

    def look_up(self, url: str, what: str) -> RemoteFile:
        """Size and identity of a file, from headers. Raises DllamaError when they cannot be had."""

        def ask() -> RemoteFile:
            # Redirects inside the hub lead to renamed repositories; the one out of it says what it leads to.
            at = url
            for _ in range(_MOST_REDIRECTS):
                response = self._request("HEAD", at, what, {})
                target = response.headers.get("Location")
                if not 300 <= response.status_code < 400 or target is None or "X-Linked-Size" in response.headers:
                    break
                at = urljoin(at, target)
            else:
                raise DllamaError(f"{what}: {url} is redirected without end")
            headers = response.headers
            size = headers.get("X-Linked-Size") or headers.get("Content-Length") or ""
            identity = (headers.get("X-Linked-ETag") or headers.get("ETag") or "").removeprefix("W/").strip('"')
            if not size.isdecimal() or len(size) > 16:
                raise DllamaError(f"{what}: {url} does not say how large the file is")
            return RemoteFile(url, int(size), identity[:200])

        return self.patiently(ask)

    @contextmanager
    def get(self, url: str, what: str, headers: Mapping[str, str] | None = None) -> Iterator[requests.Response]:
        """A response whose body is read as it comes. Raises TemporaryError or DllamaError."""
        response = self._request("GET", url, what, headers or {}, follow=True)
        try:
            yield response
        finally:
            response.close()

    def patiently(
        self,
        attempt: Callable[[], Result],
        progressed: Callable[[], bool] = lambda: False,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Result:
        """What `attempt` returns; a TemporaryError is waited out and tried again.

        Gives up after eight failures in a row between which `progressed` did not say that something had come. Does not
        wait any more when `stopped` says so.
        """
        failures = 0
        while True:
            try:
                return attempt()
            except TemporaryError as error:
                failures = 1 if progressed() else failures + 1
                if failures >= _MOST_FAILURES:
                    raise DllamaError(
                        f"{error}; tried {failures} times. Run this again later, it goes on here"
                    ) from None
                wait = min(_LONGEST_WAIT, error.wait if error.wait is not None else 0.25 * 2.0**failures)
                if wait >= _LONG_ENOUGH_TO_TELL and not stopped():
                    self._waiting(f"{error}; the next try is in {wait:.0f} s")
                while wait > 0 and not stopped():
                    self._sleep(min(wait, 0.5))
                    wait -= 0.5

    def _request(
        self, method: str, url: str, what: str, headers: Mapping[str, str], follow: bool = False
    ) -> requests.Response:
        sent = {"User-Agent": f"dllama-gpu/{dllama_gpu.__version__}", "Accept-Encoding": "identity", **headers}
        if self._token is not None and urlsplit(url).netloc == urlsplit(self.endpoint).netloc:
            sent["Authorization"] = f"Bearer {self._token}"  # requests takes it away where a redirect leads elsewhere
        try:
            response = requests.request(
                method,
                url,
                headers=sent,
                stream=True,
                allow_redirects=follow,
                timeout=(_CONNECT_SECONDS, _READ_SECONDS),
            )
        except (requests.ConnectionError, requests.Timeout) as error:
            raise TemporaryError(f"{what}: no answer from {urlsplit(url).netloc} ({_reason(error)})") from error
        except (requests.RequestException, ValueError, UnicodeError) as error:
            raise DllamaError(f"{what}: {shown_text(url)} cannot be asked ({_reason(error)})") from error
        if response.status_code < 400 or response.status_code == 416:
            return response
        response.close()
        raise self._refusal(response, url, what)

    def _refusal(self, response: requests.Response, url: str, what: str) -> DllamaError:
        status, host = response.status_code, urlsplit(url).netloc
        if status in _TEMPORARY:
            wait = None
            with suppress(ValueError):
                wait = max(0.0, float(response.headers.get("Retry-After", "")))
            return TemporaryError(f"{what}: {host} is busy (HTTP {status})", wait)
        if status in (401, 403):
            hint = "is the token in HF_TOKEN right, and" if self._token else "set HF_TOKEN to a token of yours, and"
            return DllamaError(
                f"{what}: {host} does not give it out (HTTP {status}); it is private, gated or not there: {hint} "
                "accept the model's terms on its page"
            )
        if status == 404:
            return DllamaError(f"{what}: {host} does not have it (HTTP 404); check the name")
        return DllamaError(f"{what}: {host} refuses with HTTP {status}")


def body_chunks(response: requests.Response, what: str) -> Iterator[bytes]:
    """The body as it comes. Raises TemporaryError when it is cut."""
    try:
        yield from response.iter_content(_CHUNK_BYTES)
    except (requests.RequestException, OSError) as error:
        raise TemporaryError(f"{what}: the connection was cut ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    """The innermost reason, which says more than the outer ones."""
    while error.__context__ is not None and str(error.__context__):
        error = error.__context__
    return shown_text(str(error)) or type(error).__name__


def _is_hex(text: str, length: int) -> bool:
    return len(text) == length and all(character in "0123456789abcdef" for character in text)
