"""The model's side of a chat: messages in, text out, by an engine whose slot remembers the conversation."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from dllama_gpu.engine.engine import Engine
from dllama_gpu.engine.events import Event, FailedEvent, FinishedEvent, FinishReason, Timings, TokenEvent, Usage
from dllama_gpu.engine.request import CompletionRequest
from dllama_gpu.engine.sampling import SamplingParams
from dllama_gpu.tokenizer.chat_template import ChatTemplate, encode_chat
from dllama_gpu.tokenizer.thoughts import BEGIN, begins_thoughts, without_thoughts
from dllama_gpu.tokenizer.tokenizer import Tokenizer

_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Outcome:
    """How an answer ended and what it cost."""

    reason: FinishReason
    usage: Usage
    timings: Timings

    @property
    def n_positions(self) -> int:
        """Positions of the context that prompt and answer take."""
        return self.usage.n_prompt_tokens + self.usage.n_generated_tokens


class Answering:
    """Answers conversations with an engine that nobody else uses.

    Each answer is drawn with a seed of its own, counted up from that of `sampling`, so that a chat can be repeated and
    an answer still be tried again.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        sampling: SamplingParams,
        max_tokens: int | None,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._template = template
        self._sampling = sampling
        self._max_tokens = max_tokens
        self._n_answers = 0
        self.outcome: Outcome | None = None
        """That of the last answer."""
        self.thinks: bool | None = None
        """Whether the template is to have the model think first; None: as it likes."""

    @property
    def seq_len(self) -> int:
        """Positions of the context."""
        return self._engine.seq_len

    def encode(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Ids of a conversation up to where its next answer begins, without the thoughts before earlier answers.

        Raises DllamaError when the template refuses it.
        """
        said = [
            {**message, "content": without_thoughts(message["content"])} if message["role"] == "assistant" else message
            for message in messages
        ]
        variables = None if self.thinks is None else {"enable_thinking": self.thinks}
        return encode_chat(self._template, self._tokenizer, said, variables=variables)

    @property
    def can_choose_thinking(self) -> bool:
        """Whether the template looks at `thinks`."""
        return "enable_thinking" in self._template.source

    def answer(self, prompt: Sequence[int], should_stop: Callable[[], bool]) -> Iterator[str]:
        """Yields the answer in pieces of text; it ends soon, with a whole token, once `should_stop` is true.

        What the engine has of the prompt already is not computed again. Where the template itself begins the model's
        thoughts, its first piece begins with that tag. Raises DllamaError when the model fails.
        """
        seed = self._sampling.seed
        request = CompletionRequest(
            prompt=tuple(prompt),
            max_tokens=self._max_tokens or self.seq_len,
            sampling=self._sampling if seed is None else replace(self._sampling, seed=(seed + self._n_answers) % 2**64),
            end_ids=frozenset(self._tokenizer.eos_ids),
        )
        self._n_answers += 1
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        ticket = self._engine.submit(request, events.put)
        try:
            begun = f"{BEGIN}\n" if begins_thoughts(self._tokenizer, prompt) else ""
            while True:
                try:
                    event = events.get(timeout=_POLL_SECONDS)
                except queue.Empty:
                    event = None
                if should_stop():
                    ticket.cancel()
                if isinstance(event, TokenEvent):
                    yield begun + event.text
                    begun = ""
                elif isinstance(event, FinishedEvent):
                    self.outcome = Outcome(event.reason, event.usage, event.timings)
                    yield event.text
                    return
                elif isinstance(event, FailedEvent):
                    raise event.error
        finally:
            ticket.cancel()
