"""How families of models write calls of functions.

====== ============================================================ ===========================================
hermes `<tool_call>{"name": …, "arguments": {…}}</tool_call>`       Hermes 2 and 3, Qwen 2.5 and 3, SmolLM 3
llama3 `{"name": …, "parameters": {…}}` is the whole answer         Llama 3.1 to 3.3
mistral `[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`             Mistral 7B v0.3, Nemo, Mixtral
====== ============================================================ ===========================================

A model whose chat template knows no tools, or another form, is told of them in a system message, in the form of Hermes.

Sources: the chat templates of these models; Llama's "Tool calling (JSON based)" documentation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from enum import Enum

from dllama_gpu.api.constraints import json_rule
from dllama_gpu.api.requests import Tool
from dllama_gpu.tokenizer.tokenizer import Tokenizer

MAX_PARALLEL_CALLS = 8
HERMES_BEGIN, HERMES_END = "<tool_call>", "</tool_call>"
LLAMA3_BEGIN = "<|python_tag|>"
_XML_CALL = re.compile("<function=|<arg_key>|<parameter=")
MISTRAL_BEGIN = "[TOOL_CALLS]"


class ToolFormat(Enum):
    """A family's way to write calls."""

    HERMES = "hermes"
    LLAMA3 = "llama3"
    MISTRAL = "mistral"

    @property
    def begin(self) -> str:
        """What stands before a call; with Llama 3 it may be left out."""
        return {self.HERMES: HERMES_BEGIN, self.LLAMA3: LLAMA3_BEGIN, self.MISTRAL: MISTRAL_BEGIN}[self]

    @property
    def arguments_key(self) -> str:
        """Under which name a call gives its arguments."""
        return "parameters" if self is ToolFormat.LLAMA3 else "arguments"


def detect_tool_format(template: str | None) -> ToolFormat | None:
    """The format that a chat template tells its model to use; None when it knows no tools, or another format."""
    if template is None or "tools" not in template:
        return None
    if MISTRAL_BEGIN in template:
        return None if "[ARGS]" in template else ToolFormat.MISTRAL  # newer ones write a name and no list
    if HERMES_BEGIN in template:  # others put XML between the same tags
        return ToolFormat.HERMES if "arguments" in template and not _XML_CALL.search(template) else None
    is_llama = LLAMA3_BEGIN in template or "<|start_header_id|>" in template
    return ToolFormat.LLAMA3 if is_llama and "parameters" in template else None


def call_grammar(
    tools: Sequence[Tool], tool_format: ToolFormat, tokenizer: Tokenizer, *, parallel: bool, answer_rule: str | None
) -> str:
    """A grammar for one call of one of `tools`, or up to eight with `parallel`.

    With `answer_rule`, JSON that follows it may come in place of calls. Raises GrammarError for a huge schema.
    """
    rules = []
    for index, tool in enumerate(tools):
        head = json.dumps({"name": tool.function.name})[:-1] + f', "{tool_format.arguments_key}": '
        rules.append(f"call_{index}: {json.dumps(head)} arguments_{index} {json.dumps('}')}")
        rules.append(f"arguments_{index}: {json_rule(tool.function.parameters or None)}")
    call = " | ".join(f"call_{index}" for index in range(len(tools)))
    more = MAX_PARALLEL_CALLS - 1 if parallel else 0
    begin = _begin(tool_format, tokenizer)
    if tool_format is ToolFormat.HERMES:
        whole = f'{begin} "\\n" call "\\n" {json.dumps(HERMES_END)}'
        calls = f'whole ("\\n" whole){{0,{more}}}' if more else "whole"
        rules.append(f"whole: {whole}")
    elif tool_format is ToolFormat.MISTRAL:
        calls = f'{begin} "[" call (", " call){{0,{more}}} "]"' if more else f'{begin} "[" call "]"'
    else:
        calls = "call"
    start = "calls" if answer_rule is None else "calls | answer"
    if answer_rule is not None:
        rules.append(f"answer: {answer_rule}")
    return "\n".join([f"start: {start}", f"calls: {calls}", f"call: {call}", *rules])


def _begin(tool_format: ToolFormat, tokenizer: Tokenizer) -> str:
    """The beginning of a call in a grammar: a hidden token by its id, everything else as text."""
    token_id = tokenizer.special_ids.get(tool_format.begin)
    if token_id is not None and tokenizer.is_special(token_id):
        return f"<[{token_id}]>"
    return json.dumps(tool_format.begin)
