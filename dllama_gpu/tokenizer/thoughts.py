"""Tells what a reasoning model thinks from what it says, by the tags of Qwen 3, DeepSeek R1, SmolLM3 and others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum, auto

from dllama_gpu.tokenizer.tokenizer import Tokenizer

BEGIN, END = "<think>", "</think>"
_TAG_TOKENS = 12  # more than any vocabulary needs to write the tag and a line end


class _Place(Enum):
    START = auto()
    THINKING = auto()
    SAYING = auto()


class ThoughtSplitter:
    """Splits an answer that comes in pieces. Thoughts begin with `<think>` at its very start and end at `</think>`.

    With `begun`, they began before the answer, which may write the first tag once more.
    """

    def __init__(self, *, begun: bool = False) -> None:
        self._begun = begun
        self._place = _Place.START
        self._rest = ""
        self.has_thought = False
        """Whether there were thoughts, or at least their tags."""

    @property
    def is_thinking(self) -> bool:
        """Whether what comes next is thought, as far as that is known."""
        return self._place is _Place.THINKING or (self._begun and self._place is _Place.START)

    def push(self, piece: str) -> Iterator[tuple[bool, str]]:
        """Yields texts, and of each whether it is thought; what may be the beginning of a tag waits for more."""
        self._rest += piece
        if self._place is _Place.START:
            begun = self._rest.lstrip()
            if begun.startswith(BEGIN):
                self._place, self._rest = _Place.THINKING, begun.removeprefix(BEGIN)
            elif not BEGIN.startswith(begun):
                self._place = _Place.THINKING if self._begun else _Place.SAYING
        if self._place is _Place.THINKING:
            self.has_thought = True
            thought, end, said = self._rest.partition(END)
            if end:
                self._place, self._rest = _Place.SAYING, said
            else:
                n_kept = _n_begun(thought)
                thought, self._rest = thought[: len(thought) - n_kept], thought[len(thought) - n_kept :]
            if thought:
                yield True, thought
        if self._place is _Place.SAYING and self._rest:
            yield False, self._rest
            self._rest = ""

    def flush(self) -> Iterator[tuple[bool, str]]:
        """Yields what waited, now that nothing more comes."""
        if self._rest:
            yield self.is_thinking, self._rest
            self._rest = ""


def mentions_thoughts(template: str) -> bool:
    """Whether a chat template is that of a model that may think before it answers."""
    return BEGIN in template or END in template


def begins_thoughts(tokenizer: Tokenizer, prompt: Sequence[int]) -> bool:
    """Whether a prompt's end has the model think: some templates write the tag themselves."""
    return tokenizer.decode(prompt[-_TAG_TOKENS:], skip_special=False).rstrip().endswith(BEGIN)


def without_begun_thoughts(prompt: str) -> str:
    """The prompt, with an end to the thoughts that it begins for the answer: some templates always begin them."""
    begun = prompt.rstrip()
    return f"{begun}\n\n{END}\n\n" if begun.endswith(BEGIN) else prompt


def without_thoughts(answer: str) -> str:
    """What a whole answer says."""
    splitter = ThoughtSplitter()
    parts = [*splitter.push(answer), *splitter.flush()]
    said = "".join(text for is_thought, text in parts if not is_thought)
    return said.lstrip() if splitter.has_thought else said


def _n_begun(text: str) -> int:
    """How many characters at the end of the text may be the beginning of `END`."""
    return next(n for n in range(len(END) - 1, -1, -1) if text.endswith(END[:n]))
