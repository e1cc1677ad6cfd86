"""What a user asks of the engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dllama_gpu.engine.sampling import SamplingParams
from dllama_gpu.errors import DllamaError

MAX_LOGPROBS = 20


class Constraint(Protocol):
    """A grammar that says which tokens may come next; an adapter over a grammar library. Used by one request alone.

    The engine calls `allowed`, chooses a token of those, calls `advance` with it, and so on, always on its own thread.
    """

    def allowed(self) -> npt.NDArray[np.bool_]:
        """A mask (n,) over token ids, n at most the model's vocabulary; ids past its end are not allowed.

        End tokens are in it where the grammar allows an end. The engine does not keep or change it.
        """

    def advance(self, token: int) -> None:
        """The token was chosen. Not called for an end token."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing but an end can follow; the engine then ends the text without asking the model."""


@dataclass(frozen=True, eq=False)
class CompletionRequest:
    """A prompt to continue, and when to stop. Of `n` choices for one prompt each is a request of its own.

    At most `max_tokens` are generated, and fewer when the context is full. A token of `end_ids` or a text of `stop`
    ends the answer and is no part of it. `n_logprobs` None wants no logprobs, 0 only those of the chosen tokens.
    `timeout_seconds`, counted from the submission, ends the request with what it has.

    Raises DllamaError for a number out of range or an empty stop text.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    end_ids: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()
    n_logprobs: int | None = None
    constraint: Constraint | None = None
    timeout_seconds: float | None = None
    client: str = ""
    """Who asks. When slots are short, clients take turns, whatever number of requests each has."""
    request_id: str = ""
    """For logs."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise DllamaError(f"the number of tokens to generate is {self.max_tokens}, but it must be at least 1")
        if not all(self.stop):
            raise DllamaError("a stop text is empty; leave it out")
        if self.n_logprobs is not None and not 0 <= self.n_logprobs <= MAX_LOGPROBS:
            raise DllamaError(f"{self.n_logprobs} logprobs a token are wanted, but it must be 0 to {MAX_LOGPROBS}")
