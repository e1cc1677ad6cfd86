"""Running a chat template that came with a model: a stranger's program, so sandboxed and bounded.

The sandbox (jinja2's immutable one) keeps templates away from everything but the values given. On top of it loop
rounds, macro calls, the output and the texts and lists made on the way (`template_bounds`) are limited, so that a
template that runs away ends in an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dllama_gpu.errors import DllamaError
from dllama_gpu.formats.shown import shown_text
from dllama_gpu.tokenizer.template_bounds import (
    BOUNDED_FILTERS,
    UNBOUNDED_FILTERS,
    check_call,
    check_format,
    check_numbers,
    check_size,
)

MAX_STEPS = 1_000_000
"""Loop rounds and macro calls that one rendering may take."""

_STEP = "dllama_step"
_JOIN = "dllama_join"


class TemplateProgram:
    """A compiled template. Immutable; may be used by several threads at a time."""

    def __init__(self, source: str) -> None:
        """Raises DllamaError when `source` is not a Jinja template."""
        environment = _Environment()
        try:
            code = environment.compile(_bounded(environment, source))
        except Exception as error:  # also what Python says of the code that jinja2 makes
            raise DllamaError(
                f"the chat template cannot be understood ({_reason(error)}); choose another one with --chat-template",
            ) from error
        self._template = jinja2.Template.from_code(environment, code, environment.make_globals(None))

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text for these variables. Raises DllamaError when the template fails, refuses them or runs away."""
        parts: list[str] = []
        n_characters = 0
        try:
            for part in self._template.generate({**variables, _STEP: _step_counter(), _JOIN: _join}):
                parts.append(part)
                n_characters += len(part)
                check_size(n_characters)
        except Exception as error:  # whatever a template raises is its own fault, of any type
            raise DllamaError(
                f"the chat template does not take these messages ({_reason(error)}); "
                "change them, or choose another template with --chat-template",
            ) from error
        return "".join(parts)


class _Environment(ImmutableSandboxedEnvironment):
    """What Hugging Face templates expect. Source: transformers, `utils/chat_template_utils.py`."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
        self.filters.update(BOUNDED_FILTERS)
        for name in UNBOUNDED_FILTERS:
            self.filters.pop(name, None)
        self.globals.pop("lipsum", None)
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _refuse
        self.globals["strftime_now"] = _strftime_now

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`left operator right`, refused where the result would be huge."""
        if operator == "**":
            raise SecurityError("it raises to a power")
        if operator == "*":
            for sequence, count in ((left, right), (right, left)):
                if isinstance(sequence, (str, list, tuple)) and isinstance(count, int):
                    check_size(len(sequence) * count)
        if operator == "%" and isinstance(left, (str, bytes)):
            check_format(left, right if isinstance(right, tuple) else (right,))
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, (str, list, tuple)):
            check_size(len(result))
        return result

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 (as jinja2 has it)
        """A call, refused where its result would be huge."""
        return super().call(__context, __obj, *check_call(__obj, args, kwargs), **kwargs)


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`, which marks the model's own text for training: here just its content."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The nodes between the two tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _bounded(environment: jinja2.Environment, source: str) -> nodes.Template:
    """The parsed program, counting loop rounds and macro calls, and checking the length of texts that `~` joins."""
    tree = environment.parse(source)
    repeated: list[nodes.For | nodes.Macro] = [*tree.find_all(nodes.For), *tree.find_all(nodes.Macro)]
    for node in repeated:
        step = nodes.ExprStmt(nodes.Call(nodes.Name(_STEP, "load"), [], [], None, None))
        node.body.insert(0, step.set_lineno(node.lineno))
    _replace_joins(tree)
    tree.set_environment(environment)
    return tree


def _replace_joins(node: nodes.Node) -> None:
    for field, value in node.iter_fields():
        if isinstance(value, list):
            setattr(node, field, [_without_join(item) for item in value])
        else:
            setattr(node, field, _without_join(value))


def _without_join(value: Any) -> Any:
    if not isinstance(value, nodes.Node):
        return value
    _replace_joins(value)
    if isinstance(value, nodes.Concat):
        return nodes.Call(nodes.Name(_JOIN, "load"), value.nodes, [], None, None, lineno=value.lineno)
    return value


def _step_counter() -> Callable[[], str]:
    n_steps = 0

    def step() -> str:
        nonlocal n_steps
        n_steps += 1
        if n_steps > MAX_STEPS:
            raise SecurityError(f"it goes on for more than {MAX_STEPS} steps")
        return ""

    return step


def _join(*parts: Any) -> str:
    texts = list(map(str, parts))
    check_size(sum(map(len, texts)))
    return "".join(texts)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    check_format(form, ())
    return datetime.now().strftime(form)


def _to_json(value: Any, indent: int | None = None, **_options: Any) -> str:
    check_numbers((1000 * indent,) if isinstance(indent, int) else ())
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _reason(error: BaseException) -> str:
    return shown_text(str(error)) or type(error).__name__
