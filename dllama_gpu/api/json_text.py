"""JSON as it goes over the wire."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response


def encode_json(value: Any) -> bytes:
    """Compact UTF-8; half a surrogate pair, which cannot be UTF-8, becomes a question mark."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


class JsonResponse(Response):
    """An answer in JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body."""
        return encode_json(content)
