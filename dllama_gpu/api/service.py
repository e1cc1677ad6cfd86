"""What the endpoints work with: an engine, a tokenizer, and what the operator decided."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dllama_gpu.api.constraints import Grammars
from dllama_gpu.api.engine_interface import Engine
from dllama_gpu.api.reasoning import ReasoningFormat, tells_reasoning
from dllama_gpu.api.submission import ActiveSubmissions
from dllama_gpu.api.tool_formats import ToolFormat, detect_tool_format
from dllama_gpu.engine.sampling import SamplingParams
from dllama_gpu.tokenizer.chat_template import ChatTemplate
from dllama_gpu.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Settings:
    """What the operator decided."""

    model_names: tuple[str, ...]
    """By which requests may ask for the model; the first one is its id."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    """For what a request leaves out."""
    api_keys: tuple[str, ...] = ()
    """Any of these is needed; none: everybody may ask."""
    host_names: tuple[str, ...] = ()
    """Names of this server beside those that nobody else can own; without keys, others are refused."""
    cors_origins: tuple[str, ...] = ()
    """Whose pages may ask from a browser; `*`: all."""
    reasoning_format: ReasoningFormat = "auto"
    """Whether what a model thinks is told apart from what it says."""
    max_body_bytes: int = 16 << 20
    body_seconds: float = 60.0
    """How long a body may take to arrive."""
    request_seconds: float | None = None
    """How long a request may take, waiting for a slot included; None: as long as it likes."""
    write_seconds: float = 60.0
    """How long a client may take nothing of what is sent to it."""


class Node(Protocol):
    """A node that the model runs on, by `share` of all weight bytes."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def host(self) -> str | None:
        """Its machine's own name."""

    @property
    def device(self) -> str:
        """What it computes with."""

    @property
    def share(self) -> float:
        """0 to 1."""

    @property
    def weight_bytes(self) -> int:
        """Of its share."""

    @property
    def kv_cache_bytes(self) -> int:
        """For all slots."""

    @property
    def memory_bytes(self) -> int | None:
        """What it said is free."""

    @property
    def is_lost(self) -> bool:
        """Whether it was lost and takes no part now."""


@dataclass(frozen=True)
class Service:
    """A model that is loaded and can be asked."""

    engine: Engine
    tokenizer: Tokenizer
    template: ChatTemplate | None
    """None where the model is not made for chats."""
    context: int
    """Positions of a slot."""
    settings: Settings
    created: int
    """When the model was loaded, seconds since 1970."""
    nodes: Callable[[], Sequence[Node]] = field(default=lambda: ())
    """Nodes that the model runs on now, by rank, then those that were lost."""
    active: ActiveSubmissions = field(default_factory=ActiveSubmissions)
    grammars: Grammars = field(init=False)
    tool_format: ToolFormat | None = field(init=False)
    """How the model's own template writes calls of functions; None where it knows none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "grammars", Grammars(self.tokenizer))
        source = None if self.template is None else self.template.source
        object.__setattr__(self, "tool_format", detect_tool_format(source))

    def tells_reasoning(self, wanted: ReasoningFormat | None = None) -> bool:
        """Whether what the model thinks is told apart from what it says; None: as the operator decided."""
        source = None if self.template is None else self.template.source
        return tells_reasoning(wanted or self.settings.reasoning_format, source)

    @property
    def model_id(self) -> str:
        """The name under which the model is listed."""
        return self.settings.model_names[0]

    def describe_model(self, name: str) -> dict[str, Any]:
        """An entry of OpenAI's list of models, with the length of the context."""
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "dllama-gpu",
            "context_length": self.context,
        }
