"""A request's body to a checked object, or an error that names the field."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json

from dllama_gpu.api.errors import ApiError
from dllama_gpu.formats.shown import shown_text

Model = TypeVar("Model", bound=BaseModel)

_CLOSE = 0.75  # `truncation` is no way to write `functions`
_SUBJECT = re.compile(r"^(Input|String|List|Dictionary) should ")
_COUNTED = re.compile(r" after validation, not \S+$")


def check_content_type(content_type: str | None) -> None:
    """Raises ApiError 415 unless a body is declared as JSON.

    That also keeps other sites' pages out: without permission a browser sends no JSON to a foreign server.
    """
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        found = f"is {shown_text(kind)!r}" if kind else "is missing"
        raise ApiError(
            415,
            f"the header Content-Type {found}, but it must be application/json",
            param="Content-Type",
            code="unsupported_media_type",
        )


def read_body(model: type[Model], body: bytes) -> Model:
    """The request in `body`. Raises ApiError 400 naming the field that is unknown, missing or wrong."""
    if not body.strip():
        raise ApiError(400, "the body is empty, but it must be a JSON object", code="invalid_json")
    try:
        data = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {shown_text(str(error))}", code="invalid_json") from None
    if not isinstance(data, dict):
        raise ApiError(400, f"the body is {_kind(data)}, but it must be a JSON object", code="invalid_json")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=True)
        raise _refusal(model, data, details) from None


def _refusal(model: type[BaseModel], data: Mapping[str, Any], errors: Sequence[ErrorDetails]) -> ApiError:
    # Where one of several shapes would do, each complains; the one that got furthest knows best.
    details = max(errors, key=lambda found: len(_path(data, found)))
    path = _path(data, details)
    name = _written(path)
    if details["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(path[-1]), model.model_fields, 1, _CLOSE) if len(path) == 1 else []
        guess = f" (did you mean {close[0]}?)" if close else "; leave it out"
        return ApiError(400, f"unknown field {name}{guess}", param=name, code="unknown_parameter")
    if details["type"] == "missing":
        return ApiError(400, f"the field {name} is missing", param=name, code="missing_required_parameter")
    context = details.get("ctx", {})
    if "discriminator" in context:  # the field that says which of several shapes it is
        name = f"{name}.{context['discriminator'].strip(chr(39))}"
        if details["type"] == "union_tag_not_found":
            return ApiError(400, f"the field {name} is missing", param=name, code="missing_required_parameter")
        wanted, value = f"should be one of {context['expected_tags']}", _shown(context["tag"])
        return ApiError(400, f"{name} {wanted}, but it is {value}", param=name, code="invalid_value")
    same = [found for found in errors if _path(data, found) == path]
    wanted = " or ".join(dict.fromkeys(_wanted(found) for found in same))
    value = _shown(details["input"])
    return ApiError(400, f"{name} {wanted}, but it is {value}", param=name, code="invalid_value")


def _path(data: Any, details: ErrorDetails) -> list[str | int]:
    """Where in the body the error lies, without the names of alternatives that pydantic puts in between."""
    path: list[str | int] = []
    place = data
    missing = details["type"] == "missing"
    for index, part in enumerate(details["loc"]):
        is_last = index == len(details["loc"]) - 1
        if isinstance(place, dict) and isinstance(part, str) and (part in place or (missing and is_last)):
            place = place.get(part)
        elif isinstance(place, list) and isinstance(part, int) and part < len(place):
            place = place[part]
        else:
            continue
        path.append(part)
    return path


def _written(path: Sequence[str | int]) -> str:
    """`messages[0].content`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{shown_text(part)}" for part in path)
    return text.removeprefix(".") or "the body"


def _wanted(details: ErrorDetails) -> str:
    message = details["msg"].removeprefix("Value error, ")
    return shown_text(_SUBJECT.sub("should ", _COUNTED.sub("", message)))


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return repr(shown_text(value))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) or (isinstance(value, int) and value.bit_length() < 128):
        return repr(value)
    return _kind(value)


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return "a text"
    if value is None:
        return "null"
    return "true or false" if isinstance(value, bool) else "a number"
