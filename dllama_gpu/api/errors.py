"""Answers that refuse: one exception, in the shape of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ApiError(Exception):
    """A request that gets an error for an answer.

    `param` names the field at fault (`messages[0].content`), `code` is for programs, the message for people.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """`{"error": {"message", "type", "param", "code"}}`."""
        return {
            "error": {"message": self.message, "type": _type_of(self.status), "param": self.param, "code": self.code}
        }


def _type_of(status: int) -> str:
    """OpenAI's word for a kind of failure."""
    if status == 401:
        return "authentication_error"
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def unavailable(message: str, *, code: str = "engine_failed", retry_after: int | None = None) -> ApiError:
    """503: the request is right, but cannot be served now."""
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return ApiError(503, message, code=code, headers=headers)
