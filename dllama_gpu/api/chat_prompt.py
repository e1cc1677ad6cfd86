"""OpenAI's messages and tools to the ids of a prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dllama_gpu.api.errors import ApiError
from dllama_gpu.api.requests import AssistantMessage, Content, Message, SystemMessage, Tool, ToolCall, ToolMessage
from dllama_gpu.api.tool_formats import HERMES_BEGIN, HERMES_END, ToolFormat
from dllama_gpu.errors import DllamaError
from dllama_gpu.tokenizer.chat_template import ChatTemplate, encode_chat
from dllama_gpu.tokenizer.thoughts import without_thoughts
from dllama_gpu.tokenizer.tokenizer import Tokenizer

_OWN_VARIABLES = frozenset(("messages", "tools", "add_generation_prompt", "bos_token", "eos_token"))


def encode_messages(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[Tool] = (),
    tool_format: ToolFormat | None = None,
    drops_thoughts: bool = False,
    without_thinking: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """Ids of the conversation up to where the answer begins.

    `tool_format` is what the template knows; where that is None, tools, calls and results are written out as text.
    What was thought before an answer is told to the template only behind the last question, between calls of
    functions; with `drops_thoughts`, thoughts in the contents of earlier answers are left out too. With
    `without_thinking`, the answer begins without thoughts, also where the template begins them.
    Takes its time with long conversations. Raises ApiError 400 when the template does not take the messages.
    """
    for name in variables or {}:
        if name in _OWN_VARIABLES:
            raise ApiError(
                400, f"chat_template_kwargs.{name} is set by the server; leave it out", param="chat_template_kwargs"
            )
    last_question = max((index for index, message in enumerate(messages) if message.role == "user"), default=-1)
    described = [
        _described(message, index, is_earlier=index < last_question, drops_thoughts=drops_thoughts)
        for index, message in enumerate(messages)
    ]
    known: dict[str, Any] = dict(variables or {})
    if tool_format is None:
        described = _without_tools(described, tools)
    elif tools:
        known["tools"] = [tool.model_dump(exclude_none=True) for tool in tools]
        if "xml_tools" in template.source:  # SmolLM3's name for them
            known.setdefault("xml_tools", known["tools"])
    try:
        return encode_chat(template, tokenizer, described, variables=known, without_thinking=without_thinking)
    except DllamaError as error:
        raise ApiError(400, str(error), param="messages", code="invalid_messages") from None


def _described(message: Message, index: int, *, is_earlier: bool, drops_thoughts: bool) -> dict[str, Any]:
    """The message as chat templates expect it: `developer` is `system`, arguments are objects, content is a text."""
    role = "system" if isinstance(message, SystemMessage) else message.role
    described: dict[str, Any] = {"role": role, "content": _text(message.content)}
    if message.name is not None:
        described["name"] = message.name
    if isinstance(message, ToolMessage):
        described["tool_call_id"] = message.tool_call_id
    if isinstance(message, AssistantMessage):
        if is_earlier and drops_thoughts:
            described["content"] = without_thoughts(described["content"])
        if not is_earlier and (reasoning := message.reasoning_content or message.reasoning):
            described["reasoning_content"] = reasoning
        if message.tool_calls:
            described["tool_calls"] = [
                _call(call, f"messages[{index}].tool_calls[{place}].function.arguments")
                for place, call in enumerate(message.tool_calls)
            ]
    return described


def _text(content: Content | None) -> str:
    if content is None:
        return ""
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _call(call: ToolCall, place: str) -> dict[str, Any]:
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise ApiError(400, f"{place} should be a JSON object as text", param=place, code="invalid_value")
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def _without_tools(messages: Sequence[dict[str, Any]], tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The same conversation for a template that knows no tools: they stand in the texts, in the form of Hermes."""
    plain = []
    for message in messages:
        calls = message.pop("tool_calls", ())
        if calls:
            written = (f"{HERMES_BEGIN}\n{_json(call['function'])}\n{HERMES_END}" for call in calls)
            message = {**message, "content": "\n".join(filter(None, (message["content"], *written)))}
        if message["role"] == "tool":
            message = {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
        plain.append(message)
    if not tools:
        return plain
    introduction = _introduction(tools)
    if plain[0]["role"] == "system":
        return [{**plain[0], "content": f"{plain[0]['content']}\n\n{introduction}"}, *plain[1:]]
    return [{"role": "system", "content": introduction}, *plain]


def _introduction(tools: Sequence[Tool]) -> str:
    functions = "\n".join(_json(tool.function.model_dump(exclude_none=True)) for tool in tools)
    return (
        "You can call these functions, each described by a JSON schema:\n"
        f"<tools>\n{functions}\n</tools>\n"
        "To call one, answer with its name and arguments in this form:\n"
        f'{HERMES_BEGIN}\n{{"name": "the function", "arguments": {{"an argument": "its value"}}}}\n{HERMES_END}\n'
        "The result comes back between <tool_response> and </tool_response>."
    )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
