"""The model's side of a chat: messages in, text out, in one KV slot that remembers what it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from dllama_gpu.engine.generation import (
    FinishReason,
    Generation,
    GenerationRequest,
    GenerationStatistics,
    PrefillProgress,
)
from dllama_gpu.engine.sampling import SamplingParams
from dllama_gpu.graph.batch import Program
from dllama_gpu.tokenizer.chat_template import ChatTemplate, encode_chat
from dllama_gpu.tokenizer.tokenizer import Tokenizer


class _StoppedError(Exception):
    """Leaves a generation between two chunks of its prompt."""


@dataclass(frozen=True)
class AnswerStatistics:
    """One answer: its prompt and how much of it was in the slot already, and the work done."""

    n_prompt_tokens: int
    n_reused_tokens: int
    n_answer_tokens: int
    work: GenerationStatistics


class Answering:
    """Answers conversations with a program that does nothing else meanwhile.

    Each answer is drawn with a seed of its own, counted up from that of `sampling`, so that a chat can be repeated and
    an answer still be tried again.
    """

    def __init__(
        self,
        program: Program,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        sampling: SamplingParams,
        max_tokens: int | None,
    ) -> None:
        self._program = program
        self._tokenizer = tokenizer
        self._template = template
        self._sampling = sampling
        self._max_tokens = max_tokens
        self._in_slot: list[int] = []
        self._n_answers = 0
        self.finish_reason: FinishReason | None = None
        """Why the last answer ended; None if it was stopped."""
        self.statistics: AnswerStatistics | None = None
        """Those of the last answer."""

    @property
    def seq_len(self) -> int:
        """Positions of the context."""
        return self._program.graph.seq_len

    @property
    def n_in_slot(self) -> int:
        """Positions of the context that are in use."""
        return len(self._in_slot)

    def encode(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Ids of a conversation up to where its next answer begins. Raises DllamaError when the template refuses it."""
        return encode_chat(self._template, self._tokenizer, messages)

    def answer(
        self, prompt: Sequence[int], should_stop: Callable[[], bool], on_prefill: PrefillProgress | None = None
    ) -> Iterator[str]:
        """Yields the answer in pieces of text; ends early, at a token's end, once `should_stop` is true.

        What the slot holds of the prompt already is not computed again. Raises DllamaError as `Generation` does.
        """
        n_reused = min(common_prefix(self._in_slot, prompt), len(prompt) - 1)
        seed = self._sampling.seed
        request = GenerationRequest(
            prompt=prompt,
            max_tokens=self._max_tokens or self.seq_len,
            sampling=self._sampling if seed is None else replace(self._sampling, seed=(seed + self._n_answers) % 2**64),
            end_ids=frozenset(self._tokenizer.eos_ids),
            n_known_ids=self._tokenizer.vocab_size,
        )
        generation = Generation(self._program, request, n_reused=n_reused)
        self._n_answers += 1

        def between_chunks(done: int, total: int) -> None:
            if on_prefill is not None:
                on_prefill(done, total)
            if should_stop() and done < total:
                raise _StoppedError

        stream = self._tokenizer.stream()
        answered: list[int] = []
        try:
            for token in generation.tokens(between_chunks):
                answered.append(token)
                yield stream.push(token)
                if should_stop():
                    break
            yield stream.flush()
        except _StoppedError:
            pass
        finally:
            self.finish_reason = generation.finish_reason
            self._in_slot = [*prompt, *answered][: generation.n_in_slot]
            self.statistics = AnswerStatistics(len(prompt), n_reused, len(answered), generation.statistics)


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two sequences have in common at their beginning."""
    for i, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return i
    return min(len(first), len(second))
