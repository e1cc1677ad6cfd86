"""`reasoning_content` out of a model's text, while it comes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

from dllama_gpu.tokenizer.thoughts import ThoughtSplitter, mentions_thoughts

ReasoningFormat: TypeAlias = Literal["auto", "deepseek", "none"]
"""`deepseek` tells thoughts apart, as DeepSeek's API does; `auto` where the chat template knows of any."""


def tells_reasoning(wanted: ReasoningFormat, template: str | None) -> bool:
    """Whether thoughts are told apart from answers."""
    return template is not None and (wanted == "deepseek" or (wanted == "auto" and mentions_thoughts(template)))


class ReasoningParser:
    """Separates thoughts from what is said. Blanks around thoughts, between their tags and the words, are nobody's."""

    def __init__(self, *, begun: bool) -> None:
        """With `begun`, the prompt's end has begun the thoughts."""
        self._splitter = ThoughtSplitter(begun=begun)
        self._blanks = ""
        self._has_thought_text = self._has_said_text = False
        self.n_tokens = 0
        """How many tokens were thoughts, tags included."""

    def push(self, text: str) -> tuple[str, str]:
        """What is certain now that a token with this text has come: of thoughts, and of what is said."""
        was_thinking = self._splitter.is_thinking
        parts = self._sorted(self._splitter.push(text))
        self.n_tokens += was_thinking or self._splitter.is_thinking
        return parts

    def finish(self, text: str) -> tuple[str, str]:
        """The rest, with the text that was held back until the answer's end."""
        return self._sorted([*self._splitter.push(text), *self._splitter.flush()])

    def _sorted(self, parts: Iterable[tuple[bool, str]]) -> tuple[str, str]:
        thought = said = ""
        for is_thought, text in parts:
            if is_thought:
                thought += self._thought(text)
            else:
                said += self._said(text)
        return thought, said

    def _thought(self, text: str) -> str:
        """Blanks at the end wait until more comes."""
        text = self._blanks + text
        shown = text.rstrip()
        self._blanks = text[len(shown) :]
        if not self._has_thought_text:
            shown = shown.lstrip()
        self._has_thought_text = self._has_thought_text or bool(shown)
        return shown

    def _said(self, text: str) -> str:
        if self._splitter.has_thought and not self._has_said_text:
            text = text.lstrip()
        self._has_said_text = self._has_said_text or bool(text)
        return text
