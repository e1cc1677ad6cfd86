"""GET /openapi.json: the API described by the same models that check its requests."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import dllama_gpu
from dllama_gpu.api.requests import ChatRequest, DetokenizeRequest, TextRequest, TokenizeRequest

_REF = "#/components/schemas/{model}"
_REFUSALS = {
    400: "A field is unknown, missing or wrong; the error names it.",
    404: "There is no such model.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    429: "Too many requests wait; Retry-After says when to ask again.",
    503: "The model cannot run at the moment.",
}
_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def describe(*, has_keys: bool) -> dict[str, Any]:
    """The description in OpenAPI 3.1; with `has_keys` it says that a key is needed."""
    models: list[type[BaseModel]] = [ChatRequest, TextRequest, TokenizeRequest, DetokenizeRequest]
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    components: dict[str, Any] = {"schemas": {**schemas["$defs"], "Error": _ERROR}}
    description: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "dllama-gpu",
            "version": dllama_gpu.__version__,
            "description": "OpenAI's API for a model on machines of your own.",
        },
        "paths": {
            "/v1/chat/completions": {"post": _posted("Answer a conversation.", ChatRequest, _completion("message"))},
            "/v1/completions": {"post": _posted("Continue texts.", TextRequest, _completion("text"))},
            "/tokenize": {
                "post": _posted("Text or messages to token ids.", TokenizeRequest, _object("tokens", "count"))
            },
            "/detokenize": {"post": _posted("Token ids to text.", DetokenizeRequest, _object("content"))},
            "/v1/models": {"get": _read("The models that are served.", _json(_object("object", "data")))},
            "/v1/models/{name}": {
                "get": {
                    **_read("One of the models.", _json(_object("id", "object", "created", "owned_by")), 404),
                    "parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}],
                }
            },
            "/health": {"get": _read("Whether the model can run.", _json(_object("status")), 503, plain=True)},
            "/metrics": {"get": _read("Counters for Prometheus.", {"text/plain": {"schema": {"type": "string"}}})},
            "/api/cluster": {"get": _read("The nodes and their work.", _json(_object("model", "slots", "nodes")))},
            "/openapi.json": {"get": _read("This description.", _json(_object("openapi", "paths")))},
        },
        "components": components,
    }
    if has_keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        description["security"] = [{"key": []}]
    return description


def _posted(summary: str, model: type[BaseModel], answer: dict[str, Any]) -> dict[str, Any]:
    content = _json(answer)
    if "choices" in answer["required"]:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    operation = _read(summary, content, *_REFUSALS)
    reference = {"$ref": _REF.format(model=model.__name__)}
    return {**operation, "requestBody": {"required": True, "content": _json(reference)}}


def _read(summary: str, content: dict[str, Any], *refusals: int, plain: bool = False) -> dict[str, Any]:
    refused = _json(_object("status") if plain else {"$ref": _REF.format(model="Error")})
    responses: dict[str, Any] = {"200": {"description": "Done.", "content": content}}
    for status in refusals:
        responses[str(status)] = {"description": _REFUSALS[status], "content": refused}
    responses["401"] = {
        "description": "A key is needed.",
        "content": _json({"$ref": _REF.format(model="Error")}),
    }
    return {"summary": summary, "responses": responses}


def _completion(kind: str) -> dict[str, Any]:
    choice = {"type": "object", "required": ["index", kind, "finish_reason"]}
    answer = _object("id", "object", "created", "model", "choices", "usage")
    answer["properties"] = {"choices": {"type": "array", "items": choice}}
    return answer


def _object(*required: str) -> dict[str, Any]:
    return {"type": "object", "required": list(required)}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
