"""How long a text may become that a chat template makes with one call: asked before the call makes it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

import jinja2
from jinja2 import filters
from jinja2.exceptions import SecurityError

MAX_CHARACTERS = 16 << 20
"""How long the output, or a text made on the way, may become."""

UNBOUNDED_FILTERS = ("urlize", "wordwrap", "xmlattr")
"""Filters that no chat template needs, and whose results have no simple bound."""


def check_size(n_characters: int) -> None:
    """Raises SecurityError for a text that is too long."""
    if n_characters > MAX_CHARACTERS:
        raise SecurityError(f"it makes a text of more than {MAX_CHARACTERS} characters")


def check_call(function: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...]:
    """Checks a call of a method of a text or number, and gives back its arguments, iterators as lists.

    Raises SecurityError when its result could be too long.
    """
    function = getattr(function, "__wrapped__", function)  # the sandbox wraps str.format
    owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
    if not isinstance(owner, (str, bytes, int)):
        return arguments
    values = (*arguments, *named.values())
    if name in ("format", "format_map"):  # no number among their values is a width, as none is computed
        check_format(owner, values)
        return arguments
    check_numbers(values)
    if name == "replace" and len(arguments) > 1:
        check_replace(owner, arguments[0], arguments[1])
    elif name in ("expandtabs", "translate"):
        raise SecurityError(f"it calls {name}, which may make a long text")
    elif name == "join" and len(arguments) == 1:
        return (check_join(owner, arguments[0]),)
    return arguments


def check_numbers(values: Iterable[Any]) -> None:
    """Widths are numbers: raises SecurityError for one that is too large."""
    for value in values:
        if isinstance(value, int):
            check_size(value)


def check_format(form: Any, values: Iterable[Any]) -> None:
    """`form` with `%` or `{}` in it: the sum of its numbers bounds the widths, and each mark may write a value."""
    text = form.decode("latin-1") if isinstance(form, bytes) else str(form)
    if "*" in text or re.search(r"\{[^{}]*\{", text.replace("{{", "")):
        raise SecurityError("it formats with a computed width")
    digits = re.findall(r"[0-9]+", text)
    widths = sum(int(number[:9]) for number in digits) if all(len(number) < 9 for number in digits) else MAX_CHARACTERS
    longest = max((len(str(value)) for value in values), default=0)
    check_size(len(text) + widths + (text.count("%") + text.count("{")) * longest)


def check_replace(text: Any, old: Any, new: Any) -> None:
    """Every `old` in `text` becomes `new`."""
    if isinstance(text, (str, bytes)) and isinstance(old, type(text)) and isinstance(new, (str, bytes)):
        check_size(len(text) + text.count(old) * len(new))  # type: ignore[arg-type]


def check_join(separator: Any, parts: Any) -> list[Any]:
    """The parts as a list. Raises SecurityError when they are too long together."""
    listed = list(parts)
    total = 0
    for part in listed:
        total += len(part if isinstance(part, (str, bytes)) else str(part)) + len(separator)
        check_size(total)
    return listed


def _center(value: str, width: int = 80) -> str:
    check_numbers((width,))
    return filters.do_center(value, width)


def _indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    size = width if isinstance(width, int) else len(width)
    check_size(len(s) + size * (s.count("\n") + 1))
    return filters.do_indent(s, width, first, blank)


def _format(value: str, *arguments: Any, **named: Any) -> str:
    check_format(value, (*arguments, *named.values()))
    return filters.do_format(value, *arguments, **named)


def _batch(value: Any, linecount: int, fill_with: Any = None) -> Any:
    check_numbers((linecount,))
    return filters.do_batch(value, linecount, fill_with)


@jinja2.pass_eval_context
def _replace(context: Any, s: str, old: str, new: str, count: int | None = None) -> str:
    check_replace(str(s), str(old), str(new))
    return filters.do_replace(context, s, old, new, count)


@jinja2.pass_eval_context
def _join(context: Any, value: Any, d: str = "", attribute: str | int | None = None) -> str:
    listed = list(value)
    if attribute is None:
        check_join(str(d), listed)
    else:
        attributes = filters.make_attrgetter(context.environment, attribute)
        check_join(str(d), map(attributes, listed))
    return cast(str, filters.do_join(context, listed, d, attribute))


@jinja2.pass_environment
def _sum(environment: Any, iterable: Any, attribute: str | int | None = None, start: Any = 0) -> Any:
    values = list(iterable)
    if attribute is not None:
        values = list(map(filters.make_attrgetter(environment, attribute), values))
    if isinstance(start, (list, tuple)) and all(isinstance(value, type(start)) for value in values):
        check_size(len(start) + sum(map(len, values)))
        return type(start)(itertools.chain(start, *values))  # sum() would copy what it has at every step
    return sum(values, start)


BOUNDED_FILTERS: Mapping[str, Any] = {
    "batch": _batch,
    "center": _center,
    "format": _format,
    "indent": _indent,
    "join": _join,
    "replace": _replace,
    "sum": _sum,
}
"""Filters of jinja2 whose results can be much longer than what they are given, checked first."""
