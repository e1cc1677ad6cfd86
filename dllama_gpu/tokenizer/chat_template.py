"""Messages to the text and the ids that a chat model expects."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dllama_gpu.errors import DllamaError
from dllama_gpu.tokenizer.chat_kinds import CHAT_KINDS, chat_kind, detect_chat_kind
from dllama_gpu.tokenizer.template_program import TemplateProgram
from dllama_gpu.tokenizer.thoughts import without_begun_thoughts
from dllama_gpu.tokenizer.tokenizer import Tokenizer

Message = Mapping[str, Any]
"""`role` ("system", "user", "assistant" …) and `content`, and whatever else the model's template knows."""

_MARK = "\ufdd0"


class ChatTemplate:
    """A model's chat format. Immutable; may be used by several threads at a time."""

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        """`source` is a Jinja template; `bos_token` and `eos_token` are the texts it may write.

        A text without any Jinja statement only selects a kind (see `chat_kinds`), as all templates do in the original
        program. Raises DllamaError when the template is not understood.
        """
        if "{{" not in source and "{%" not in source:
            kind = detect_chat_kind(source)
            if kind is None:
                raise DllamaError(
                    f"the chat template {source[:40]!r} is neither a Jinja template nor the mark of a known one; "
                    f"choose one with --chat-template ({', '.join(CHAT_KINDS)})",
                )
            source = CHAT_KINDS[kind]
        self._source = source
        self._program = TemplateProgram(source)
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}

    @classmethod
    def for_tokenizer(cls, tokenizer: Tokenizer, kind: str | None = None) -> ChatTemplate:
        """The template that the tokenizer's file stores, or the `kind` asked for (`chat_kinds.CHAT_KINDS`).

        Raises DllamaError when there is none, the kind is unknown, or the template is not understood.
        """
        source = tokenizer.chat_template
        if kind is not None:
            source = chat_kind(kind)
        if source is None:
            raise DllamaError(
                "the tokenizer's file holds no chat template; "
                f"choose one with --chat-template ({', '.join(CHAT_KINDS)})",
            )
        bos_id, eos_ids = tokenizer.bos_id, tokenizer.eos_ids
        return cls(
            source,
            bos_token="" if bos_id is None else tokenizer.token_bytes(bos_id).decode("utf-8", "replace"),
            eos_token=tokenizer.token_bytes(eos_ids[0]).decode("utf-8", "replace") if eos_ids else "",
        )

    @property
    def source(self) -> str:
        """The Jinja template."""
        return self._source

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as one text; with `add_generation_prompt` it ends where the model's answer begins.

        `variables` are what else the template may know: `tools`, `enable_thinking` … Raises DllamaError when the
        template refuses the messages or fails.
        """
        own = {"messages": list(messages), "add_generation_prompt": add_generation_prompt, **self._tokens}
        return self._program.render({**(variables or {}), **own})


def encode_chat(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    variables: Mapping[str, Any] | None = None,
    without_thinking: bool = False,
) -> list[int]:
    """Ids of a conversation, in which only the template can write special tokens, never a message or a variable.

    Before rendering, a mark (a noncharacter, which text for interchange cannot hold) is put behind every character of
    the messages with which the text of a special token begins. So none can come out of a message, whatever the template
    does with it: trim, cut, join, compare. After rendering, special tokens are recognized and the marks taken out.
    Tags that are shown to the reader, such as `</think>`, stay whole in the assistant's messages, because templates
    look for them there. Some templates build a tag around the role, so users may choose only among known roles.
    With `without_thinking`, thoughts that the template itself begins for the answer are ended at once.

    Raises DllamaError when the template refuses the messages or fails.
    """
    guarded = [_guarded(message, tokenizer) for message in messages]
    text = template.render(
        guarded,
        add_generation_prompt=add_generation_prompt,
        variables=None if variables is None else _guarded(variables, tokenizer),
    )
    if without_thinking:
        text = without_begun_thoughts(text)
    parts = (part.replace(_MARK, "") if isinstance(part, str) else part for part in tokenizer.split_special(text))
    return tokenizer.encode_parts(parts)


def _guarded(message: Message, tokenizer: Tokenizer) -> dict[str, Any]:
    shown = [text for text, token_id in tokenizer.special_ids.items() if not tokenizer.is_special(token_id)]
    first_characters = {text.lstrip()[:1] for text in tokenizer.special_ids} - {""}
    kept = shown if message.get("role") == "assistant" else []
    pattern = re.compile("|".join(map(re.escape, (*kept, *first_characters))) or r"(?!)")

    def guard(match: re.Match[str]) -> str:
        return match.group() + (_MARK if match.group() in first_characters else "")

    def protect(value: Any) -> Any:
        if isinstance(value, str):
            return pattern.sub(guard, value.replace(_MARK, ""))
        if isinstance(value, Mapping):
            # Names that a template looks for are identifiers; anything else may be written out by it.
            return {key if key.isidentifier() else protect(key): protect(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [protect(item) for item in value]
        return value

    return {key: protect(value) for key, value in message.items()}
