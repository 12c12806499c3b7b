"""Arithmetic of the spec: what it is worth, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Launcher
from hypothesis import given, settings
from hypothesis import strategies as st

from mpiens.expression import Expression

numbers = st.one_of(st.integers(0, 99), st.floats(0, 99).map(lambda x: round(x, 3)))
texts = st.recursive(
    st.one_of(numbers.map(str), st.sampled_from(["days", "agents"])),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*"]), inner).map(
            lambda parts: f"({' '.join(parts)})"
        ),
        inner.map(lambda text: f"-{text}"),
        st.tuples(st.sampled_from(["min", "max"]), inner, inner).map(
            lambda parts: f"{parts[0]}({parts[1]}, {parts[2]})"
        ),
        inner.map(lambda text: f"abs({text})"),
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None, database=None)
@given(texts, numbers, numbers)
def test_an_expression_is_worth_what_python_says(
    text: str, days: float, agents: float
) -> None:
    parameters = {"days": days, "agents": agents, "unused": "text"}
    expression = Expression(text)
    expression.check()
    assert expression.value(parameters) == float(eval(text, {}, parameters))
    assert expression.names == {n for n in ("days", "agents") if n in text}


@pytest.mark.parametrize(
    ("text", "value"),
    [("7 / 2", 3.5), ("7 // 2", 3.0), ("7 % 4", 3.0), ("2 ** 3", 8.0), ("+1", 1.0)],
)
def test_every_operator_counts(text: str, value: float) -> None:
    assert Expression(text).value({}) == value


@pytest.mark.parametrize(
    "text",
    [
        *("", "days *", "days agents", "days = 1", "a; b", "\0"),
        *("days.real", "days[0]", "[1]", "(1, 2)", "a if b else c", "a < b", "a and b"),
        *("open('x')", "min(a, key=b)", "min(*a)", "().__class__", "lambda: 1"),
        *("a | b", "a << 2", "a @ b", "~a", "not a", "'days'", "None", "1j", "..."),
    ],
)
def test_all_else_is_refused_with_the_text(text: str) -> None:
    with pytest.raises(ValueError, match="arithmetic"):
        Expression(text).check()


@pytest.mark.parametrize(
    ("text", "culprit"),
    [("days / 0", "division"), ("dayz", "dayz"), ("name * 2.5", "name")],
)
def test_what_has_no_value_says_why(text: str, culprit: str) -> None:
    with pytest.raises(ValueError, match=culprit) as caught:
        Expression(text).value({"days": 1, "name": "text"})
    assert repr(text) in str(caught.value)


def test_check_names_a_cost_of_unknown_parameters(
    folder: Path, launcher: Launcher
) -> None:
    spec = folder / "sweep.toml"
    spec.write_text(spec.read_text() + '[limits]\ncost = "dayz * 2"\n')
    checked = launcher.mpiens("check", "sweep.toml")
    assert checked.code == 2
    assert "[limits] cost" in checked.errors
    assert "dayz" in checked.errors
