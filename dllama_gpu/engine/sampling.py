"""What a user asks of the choice of tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from dllama_gpu.errors import DllamaError

_LARGEST = 100.0


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen; the defaults of temperature and top_p are distributed-llama's.

    What is set takes effect in this order (that of Hugging Face transformers):

    1. Penalties change the logits of tokens already seen. `repetition_penalty` r, over prompt and generated tokens: a
       logit l becomes l / r if it is positive, else l * r (Keskar et al., "CTRL", 2019). `frequency_penalty` f and
       `presence_penalty` p, over generated tokens as in OpenAI's API: l - f * count - p. Then `logit_bias` is added to
       the logits of the ids in it.
    2. `temperature` divides the logits; 0 takes the largest, of equal ones the lowest id, and nothing below matters.
    3. `top_k` keeps the k likeliest tokens; 0 keeps all.
    4. `top_p` keeps the likeliest tokens until their share of what is left exceeds it; 1 keeps all (Holtzman et al.,
       "The Curious Case of Neural Text Degeneration", 2020).
    5. `min_p` keeps tokens that are at least so likely as this part of the likeliest; 0 keeps all (Nguyen et al.,
       "Turning Up the Heat", 2024).

    One of the tokens kept is drawn. `seed` None draws differently each time.

    Raises DllamaError for a number out of range.
    """

    temperature: float = 0.8
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        _require(
            "temperature",
            self.temperature,
            0.0 <= self.temperature <= _LARGEST,
            "0 (always the likeliest token) to 100",
        )
        _require("top_p", self.top_p, 0.0 < self.top_p <= 1.0, "above 0 and at most 1 (1 keeps all tokens)")
        _require("top_k", self.top_k, 0 <= self.top_k < 1 << 31, "0 (keeps all tokens) or more")
        _require("min_p", self.min_p, 0.0 <= self.min_p <= 1.0, "0 (keeps all tokens) to 1")
        _require(
            "repetition_penalty",
            self.repetition_penalty,
            0.01 <= self.repetition_penalty <= _LARGEST,
            "0.01 to 100 (1 changes nothing)",
        )
        for name, value in (
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
        ):
            _require(name, value, math.fabs(value) <= _LARGEST, "-100 to 100 (0 changes nothing)")
        for token, bias in self.logit_bias.items():
            _require(f"the logit bias of token {token}", bias, math.fabs(bias) <= _LARGEST, "-100 to 100")
        if self.seed is not None:
            _require("seed", self.seed, 0 <= self.seed < 1 << 64, "0 to 2**64 - 1")

    @property
    def is_greedy(self) -> bool:
        """Whether always the likeliest token is taken."""
        return self.temperature == 0.0

    @property
    def changes_logits(self) -> bool:
        """Whether penalties or a bias come before everything else."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return penalties != (1.0, 0.0, 0.0) or bool(self.logit_bias)


def _require(name: str, value: float, is_right: bool, wanted: str) -> None:
    if not is_right:  # also for NaN, which compares as False
        raise DllamaError(f"{name} is {value}, but it must be {wanted}")
