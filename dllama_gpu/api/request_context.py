"""What is known of one HTTP request while it is served, for logs and answers."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from typing import Any, cast

from starlette.requests import Request
from starlette.types import Scope

from dllama_gpu.api.errors import ApiError

_KEY = "dllama_gpu.request"
_GOOD_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


@dataclass
class RequestContext:
    """Filled while the request is served."""

    id: str
    client: str
    """The address it came from."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What the log says beside status and time."""

    def completed(self, usage: dict[str, Any]) -> None:
        """The answer is whole."""
        self.notes["prompt_tokens"] = usage["prompt_tokens"]
        self.notes["cached_tokens"] = usage["prompt_tokens_details"]["cached_tokens"]
        self.notes["completion_tokens"] = usage["completion_tokens"]

    def failed(self, error: ApiError) -> None:
        """The answer ends in an error."""
        self.notes["error"] = error.message


def new_context(scope: Scope, given_id: str | None) -> RequestContext:
    """Puts a context into the scope. The client's own id is taken where it is harmless."""
    request_id = given_id if given_id is not None and _GOOD_ID.fullmatch(given_id) else f"req-{secrets.token_hex(8)}"
    client = scope.get("client")
    context = RequestContext(request_id, client[0] if client else "")
    scope[_KEY] = context
    return context


def context_of(request: Request) -> RequestContext:
    """The context of a request that came through `RequestLog`."""
    return cast(RequestContext, request.scope[_KEY])
