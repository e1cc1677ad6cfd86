"""A client's fields to what the engine takes; one internal request for all dialects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dllama_gpu.api.constraints import GrammarError, json_rule
from dllama_gpu.api.errors import ApiError
from dllama_gpu.api.requests import NO_LIMIT, ChatRequest, GenerationFields, JsonObjectFormat, TextFormat
from dllama_gpu.api.service import Service
from dllama_gpu.engine.request import CompletionRequest, Constraint
from dllama_gpu.engine.sampling import SamplingParams
from dllama_gpu.errors import DllamaError

_SMALLEST_TOP_P = 1e-6  # keeps one token, which is what OpenAI's 0 means


def check_model(service: Service, name: str | None) -> str:
    """The name of the model for the answer. Raises ApiError 404 for one that is not served."""
    if name is None:
        return service.model_id
    if name not in service.settings.model_names:
        raise ApiError(
            404,
            f"there is no model {name[:200]!r} here, but {', '.join(service.settings.model_names)}; "
            "leave `model` out for the one there is",
            param="model",
            code="model_not_found",
        )
    return name


def make_requests(
    service: Service,
    fields: GenerationFields,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    n_logprobs: int | None,
    grammar: str | None,
    client: str,
    request_id: str,
) -> list[CompletionRequest]:
    """A request for each choice of each prompt, the choices of a prompt one after the other.

    `max_tokens` may be NO_LIMIT. Raises ApiError 400 naming the field that is wrong.
    """
    _check_ids(service, prompts)
    n_choices = fields.n or 1
    _check_room(service, len(prompts), n_choices)
    requests: list[CompletionRequest] = []
    for prompt in prompts:
        for index in range(n_choices):
            try:
                request = CompletionRequest(
                    prompt=tuple(prompt),
                    max_tokens=service.context if max_tokens == NO_LIMIT else max_tokens,
                    sampling=_sampling(service, fields, index),
                    end_ids=frozenset() if fields.ignore_eos else frozenset(service.tokenizer.eos_ids),
                    stop=_stops(fields),
                    n_logprobs=n_logprobs,
                    constraint=_constraint(service, grammar),
                    timeout_seconds=service.settings.request_seconds,
                    client=client,
                    request_id=request_id if n_choices * len(prompts) == 1 else f"{request_id}-{len(requests)}",
                )
            except DllamaError as error:
                raise ApiError(400, str(error), code="invalid_value") from None
            requests.append(request)
    return requests


def answer_rule(fields: GenerationFields) -> str | None:
    """The grammar's rule for the form of the answer that `response_format` asks for.

    Raises ApiError 400 for a schema that cannot be held to.
    """
    wanted = fields.response_format
    if wanted is None or isinstance(wanted, TextFormat):
        return None
    try:
        return json_rule(wanted.schema_ if isinstance(wanted, JsonObjectFormat) else wanted.json_schema.schema_)
    except GrammarError as error:
        raise ApiError(400, str(error), param="response_format", code="invalid_schema") from None


def check_grammar(service: Service, grammar: str, field: str) -> None:
    """Raises ApiError 400 naming `field` when the grammar cannot be held to. May take a second."""
    try:
        service.grammars.constraint(grammar)
    except GrammarError as error:
        raise ApiError(400, f"{field} cannot be held to: {error}", param=field, code="invalid_schema") from None


def chat_logprobs(fields: ChatRequest) -> int | None:
    """How many alternatives a token is told with, None for no logprobs. Raises ApiError 400 for top_logprobs alone."""
    if fields.logprobs:
        return fields.top_logprobs or 0
    if fields.top_logprobs:
        raise ApiError(
            400, "top_logprobs has a meaning with logprobs true only", param="top_logprobs", code="invalid_value"
        )
    return None


def _constraint(service: Service, grammar: str | None) -> Constraint | None:
    return None if grammar is None else service.grammars.constraint(grammar)


def _sampling(service: Service, fields: GenerationFields, index: int) -> SamplingParams:
    default = service.settings.sampling

    def chosen(value: float | None, otherwise: float) -> float:
        return otherwise if value is None else value

    seed = default.seed if fields.seed is None else fields.seed % (1 << 64)
    return SamplingParams(
        temperature=chosen(fields.temperature, default.temperature),
        top_p=max(chosen(fields.top_p, default.top_p), _SMALLEST_TOP_P),
        top_k=default.top_k if fields.top_k is None else max(fields.top_k, 0),
        min_p=chosen(fields.min_p, default.min_p),
        repetition_penalty=chosen(fields.repetition_penalty, default.repetition_penalty),
        presence_penalty=chosen(fields.presence_penalty, default.presence_penalty),
        frequency_penalty=chosen(fields.frequency_penalty, default.frequency_penalty),
        logit_bias=_logit_bias(service, fields.logit_bias or {}),
        # Each choice draws differently, and the same again for the same seed.
        seed=None if seed is None else (seed + index) % (1 << 64),
    )


def _logit_bias(service: Service, biases: Mapping[str, float]) -> dict[int, float]:
    found = {}
    for text, bias in biases.items():
        token = int(text) if text.isascii() and text.isdigit() and len(text) < 12 else -1
        if not 0 <= token < service.tokenizer.vocab_size:
            raise ApiError(
                400,
                f"logit_bias has the key {text[:40]!r}, but it must be the id of a token, "
                f"0 to {service.tokenizer.vocab_size - 1}",
                param="logit_bias",
                code="invalid_value",
            )
        found[token] = bias
    return found


def _stops(fields: GenerationFields) -> tuple[str, ...]:
    if fields.stop is None:
        return ()
    return (fields.stop,) if isinstance(fields.stop, str) else tuple(fields.stop)


def _check_room(service: Service, n_prompts: int, n_choices: int) -> None:
    """Refuses what would not even fit an idle server; to be told to try again later would never help."""
    n_answers = n_prompts * n_choices
    if n_answers == 1:
        return
    statistics = service.engine.statistics()
    most = len(statistics.slots) + statistics.max_queue
    if n_answers > most:
        field = "n" if n_choices > 1 else "prompt"
        raise ApiError(
            400,
            f"{field} asks for {n_answers} answers at once, but this server takes no more than {most} "
            f"({len(statistics.slots)} running and {statistics.max_queue} waiting); ask for fewer in a request",
            param=field,
            code="invalid_value",
        )


def _check_ids(service: Service, prompts: Sequence[Sequence[int]]) -> None:
    size = service.tokenizer.vocab_size
    for prompt in prompts:
        if prompt and not 0 <= max(prompt) < size:
            raise ApiError(
                400,
                f"prompt holds the token {max(prompt)}, but the model's ids are 0 to {size - 1}",
                param="prompt",
                code="invalid_value",
            )
