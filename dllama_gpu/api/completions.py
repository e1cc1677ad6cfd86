"""POST /v1/completions: a text is continued as it is."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response

import dllama_gpu
from dllama_gpu.api.choices import Choice, Delta, deltas, total_usage
from dllama_gpu.api.errors import ApiError
from dllama_gpu.api.json_text import JsonResponse
from dllama_gpu.api.logprobs import text_logprobs_json
from dllama_gpu.api.parameters import answer_rule, check_grammar, check_model, make_requests
from dllama_gpu.api.request_context import RequestContext, context_of
from dllama_gpu.api.requests import Prompt, TextRequest
from dllama_gpu.api.service import Service
from dllama_gpu.api.streaming import EventStream, while_connected
from dllama_gpu.api.submission import Submission
from dllama_gpu.engine.request import CompletionRequest
from dllama_gpu.tokenizer.tokenizer import Tokenizer

_DEFAULT_MAX_TOKENS = 16  # OpenAI's


@dataclass(frozen=True)
class _Prepared:
    requests: Sequence[CompletionRequest]
    echoes: Sequence[str]
    """What stands before each choice's text."""
    model: str


async def complete_text(service: Service, request: Request, fields: TextRequest) -> Response:
    """Continues texts. Raises ApiError."""
    context = context_of(request)
    prepared = await anyio.to_thread.run_sync(_prepare, service, fields, context)
    submission = Submission(service.engine, prepared.requests, service.active, "prompt")
    choices = [Choice(wants_logprobs=fields.logprobs is not None) for _ in prepared.requests]
    answer = _TextAnswer(service.tokenizer, prepared, choices, fields.n or 1)
    if fields.stream:
        wants_usage = fields.stream_options is not None and bool(fields.stream_options.include_usage)
        return EventStream(
            answer.chunks(submission, context, wants_usage=wants_usage),
            submission.close,
            write_seconds=service.settings.write_seconds,
            on_error=context.failed,
        )
    try:
        whole = await while_connected(request.receive, lambda: answer.whole(submission, context))
    finally:
        submission.close()
    return Response(status_code=499) if whole is None else JsonResponse(whole)


def prompts_of(prompt: Prompt, tokenizer: Tokenizer) -> list[list[int]]:
    """The ids of each prompt."""
    if isinstance(prompt, str):
        return [tokenizer.encode(prompt)]
    prompts: list[list[int]] = []
    single: list[int] = []
    for part in prompt:
        if isinstance(part, str):
            prompts.append(tokenizer.encode(part))
        elif isinstance(part, list):
            prompts.append(part)
        else:
            single.append(part)
    return prompts or [single]


def _prepare(service: Service, fields: TextRequest, context: RequestContext) -> _Prepared:
    model = check_model(service, fields.model)
    if fields.best_of not in (None, fields.n or 1):
        raise ApiError(
            400,
            f"best_of is {fields.best_of}, but all answers that are made are given, so it must be n, {fields.n or 1}",
            param="best_of",
            code="invalid_value",
        )
    prompts = prompts_of(fields.prompt, service.tokenizer)
    rule = answer_rule(fields)
    grammar = None if rule is None else f"start: {rule}"
    if grammar is not None:
        check_grammar(service, grammar, "response_format")
    requests = make_requests(
        service,
        fields,
        prompts,
        max_tokens=fields.max_tokens or _DEFAULT_MAX_TOKENS,
        n_logprobs=fields.logprobs,
        grammar=grammar,
        client=context.client,
        request_id=context.id,
    )
    echoes = [service.tokenizer.decode(request.prompt) if fields.echo else "" for request in requests]
    return _Prepared(requests, echoes, model)


class _TextAnswer:
    """Writes what comes of the choices in the shape of a plain completion."""

    def __init__(self, tokenizer: Tokenizer, prepared: _Prepared, choices: Sequence[Choice], n_per_prompt: int) -> None:
        self._tokenizer = tokenizer
        self._choices = choices
        self._echoes = prepared.echoes
        self._n_per_prompt = n_per_prompt
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": prepared.model,
            "system_fingerprint": f"dllama-gpu-{dllama_gpu.__version__}",
        }

    async def whole(self, submission: Submission, context: RequestContext) -> dict[str, Any]:
        """The answer in one piece."""
        gathered = [Delta() for _ in self._choices]
        async for index, delta in deltas(submission, self._choices):
            before = gathered[index]
            tokens = (*before.tokens, *delta.tokens)
            gathered[index] = replace(delta, text=before.text + delta.text, tokens=tokens)
        usage = total_usage(self._choices, self._n_per_prompt)
        context.completed(usage)
        written = [
            self._choice(index, self._echoes[index] + delta.text, delta, len(self._echoes[index]))
            for index, delta in enumerate(gathered)
        ]
        return {**self._head, "choices": written, "usage": usage}

    async def chunks(
        self, submission: Submission, context: RequestContext, *, wants_usage: bool
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The answer as it comes, and the usage at the end if that is wanted."""
        rest = {"usage": None} if wants_usage else {}
        offsets = [len(echo) for echo in self._echoes]
        for index, echo in enumerate(self._echoes):
            if echo:
                yield {**self._head, "choices": [self._choice(index, echo, Delta(), 0)], **rest}
        async for index, delta in deltas(submission, self._choices):
            yield {**self._head, "choices": [self._choice(index, delta.text, delta, offsets[index])], **rest}
            offsets[index] += sum(
                len(self._tokenizer.token_bytes(event.token).decode("utf-8", "replace")) for event in delta.tokens
            )
        usage = total_usage(self._choices, self._n_per_prompt)
        context.completed(usage)
        if wants_usage:
            yield {**self._head, "choices": [], "usage": usage}

    def _choice(self, index: int, text: str, delta: Delta, offset: int) -> dict[str, Any]:
        return {
            "index": index,
            "text": text,
            "logprobs": text_logprobs_json(self._tokenizer, delta.tokens, offset) if delta.tokens else None,
            "finish_reason": delta.finish_reason,
        }
