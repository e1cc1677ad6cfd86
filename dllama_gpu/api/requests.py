"""What clients may send: OpenAI's requests and the few of our own, checked field by field.

A field that is not here is refused by name. `null` is the same as leaving a field out, also for a field that is not
here: some clients send all that they know of. What is not done here is taken where its value asks for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WrapValidator, model_validator

from dllama_gpu.api.reasoning import ReasoningFormat

MAX_CHOICES = 16
MAX_PROMPTS = 64
MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20
MAX_TOOLS = 128

NO_LIMIT = -1
"""What llama.cpp's clients and LM Studio's give for an answer as long as the context allows."""

TokenLimit: TypeAlias = Literal[-1] | Annotated[int, Field(ge=1, lt=1 << 31)]
StopText = Annotated[str, Field(min_length=1, max_length=1024)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
JsonObject: TypeAlias = dict[str, Any]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"additionalProperties": {"type": "null"}})

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        known = {field.alias or name for name, field in cls.model_fields.items()}
        return {name: item for name, item in value.items() if item is not None or name in known}


def _left_out(why: str) -> WrapValidator:
    """For a field whose only values ask for nothing: says why another one is refused."""

    def check(value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(f"should be left out, as {why}") from None

    return WrapValidator(check)


class FunctionDefinition(_Strict):
    """A function that the model may call; `parameters` is a JSON schema of an object."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(_Strict):
    """Tools are functions; there are no others."""

    type: Literal["function"]
    function: FunctionDefinition


class CalledFunction(_Strict):
    """Which function an earlier answer called; `arguments` is JSON as text."""

    name: str
    arguments: str
    parsed_arguments: Any = None  # what OpenAI's client read from `arguments`


class ToolCall(_Strict):
    """A call in an earlier answer."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None  # of a stream


class TextPart(_Strict):
    """A part of a message; models here read text alone."""

    type: Literal["text"]
    text: str


Content = str | list[TextPart]


class SystemMessage(_Strict):
    """Instructions that stand above the conversation."""

    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(_Strict):
    """What the user says."""

    role: Literal["user"]
    content: Content
    name: str | None = None


class AssistantMessage(_Strict):
    """An earlier answer. What OpenAI's client puts there without content is taken and left aside."""

    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = Field(None, description="another name of reasoning_content")
    refusal: str | None = None
    annotations: list[Any] | None = None
    parsed: Any = None  # what OpenAI's client read from `content`


class ToolMessage(_Strict):
    """What a called function returned."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: str | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class NamedFunction(_Strict):
    """A function by its name."""

    name: str


class NamedTool(_Strict):
    """A tool by its name."""

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class JsonSchema(_Strict):
    """What a `json_schema` answer must look like. It is always held to, whatever `strict` says."""

    name: str | None = None
    description: str | None = None
    schema_: JsonObject | bool = Field(alias="schema")
    strict: bool | None = None


class TextFormat(_Strict):
    """An answer without a form."""

    type: Literal["text"]


class JsonObjectFormat(_Strict):
    """An answer that is one JSON object; with a schema, which others than OpenAI take here, one that follows it."""

    type: Literal["json_object"]
    schema_: JsonObject | None = Field(None, alias="schema")


class JsonSchemaFormat(_Strict):
    """An answer that follows a JSON schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class StreamOptions(_Strict):
    """What a stream tells beside the answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class GenerationFields(_Strict):
    """What chats and plain completions have in common."""

    model: str | None = None
    max_tokens: TokenLimit | None = Field(None, description="-1: as many as the context holds")
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=1 << 31, description="draw among the k likeliest tokens; 0 or -1: all")
    min_p: float | None = Field(
        None, ge=0, le=1, description="draw among tokens at least so likely as this part of the likeliest"
    )
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 64)
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, description="added to the logits of tokens, by their ids as text"
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    ignore_eos: bool | None = Field(None, description="go on when the model ends its text")
    # Taken and left aside: they steer OpenAI's service, not the answer.
    user: str | None = None
    metadata: JsonObject | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ChatRequest(GenerationFields):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: TokenLimit | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: JsonObject | None = Field(
        None, description="more variables for the model's chat template, such as enable_thinking"
    )
    reasoning_effort: ReasoningEffort | None = Field(
        None, description="none: enable_thinking is false for the chat template; others: its variable of this name"
    )
    reasoning_format: ReasoningFormat | None = Field(
        None, description="in place of the server's --reasoning-format, as llama.cpp's server has it"
    )
    prediction: JsonObject | None = None  # taken and left aside: it only makes OpenAI's service faster
    functions: Annotated[list[Any], Field(max_length=0), _left_out("tools are asked for with `tools`")] | None = None
    function_call: Annotated[Literal["none", "auto"], _left_out("a tool is chosen with `tool_choice`")] | None = None
    modalities: (
        Annotated[list[Literal["text"]], Field(min_length=1, max_length=1), _left_out("answers are text alone")] | None
    ) = None
    verbosity: Annotated[Literal["medium"], _left_out("no model here knows it; ask for it in a message")] | None = None


Prompt = (
    str
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
    | Annotated[list[TokenId], Field(min_length=1)]
    | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=MAX_PROMPTS)]
)


class TextRequest(GenerationFields):
    """POST /v1/completions."""

    prompt: Prompt
    echo: bool | None = None
    suffix: Annotated[Literal[""], _left_out("texts are continued here and not filled in")] | None = None
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES, description="as `n`, as all answers are given")
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)


class TokenizeRequest(_Strict):
    """POST /tokenize: a text, or a conversation as the model gets it."""

    model: str | None = None
    content: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special: bool | None = Field(None, description="begin with the model's first token, if it wants one")
    with_pieces: bool | None = Field(None, description="the text of each token too")


class DetokenizeRequest(_Strict):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[TokenId]
