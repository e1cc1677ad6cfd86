from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest

from dllama_gpu.api.constraints import GrammarConstraint, GrammarError, Grammars, json_rule
from dllama_gpu.api.requests import Tool
from dllama_gpu.api.tool_formats import ToolFormat, call_grammar
from dllama_gpu.engine.request import Constraint
from dllama_gpu.tokenizer.tokenizer import Tokenizer
from tests.unit.api.conftest import Running


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer)


def wandered(constraint: Constraint, tokenizer: Tokenizer, seed: int, longest: int = 400) -> str | None:
    """What an engine writes that takes any token that is allowed, short ones rather; None if it finds no end."""
    rng = random.Random(seed)
    ids: list[int] = []
    ends = set(tokenizer.eos_ids)
    while not constraint.is_complete:
        if len(ids) > longest:
            return None
        allowed = np.flatnonzero(constraint.allowed())
        assert len(allowed), "nothing is allowed, not even an end"
        if ends & set(allowed.tolist()):
            break
        closing = [token for token in allowed[:3000].tolist() if set(tokenizer.token_bytes(token)) <= set(b'"}], :')]
        token = rng.choice(closing) if closing and rng.random() < 0.7 else int(rng.choice(allowed.tolist()))
        constraint.advance(token)
        ids.append(token)
    return tokenizer.decode(ids, skip_special=False)


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "kind": {"enum": ["cat", "dog"]},
        "tags": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
        "home": {"$ref": "#/$defs/home"},
    },
    "required": ["name", "kind", "home"],
    "additionalProperties": False,
    "$defs": {"home": {"type": "object", "properties": {"zip": {"const": "é"}}, "required": ["zip"]}},
}


@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_chosen_of_what_is_allowed_follows_the_schema(grammars: Grammars, tokenizer: Tokenizer, seed: int):
    text = wandered(grammars.constraint(f"start: {json_rule(SCHEMA)}"), tokenizer, seed)
    assert text is not None
    value = json.loads(text)
    assert value["kind"] in ("cat", "dog")
    assert len(value["name"]) <= 8
    assert value["home"]["zip"] == "é"
    assert set(value) <= {"name", "kind", "tags", "home"}


def test_every_end_token_may_come_where_the_grammar_may_end_and_only_there(grammars: Grammars, tokenizer: Tokenizer):
    constraint = grammars.constraint('start: "a" "b"?')
    assert len(tokenizer.eos_ids) == 2
    assert not constraint.allowed()[list(tokenizer.eos_ids)].any()
    constraint.advance(tokenizer.encode("a")[0])
    assert constraint.allowed()[list(tokenizer.eos_ids)].all()


def test_any_object_is_an_object(grammars: Grammars, tokenizer: Tokenizer):
    constraint = grammars.constraint(f"start: {json_rule(None)}")
    starts = {tokenizer.token_bytes(int(token)) for token in np.flatnonzero(constraint.allowed())}
    assert starts
    assert all(start.startswith(b"{") for start in starts)


@pytest.mark.parametrize("tool_format", list(ToolFormat))
@pytest.mark.parametrize("seed", range(3))
def test_a_forced_call_is_one_of_the_functions_with_arguments_that_fit(
    grammars: Grammars, tokenizer: Tokenizer, tool_format: ToolFormat, seed: int
):
    tools = [
        Tool.model_validate({"type": "function", "function": {"name": "look", "parameters": SCHEMA}}),
        Tool.model_validate({"type": "function", "function": {"name": "stay"}}),
    ]
    grammar = call_grammar(tools[:1], tool_format, tokenizer, parallel=False, answer_rule=None)
    text = wandered(grammars.constraint(grammar), tokenizer, seed)
    assert text is not None
    begin, end = {
        ToolFormat.HERMES: ("<tool_call>\n", "\n</tool_call>"),
        ToolFormat.LLAMA3: ("", ""),
        ToolFormat.MISTRAL: ("[TOOL_CALLS][", "]"),
    }[tool_format]
    assert text.startswith(begin)
    assert text.endswith(end)
    call = json.loads(text[len(begin) : len(text) - len(end)])
    assert call["name"] == "look"
    assert call[tool_format.arguments_key]["kind"] in ("cat", "dog")
    both = call_grammar(tools, tool_format, tokenizer, parallel=True, answer_rule=json_rule({"const": 1}))
    assert not grammars.constraint(both).is_complete


@pytest.mark.parametrize(
    "schema", [{"type": "zzz"}, {"$ref": "#/nowhere"}, {"type": "array", "uniqueItems": True}, {"pattern": "("}]
)
def test_a_schema_that_cannot_be_held_to_is_refused(grammars: Grammars, schema: dict[str, Any]):
    with pytest.raises(GrammarError):
        grammars.constraint(f"start: {json_rule(schema)}")


def test_a_huge_schema_is_refused():
    with pytest.raises(GrammarError, match="characters"):
        json_rule({"enum": ["x" * 100] * 10_000})


def test_a_token_that_is_not_allowed_is_an_error_and_no_crash(grammars: Grammars, tokenizer: Tokenizer):
    constraint = grammars.constraint('start: "a"')
    with pytest.raises(GrammarError):
        constraint.advance(tokenizer.encode("b")[0])


def test_a_vocabulary_without_an_end_works_too(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Tokenizer, "eos_ids", ())
    constraint = Grammars(tokenizer).constraint('start: "a" "b"?')
    assert isinstance(constraint, GrammarConstraint)
    assert constraint.allowed().any()


@pytest.mark.parametrize(
    ("wanted", "has_constraint"),
    [
        ({"type": "text"}, False),
        ({"type": "json_object"}, True),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}, True),
    ],
)
def test_the_form_of_the_answer_reaches_the_engine(api: Running, wanted: dict[str, Any], has_constraint: bool):
    assert api.chat(response_format=wanted, n=2).status_code == 200
    constraints = [request.constraint for request in api.engine.requests]
    assert all((constraint is not None) == has_constraint for constraint in constraints)
    assert constraints[0] is not constraints[1] or not has_constraint, "each choice goes its own way"
    assert api.text(response_format=wanted).status_code == 200
    assert (api.engine.last.constraint is not None) == has_constraint


def test_tools_are_held_to_only_where_a_call_is_required(api: Running):
    tools = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]
    for choice, is_held in (("auto", False), ("none", False), ("required", True)):
        assert api.chat(tools=tools, tool_choice=choice).status_code == 200
        assert (api.engine.last.constraint is not None) == is_held
    named = {"type": "function", "function": {"name": "f"}}
    assert api.chat(tools=tools, tool_choice=named).status_code == 200
    assert api.engine.last.constraint is not None
