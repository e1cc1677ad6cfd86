"""The web page as it is sent: files of `static/`, with headers that keep everything else out of it.

Knows no web framework; the page needs no API key, as it holds no secret: what it asks of the API does.
"""

from __future__ import annotations

import hashlib
import mimetypes
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

STATIC = Path(__file__).with_name("static")
INDEX = "index.html"

SECURITY_HEADERS = {
    # No script, style, picture or connection but this server's own, and nothing inline.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

# As browsers want them, whatever the system's own table says.
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
}


@dataclass(frozen=True)
class PageResponse:
    """What to answer: 200 with a body, or 304 without."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class _PageFile:
    body: bytes
    content_type: str
    tag: str


def page_response(path: str = INDEX, if_none_match: str | None = None) -> PageResponse | None:
    """The answer to a request for a file of `static/` (`js/main.js`), None where there is none.

    `if_none_match` is the request's header of this name. Browsers ask each time, so that a new release shows at once.
    """
    file = _files().get(path)
    if file is None:
        return None
    headers = {**SECURITY_HEADERS, "Cache-Control": "no-cache", "ETag": file.tag, "Content-Type": file.content_type}
    known = {tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")}
    if file.tag in known or "*" in known:
        return PageResponse(304, headers, b"")
    return PageResponse(200, headers, file.body)


@lru_cache(maxsize=1)
def _files() -> dict[str, _PageFile]:
    """All files by their path with slashes; so no path from a request ever touches the file system."""
    return {path.relative_to(STATIC).as_posix(): _read(path) for path in sorted(STATIC.rglob("*")) if path.is_file()}


def _read(path: Path) -> _PageFile:
    body = path.read_bytes()
    content_type = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return _PageFile(body, content_type, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
