"""Templates behave as Hugging Face runs them, and a bad one ends in a sentence."""

from __future__ import annotations

from datetime import datetime

import pytest

from dllama_gpu.errors import DllamaError
from dllama_gpu.tokenizer import template_program
from dllama_gpu.tokenizer.template_program import TemplateProgram


def render(source: str, **variables: object) -> str:
    return TemplateProgram(source).render(variables)


def test_blocks_are_trimmed_as_hugging_face_does() -> None:
    assert render("{% if true %}\n  a\n  {% endif %}\nb") == "  a\nb"


def test_json_is_written_as_it_is_said() -> None:
    assert render("{{ x | tojson }}", x={"é": "<a>&'"}) == '{"é": "<a>&\'"}'
    assert render("{{ x | tojson(indent=2) }}", x=[1]) == "[\n  1\n]"


def test_loops_can_be_left_and_the_date_asked_for() -> None:
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert render("{{ strftime_now('%Y') }}") == str(datetime.now().year)


def test_marks_for_training_are_passed_over() -> None:
    assert render("a{% generation %}b{{ x }}{% endgeneration %}c", x=1) == "ab1c"


def test_joins_work_in_every_place() -> None:
    source = (
        "{% macro m(x) %}[{{ x ~ '!' }}]{% endmacro %}{% set y = 'a' ~ 1 ~ none %}{{ m(y ~ 'b') ~ (y ~ y) | upper }}"
    )
    assert render(source) == "[a1Noneb!]A1NONEA1NONE"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{% if %}", "cannot be understood (Expected an expression"),
        ("{{ x | no_such_filter }}", "cannot be understood (No filter named 'no_such_filter'"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "cannot be understood"),
        ("{% for i in x %}" * 60 + "{% endfor %}" * 60, "cannot be understood"),
        ("{{ raise_exception('no tools please') }}", "does not take these messages (no tools please)"),
        ("{{ x.y.z }}", "does not take these messages ('x' is undefined)"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ [1] + 2 }}", "can only concatenate list"),
        ("{{ ''.__class__.__mro__ }}", "'__class__' of 'str' object is unsafe"),
        ("{% set x = [] %}{{ x.append(1) }}", "'append' of 'list' object is unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "maximum recursion depth exceeded"),
        ("{{ range(10000000) | list }}", "Range too big"),
        ("{{ 'x' * 100000000 }}", "makes a text of more than 16777216 characters"),
        ("{{ 100000000 * [1] }}", "makes a text of more than 16777216 characters"),
        ("{{ 9 ** 9 ** 9 }}", "raises to a power"),
        (
            "{% set n = namespace(s='xx') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
            "makes a text",
        ),
        (
            "{% set n = namespace(s='xx') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
            "makes a text",
        ),
        ("{{ '%99999999d' % 1 }}", "makes a text of more than"),
        ("{{ '%*d' % (99999999, 1) }}", "a computed width"),
        ("{{ '%99999999d' | format(1) }}", "makes a text of more than"),
        ("{{ '{:99999999}'.format(1) }}", "makes a text of more than"),
        ("{{ '{:{}}'.format(1, 99999999) }}", "a computed width"),
        ("{{ strftime_now('%99999999d') }}", "makes a text of more than"),
        ("{{ 'x'.ljust(99999999) }}", "makes a text of more than"),
        ("{{ 'x'.encode().zfill(99999999) }}", "makes a text of more than"),
        ("{{ (1).to_bytes(99999999, 'big') }}", "makes a text of more than"),
        ("{{ 'x'.expandtabs(4) }}", "it calls expandtabs"),
        ("{{ 'x' | center(99999999) }}", "makes a text of more than"),
        ("{{ 'x' | indent(99999999) }}", "makes a text of more than"),
        ("{{ [1] | batch(99999999, 0) | list }}", "makes a text of more than"),
        ("{{ x | tojson(indent=99999999) }}", "makes a text of more than"),
        ("{{ ('x' * 9999).replace('x', 'y' * 9999) }}", "makes a text of more than"),
        ("{{ ('x' * 9999) | replace('x', 'y' * 9999) }}", "makes a text of more than"),
        ("{{ ''.join(['x' * 9999] * 9999) }}", "makes a text of more than"),
        ("{{ (['x' * 9999] * 9999) | join }}", "makes a text of more than"),
        ("{{ ([{'a': 'x' * 9999}] * 9999) | join('', attribute='a') }}", "makes a text of more than"),
        ("{{ ([['x'] * 9999] * 9999) | sum(start=[]) }}", "makes a text of more than"),
        ("{{ ['a', 'b'] | sum(start='') }}", "can't sum strings"),
        ("{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}", "makes a text of more than 16777216 characters"),
    ],
)
def test_a_template_that_fails_refuses_or_runs_away_ends_in_a_sentence(source: str, said: str) -> None:
    with pytest.raises(DllamaError) as caught:
        render(source)
    assert said in str(caught.value)
    assert "--chat-template" in str(caught.value)


def test_formatting_replacing_and_joining_work_within_their_bounds() -> None:
    values = "{{ '%s|%05d' % ('a', 7) }} {{ '{}-{:>4}'.format(1700000000, 'b') }} {{ '%.1f' | format(2.25) }}"
    assert render(values) == "a|00007 1700000000-   b 2.2"
    texts = "{{ 'aXbX'.replace('X', '-') }} {{ 'aXb' | replace('X', '+') }} {{ ['a', 1] | join(', ') }}"
    assert render(texts) == "a-b- a+b a, 1"
    mapped = "{{ ','.join([{'n': 'x'}, {'n': 'y'}] | map(attribute='n')) }} {{ [{'n': 3}] | join(attribute='n') }}"
    assert render(mapped) == "x,y 3"
    assert render("{{ 'a\nb' | indent(2) }}{{ 'c' | center(3) }}{{ 'd'.ljust(2) }}.") == "a\n  b c d ."


def test_sums_add_up_numbers_and_lists() -> None:
    assert render("{{ [1, 2.5] | sum }} {{ [1, 2] | sum(start=4) }} {{ [] | sum(start=[]) }}") == "3.5 7 []"
    assert render("{{ [[1], [2, 3]] | sum(start=[0]) }}") == "[0, 1, 2, 3]"
    messages = [{"calls": ["a"], "n": 1}, {"calls": ["b"], "n": 2}]
    source = "{{ m | sum(attribute='calls', start=[]) }} {{ m | map(attribute='calls') | sum(start=[]) }} "
    assert render(source + "{{ m | sum(attribute='n') }}", m=messages) == "['a', 'b'] ['a', 'b'] 3"


def test_loops_without_output_end_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_program, "MAX_STEPS", 1000)
    nested = "{% for i in range(99) %}{% for j in range(99) %}{% endfor %}{% endfor %}"
    with pytest.raises(DllamaError, match="goes on for more than 1000 steps"):
        render(nested)
    assert render("{% for i in range(900) %}{% endfor %}") == ""


def test_a_program_can_be_run_again_after_a_failure() -> None:
    program = TemplateProgram("{{ x + 1 }}")
    with pytest.raises(DllamaError):
        program.render({"x": "a"})
    assert program.render({"x": 1}) == "2"


def test_what_a_template_says_is_cut_in_the_message() -> None:
    with pytest.raises(DllamaError) as caught:
        TemplateProgram("{{ raise_exception('no' * 5000) }}").render({})
    assert "nonono" in str(caught.value)
    assert len(str(caught.value)) < 400
