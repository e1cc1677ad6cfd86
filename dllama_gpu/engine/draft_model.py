"""Guesses from a smaller model of the same vocabulary, which runs on the root alone."""

from __future__ import annotations

from collections.abc import Sequence

from dllama_gpu.engine.drafting import DraftWish
from dllama_gpu.engine.scheduler import common_prefix
from dllama_gpu.errors import DllamaError
from dllama_gpu.graph.batch import Batch, Program, Row
from dllama_gpu.tokenizer.tokenizer import Tokenizer

_COMPARED_TOKENS = 1000


class ModelDrafter:
    """Guesses what another model finds likeliest, one after the other, for all wishes together.

    Its program has as many slots as the main one; texts longer than its context get no guesses. A prompt is read in
    steps of its `max_rows`, one a call, so that it never holds up the others for long. Source: Leviathan et al., "Fast
    Inference from Transformers via Speculative Decoding" (2023).
    """

    def __init__(self, program: Program, name: str, n_known_ids: int) -> None:
        self._program = program
        self._name = name
        self._n_known_ids = n_known_ids
        self._held: dict[int, list[int]] = {}

    @property
    def name(self) -> str:
        """For people."""
        return self._name

    def draft(self, wishes: Sequence[DraftWish]) -> list[list[int]]:
        """See `Drafter`. Raises DllamaError when the program fails."""
        drafts: list[list[int]] = [[] for _ in wishes]
        ready = self._catch_up(wishes)
        while ready:
            guesses = self._step([(wishes[i].slot, [*wishes[i].tokens, *drafts[i]]) for i in ready])
            still = []
            for i, guess in zip(ready, guesses, strict=True):
                if not 0 <= guess < self._n_known_ids:
                    continue
                drafts[i].append(guess)
                has_room = len(wishes[i].tokens) + len(drafts[i]) <= self._program.graph.seq_len
                if len(drafts[i]) < wishes[i].n and has_room:
                    still.append(i)
            ready = still
        return drafts

    def forget(self, slot: int) -> None:
        """See `Drafter`; what the slot holds may still be the beginning of what comes."""

    def _catch_up(self, wishes: Sequence[DraftWish]) -> list[int]:
        """Reads what is new in one step; the wishes of which then one token is left, which is the one to guess from."""
        rows: list[Row] = []
        ready = []
        for i, wish in enumerate(wishes):
            if len(wish.tokens) > self._program.graph.seq_len:
                continue
            held = self._held.setdefault(wish.slot, [])
            del held[min(common_prefix(held, list(wish.tokens)), len(wish.tokens) - 1) :]
            room = self._program.graph.max_rows - len(rows)
            new = list(wish.tokens[len(held) : min(len(wish.tokens) - 1, len(held) + room)])
            rows += [Row(token, wish.slot, len(held) + j) for j, token in enumerate(new)]
            held += new
            if len(held) == len(wish.tokens) - 1:
                ready.append(i)
        if rows:
            self._program.run(Batch.of(rows))
        return ready

    def _step(self, texts: Sequence[tuple[int, list[int]]]) -> list[int]:
        """The likeliest token after each text, of which all but the last token is held."""
        rows = [Row(tokens[-1], slot, len(tokens) - 1, wants_logits=True) for slot, tokens in texts]
        limit = min(self._program.graph.max_rows, self._program.graph.max_logit_rows or len(rows))
        guesses: list[int] = []
        for begin in range(0, len(rows), limit):
            part = rows[begin : begin + limit]
            self._program.run(Batch.of(part))
            guesses += [int(token) for token in self._program.buffer("candidate_ids", len(part))[:, 0]]
        for slot, tokens in texts:
            self._held[slot].append(tokens[-1])
        return guesses


def check_same_vocabulary(tokenizer: Tokenizer, draft: Tokenizer, name: str) -> None:
    """Raises DllamaError unless a draft model's tokens are those of the main model."""
    n_ids = min(tokenizer.vocab_size, draft.vocab_size)
    step = max(1, n_ids // _COMPARED_TOKENS)
    differing = [i for i in range(0, n_ids, step) if tokenizer.token_bytes(i) != draft.token_bytes(i)]
    if tokenizer.vocab_size != draft.vocab_size or differing:
        what = (
            f"it has {draft.vocab_size} tokens and the model {tokenizer.vocab_size}"
            if tokenizer.vocab_size != draft.vocab_size
            else f"their tokens {differing[0]} differ"
        )
        raise DllamaError(
            f"the draft model {name} has another vocabulary than the model ({what}); take one of its family"
        )
