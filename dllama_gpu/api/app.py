"""The web application: which path is answered by what."""

from __future__ import annotations

from typing import TypeVar, cast

import anyio.to_thread
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from dllama_gpu.api.chat import complete_chat
from dllama_gpu.api.chat_prompt import encode_messages
from dllama_gpu.api.cluster_view import cluster_json
from dllama_gpu.api.completions import complete_text
from dllama_gpu.api.errors import ApiError
from dllama_gpu.api.guards import ApiKeyGuard, BodyGuard, HostGuard
from dllama_gpu.api.json_text import JsonResponse
from dllama_gpu.api.metrics import Metrics
from dllama_gpu.api.openapi import describe
from dllama_gpu.api.page import page_response
from dllama_gpu.api.parameters import check_model
from dllama_gpu.api.reading import check_content_type, read_body
from dllama_gpu.api.request_context import context_of
from dllama_gpu.api.request_log import RequestLog
from dllama_gpu.api.requests import ChatRequest, DetokenizeRequest, TextRequest, TokenizeRequest
from dllama_gpu.api.service import Service

Model = TypeVar("Model", bound=BaseModel)


def make_app(service: Service) -> ASGIApp:
    """The application that serves `service`."""
    endpoints = _Endpoints(service)
    settings = service.settings
    middleware = [
        Middleware(BodyGuard, max_bytes=settings.max_body_bytes, seconds=settings.body_seconds),
    ]
    if settings.api_keys:
        middleware.insert(0, Middleware(ApiKeyGuard, keys=settings.api_keys))
    else:
        middleware.insert(0, Middleware(HostGuard, allowed=settings.host_names))
    if settings.cors_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=("X-Request-Id", "Retry-After"),
        )
        middleware.insert(0, cors)
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", endpoints.chat, methods=["POST"]),
            Route("/v1/completions", endpoints.text, methods=["POST"]),
            Route("/v1/models", endpoints.models),
            Route("/v1/models/{name:path}", endpoints.model),
            Route("/tokenize", endpoints.tokenize, methods=["POST"]),
            Route("/detokenize", endpoints.detokenize, methods=["POST"]),
            Route("/health", endpoints.health),
            Route("/metrics", endpoints.metrics_text),
            Route("/api/cluster", endpoints.cluster),
            Route("/openapi.json", endpoints.openapi),
            Route("/", endpoints.page),
            Route("/static/{path:path}", endpoints.page),
        ],
        middleware=middleware,
        exception_handlers={
            ApiError: _refuse,
            HTTPException: _refuse_http,
            Exception: _apologize,
        },
    )
    return RequestLog(app, endpoints.metrics)


class _Endpoints:
    def __init__(self, service: Service) -> None:
        self._service = service
        self.metrics = Metrics(service)

    async def chat(self, request: Request) -> Response:
        return await complete_chat(self._service, request, await _read(ChatRequest, request))

    async def text(self, request: Request) -> Response:
        return await complete_text(self._service, request, await _read(TextRequest, request))

    async def models(self, request: Request) -> Response:
        names = self._service.settings.model_names
        return JsonResponse({"object": "list", "data": [self._service.describe_model(name) for name in names]})

    async def model(self, request: Request) -> Response:
        name = check_model(self._service, request.path_params["name"])
        return JsonResponse(self._service.describe_model(name))

    async def tokenize(self, request: Request) -> Response:
        fields = await _read(TokenizeRequest, request)
        check_model(self._service, fields.model)
        return JsonResponse(await anyio.to_thread.run_sync(_tokenized, self._service, fields))

    async def detokenize(self, request: Request) -> Response:
        fields = await _read(DetokenizeRequest, request)
        check_model(self._service, fields.model)
        return JsonResponse(await anyio.to_thread.run_sync(_detokenized, self._service, fields))

    async def health(self, request: Request) -> Response:
        if self._service.active.closing is not None:
            return JsonResponse({"status": "ending"}, status_code=503)
        statistics = self._service.engine.statistics()
        status = "ok" if statistics.state == "ready" else statistics.state
        body = {"status": status, "message": statistics.message}
        return JsonResponse(body, status_code=503 if status == "down" else 200)

    async def metrics_text(self, request: Request) -> Response:
        text = await anyio.to_thread.run_sync(self.metrics.text)
        return Response(text, media_type="text/plain; version=0.0.4")

    async def cluster(self, request: Request) -> Response:
        return JsonResponse(cluster_json(self._service))

    async def page(self, request: Request) -> Response:
        path = request.path_params.get("path", "index.html")
        answer = page_response(path, request.headers.get("If-None-Match"))
        if answer is None:
            raise HTTPException(404)
        return Response(answer.body, status_code=answer.status, headers=dict(answer.headers))

    async def openapi(self, request: Request) -> Response:
        return JsonResponse(describe(has_keys=bool(self._service.settings.api_keys)))


async def _read(model: type[Model], request: Request) -> Model:
    check_content_type(request.headers.get("Content-Type"))
    return read_body(model, await request.body())


def _tokenized(service: Service, fields: TokenizeRequest) -> dict[str, object]:
    tokenizer = service.tokenizer
    if (fields.content is None) == (fields.messages is None):
        raise ApiError(400, "give either content or messages", param="content", code="invalid_value")
    if fields.content is not None:
        # None does what the model expects of a prompt.
        ids = tokenizer.encode(fields.content, add_bos=fields.add_special)
    elif service.template is None:
        raise ApiError(400, "this model has no chat template; give content in place of messages", param="messages")
    else:
        ids = encode_messages(
            service.template,
            tokenizer,
            fields.messages or (),
            tool_format=service.tool_format,
            drops_thoughts=service.tells_reasoning(),
        )
    answer: dict[str, object] = {"tokens": ids, "count": len(ids), "max_model_len": service.context}
    if fields.with_pieces:
        answer["pieces"] = [tokenizer.token_bytes(token).decode("utf-8", "replace") for token in ids]
    return answer


def _detokenized(service: Service, fields: DetokenizeRequest) -> dict[str, object]:
    tokenizer = service.tokenizer
    wrong = next((token for token in fields.tokens if token >= tokenizer.vocab_size), None)
    if wrong is not None:
        raise ApiError(
            400,
            f"tokens holds {wrong}, but the model's ids are 0 to {tokenizer.vocab_size - 1}",
            param="tokens",
            code="invalid_value",
        )
    return {"content": tokenizer.decode(fields.tokens, skip_special=False)}


async def _refuse(request: Request, error: Exception) -> Response:
    error = cast(ApiError, error)
    context_of(request).failed(error)
    return JsonResponse(error.body(), status_code=error.status, headers=error.headers)


async def _refuse_http(request: Request, error: Exception) -> Response:
    error = cast(HTTPException, error)
    message = {
        404: f"there is nothing at {request.url.path[:200]}; /openapi.json lists what there is",
        405: f"{request.url.path[:200]} does not take the method {request.method}",
    }.get(error.status_code, error.detail)
    refusal = ApiError(error.status_code, message, code="not_found" if error.status_code == 404 else None)
    return JsonResponse(refusal.body(), status_code=error.status_code, headers=error.headers)


async def _apologize(request: Request, error: Exception) -> Response:
    refusal = ApiError(500, "the server made a mistake; its log says which", code="internal_error")
    return JsonResponse(refusal.body(), status_code=refusal.status)
