"""POST /v1/chat/completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response

import dllama_gpu
from dllama_gpu.api.chat_prompt import encode_messages
from dllama_gpu.api.choices import Choice, Delta, HiddenMark, deltas, total_usage
from dllama_gpu.api.errors import ApiError
from dllama_gpu.api.json_text import JsonResponse
from dllama_gpu.api.logprobs import chat_logprobs_json
from dllama_gpu.api.parameters import answer_rule, chat_logprobs, check_grammar, check_model, make_requests
from dllama_gpu.api.reasoning import ReasoningParser
from dllama_gpu.api.request_context import RequestContext, context_of
from dllama_gpu.api.requests import NO_LIMIT, ChatRequest
from dllama_gpu.api.service import Service
from dllama_gpu.api.streaming import EventStream, while_connected
from dllama_gpu.api.submission import Submission
from dllama_gpu.api.tool_formats import ToolFormat, call_grammar
from dllama_gpu.api.tool_parser import ParsedCall, ToolCallParser
from dllama_gpu.api.toolbox import Toolbox, select_tools
from dllama_gpu.engine.request import CompletionRequest
from dllama_gpu.tokenizer.thoughts import BEGIN, END, begins_thoughts
from dllama_gpu.tokenizer.tokenizer import Tokenizer


class Thoughts(Enum):
    """What is looked for at the beginning of an answer."""

    NOT_TOLD_APART = auto()
    POSSIBLE = auto()
    BEGUN = auto()
    """The prompt's end has begun them."""


@dataclass(frozen=True)
class _Prepared:
    requests: Sequence[CompletionRequest]
    toolbox: Toolbox
    model: str
    thoughts: Thoughts


async def complete_chat(service: Service, request: Request, fields: ChatRequest) -> Response:
    """Answers a conversation. Raises ApiError."""
    context = context_of(request)
    prepared = await anyio.to_thread.run_sync(_prepare, service, fields, context)
    submission = Submission(service.engine, prepared.requests, service.active, "messages")
    choices = [_choice(service, prepared, fields) for _ in prepared.requests]
    answer = _ChatAnswer(service.tokenizer, prepared.model, choices)
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


def _prepare(service: Service, fields: ChatRequest, context: RequestContext) -> _Prepared:
    """Everything that takes time before the engine is asked: template, tokens, grammar."""
    model = check_model(service, fields.model)
    if service.template is None:
        raise ApiError(
            400,
            "this model has no chat template, so it cannot chat; use /v1/completions, or start the server with "
            "--chat-template",
            code="no_chat_template",
        )
    toolbox = select_tools(fields)
    n_logprobs = chat_logprobs(fields)
    grammar = _grammar(service, fields, toolbox)
    is_constrained = grammar is not None
    variables = _template_variables(fields, is_constrained=is_constrained)
    tells_reasoning = service.tells_reasoning(fields.reasoning_format)
    prompt = encode_messages(
        service.template,
        service.tokenizer,
        fields.messages,
        tools=toolbox.tools,
        tool_format=service.tool_format,
        drops_thoughts=tells_reasoning,
        without_thinking=is_constrained or variables.get("enable_thinking") is False,
        variables=variables,
    )
    requests = make_requests(
        service,
        fields,
        [prompt],
        max_tokens=fields.max_completion_tokens or fields.max_tokens or NO_LIMIT,
        n_logprobs=n_logprobs,
        grammar=grammar,
        client=context.client,
        request_id=context.id,
    )
    thoughts = Thoughts.NOT_TOLD_APART
    if tells_reasoning and not is_constrained:
        thoughts = Thoughts.BEGUN if begins_thoughts(service.tokenizer, prompt) else Thoughts.POSSIBLE
    return _Prepared(requests, toolbox, model, thoughts)


def _template_variables(fields: ChatRequest, *, is_constrained: bool) -> dict[str, Any]:
    """What the template is told beside the messages. An answer of a given form has no room for thoughts."""
    variables: dict[str, Any] = {}
    if is_constrained or fields.reasoning_effort == "none":
        variables["enable_thinking"] = False
    if fields.reasoning_effort not in (None, "none"):
        variables["reasoning_effort"] = fields.reasoning_effort
    return {**variables, **(fields.chat_template_kwargs or {})}


def _grammar(service: Service, fields: ChatRequest, toolbox: Toolbox) -> str | None:
    rule = answer_rule(fields)
    if rule is not None:
        check_grammar(service, f"start: {rule}", "response_format")
    if not toolbox.callable or not (toolbox.is_required or rule is not None):
        return None if rule is None else f"start: {rule}"
    grammar = call_grammar(
        toolbox.callable,
        service.tool_format or ToolFormat.HERMES,
        service.tokenizer,
        parallel=toolbox.forces_parallel,
        answer_rule=None if toolbox.is_required else rule,
    )
    check_grammar(service, grammar, "tools")
    return grammar


def _choice(service: Service, prepared: _Prepared, fields: ChatRequest) -> Choice:
    toolbox, thoughts = prepared.toolbox, prepared.thoughts
    marks: list[str] = []
    reasoning = parser = None
    if thoughts is not Thoughts.NOT_TOLD_APART:
        reasoning = ReasoningParser(begun=thoughts is Thoughts.BEGUN)
        marks += [BEGIN, END]
    if toolbox.callable:
        tool_format = service.tool_format or ToolFormat.HERMES
        parser = ToolCallParser(tool_format, [tool.function.name for tool in toolbox.callable])
        marks.append(tool_format.begin)
    return Choice(
        wants_logprobs=bool(fields.logprobs),
        reasoning=reasoning,
        parser=parser,
        marks=[HiddenMark(token, text) for text in marks if (token := _hidden_id(service.tokenizer, text)) is not None],
        max_calls=None if toolbox.parallel else 1,
    )


def _hidden_id(tokenizer: Tokenizer, text: str) -> int | None:
    """The token that stands for a text and is not shown to readers."""
    token = tokenizer.special_ids.get(text)
    return token if token is not None and tokenizer.is_special(token) else None


class _ChatAnswer:
    """Writes what comes of the choices in the shape of a chat."""

    def __init__(self, tokenizer: Tokenizer, model: str, choices: Sequence[Choice]) -> None:
        self._tokenizer = tokenizer
        self._choices = choices
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": f"dllama-gpu-{dllama_gpu.__version__}",
        }

    async def whole(self, submission: Submission, context: RequestContext) -> dict[str, Any]:
        """The answer in one piece."""
        gathered = [Delta() for _ in self._choices]
        async for index, delta in deltas(submission, self._choices):
            gathered[index] = _joined(gathered[index], delta)
        usage = total_usage(self._choices, len(self._choices))
        context.completed(usage)
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [self._message(index, delta) for index, delta in enumerate(gathered)],
            "usage": usage,
        }

    async def chunks(
        self, submission: Submission, context: RequestContext, *, wants_usage: bool
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The answer as it comes, and the usage at the end if that is wanted."""
        n_calls = [0] * len(self._choices)
        for index in range(len(self._choices)):
            yield self._chunk(index, {"role": "assistant", "content": ""}, wants_usage=wants_usage)
        async for index, delta in deltas(submission, self._choices):
            part: dict[str, Any] = {"reasoning_content": delta.reasoning} if delta.reasoning else {}
            if delta.text:
                part["content"] = delta.text
            if delta.calls:
                first = n_calls[index]
                part["tool_calls"] = [_call(call, first + place) for place, call in enumerate(delta.calls)]
                n_calls[index] += len(delta.calls)
            if part or delta.tokens:
                yield self._chunk(index, part or {"content": ""}, delta, wants_usage=wants_usage)
            if delta.finish_reason is not None:
                yield self._chunk(index, {}, reason=delta.finish_reason, wants_usage=wants_usage)
        usage = total_usage(self._choices, len(self._choices))
        context.completed(usage)
        if wants_usage:
            yield {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage}

    def _chunk(
        self,
        index: int,
        part: dict[str, Any],
        delta: Delta | None = None,
        *,
        reason: str | None = None,
        wants_usage: bool,
    ) -> dict[str, Any]:
        tokens = () if delta is None else delta.tokens
        choice = {
            "index": index,
            "delta": part,
            "logprobs": chat_logprobs_json(self._tokenizer, tokens) if tokens else None,
            "finish_reason": reason,
        }
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": [choice]}
        return {**chunk, "usage": None} if wants_usage else chunk

    def _message(self, index: int, delta: Delta) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if delta.calls and not delta.text else delta.text,
            "refusal": None,
        }
        if delta.reasoning:
            message["reasoning_content"] = delta.reasoning
        if delta.calls:
            message["tool_calls"] = [_call(call) for call in delta.calls]
        return {
            "index": index,
            "message": message,
            "logprobs": chat_logprobs_json(self._tokenizer, delta.tokens) if delta.tokens else None,
            "finish_reason": delta.finish_reason,
        }


def _joined(first: Delta, second: Delta) -> Delta:
    return replace(
        second,
        text=first.text + second.text,
        reasoning=first.reasoning + second.reasoning,
        calls=(*first.calls, *second.calls),
        tokens=(*first.tokens, *second.tokens),
    )


def _call(call: ParsedCall, index: int | None = None) -> dict[str, Any]:
    described = {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
    return described if index is None else {"index": index, **described}
