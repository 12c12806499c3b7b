"""What a changed spec means for a file that was begun under an earlier one."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mpiens.growth import Change, compare, match
from mpiens.layout import to_column
from mpiens.reader import decode
from mpiens.spec import Ensemble, Spec

OLD = """
[ensemble]
model = "model.py:simulate"
replicates = 10
seed = 1

[parameters]
days = 180

[scenarios.baseline]
[scenarios.masks]
mask = 0.7

[sweep]
beta = [0.2, 0.4]

[shared]
loader = "model.py:load"
kwargs = { since = 2020-03-01 }

[outputs.infected]
dims = ["day"]
summaries = ["final"]
length = 30

[bands]
levels = [0.1, 0.9]

[limits]
retries = 1
"""

Parameters = dict[str, tuple[Any, ...]]


def make(text: str) -> Spec:
    return decode(text, "lab/sweep.toml").require()


def fill(spec: Spec, **defaults: Any) -> Parameters:
    """Every parameter over the scenarios, with the defaults of a model."""
    names = dict.fromkeys(
        [*defaults, *(n for s in spec.scenarios for n in s.parameters)]
    )
    return {
        name: tuple(s.parameters.get(name, defaults.get(name)) for s in spec.scenarios)
        for name in names
    }


def change(new: str, old: str = OLD, **defaults: Any) -> Change:
    before, now = make(old), make(new)
    return compare(before, now, fill(before, **defaults), fill(now, **defaults))


def edit(*edits: tuple[str, str]) -> str:
    text = OLD
    for old, new in edits:
        assert old in text
        text = text.replace(old, new, 1)
    return text


def test_the_same_spec_is_no_change() -> None:
    assert change(OLD) == Change((), grows=False, relays=False)
    assert change(OLD).none


def test_the_spec_that_a_file_keeps_is_no_change_wherever_it_lies() -> None:
    spec = make(OLD)
    kept = decode(spec.to_json(), "elsewhere/spec.json", is_json=True).require()
    assert compare(kept, spec, fill(kept), fill(spec)).none


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("replicates = 10", "replicates = 11"),
        ("[0.2, 0.4]", "[0.2, 0.4, 0.6]"),
        ("[0.2, 0.4]", "[0.1, 0.2, 0.4]"),
        ("[0.2, 0.4]", "[0.4, 0.2]"),
        ("[0.2, 0.4]", "[0.4]"),
        ("[scenarios.masks]", "[scenarios.closed]\n[scenarios.masks]"),
        ("[scenarios.baseline]\n", ""),
    ],
)
def test_more_replicates_and_other_scenarios_are_growth(old: str, new: str) -> None:
    assert change(edit((old, new))) == Change((), grows=True, relays=True)


def test_reordered_scenarios_are_growth() -> None:
    masks = "[scenarios.masks]\nmask = 0.7\n"
    text = edit((masks, ""), ("[scenarios.baseline]", masks + "[scenarios.baseline]"))
    assert change(text) == Change((), grows=True, relays=True)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[0.1, 0.9]", "[0.1, 0.5, 0.9]"),
        ("[0.1, 0.9]", '[0.1, 0.9]\nbaseline = "masks"'),
        ('["final"]', '["final", "peak"]'),
        ('summaries = ["final"]\n', ""),
        ("length = 30", 'length = 30\nunits = "agents"'),
        ("[bands]", '[outputs.other]\nunits = "agents"\n[bands]'),
    ],
)
def test_bands_units_and_summaries_only_recompute(old: str, new: str) -> None:
    assert change(edit((old, new))) == Change((), grows=False, relays=True)


@pytest.mark.parametrize(
    "new",
    [
        *("retries = 3", "task_seconds = 5", 'cost = "days"', 'isolation = "none"'),
        *("", "retries = 1\n[outputs.other]\nkeep = true"),
    ],
)
def test_limits_and_defaults_written_out_leave_the_file_as_it_is(new: str) -> None:
    assert change(edit(("retries = 1", new))).none


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        ("model.py:simulate", "model.py:other", "[ensemble] model"),
        ("seed = 1", "seed = 2", "[ensemble] seed"),
        ("seed = 1", 'seed = 1\npairing = "independent"', "[ensemble] pairing"),
        ("seed = 1", 'seed = 1\nreduce = "model.py:r"', "[ensemble] reduce"),
        ("replicates = 10", "replicates = 9", "[ensemble] replicates"),
        ("days = 180", "days = 181", "[parameters] days"),
        ("days = 180", "days = 180\nnew = 1", "[parameters] new"),
        ("days = 180", "", "[parameters] days"),
        ("mask = 0.7", "mask = 0.8", "[scenarios.masks] mask"),
        ("mask = 0.7", "mask = 0.7\ndays = 90", "[scenarios.masks] days"),
        ("model.py:load", "model.py:other", "[shared]"),
        ("2020-03-01", "2020-03-02", "[shared]"),
        ('["day"]', '["week"]', "[outputs.infected] dims"),
        ("length = 30", "length = 31", "[outputs.infected] length"),
        ("length = 30", "length = 30\nkeep = false", "[outputs.infected] keep"),
        ("length = 30", 'length = 30\ndtype = "f4"', "[outputs.infected] dtype"),
        ("[bands]", "[outputs.x]\nkeep = false\n[bands]", "[outputs.x] keep"),
    ],
)
def test_any_other_change_is_refused_by_its_key(old: str, new: str, place: str) -> None:
    found = change(edit((old, new)))
    assert found.refused == (place,)
    assert not found.none


def test_all_refused_keys_are_named_at_once() -> None:
    found = change(edit(("seed = 1", "seed = 2"), ("days = 180", "days = 90")))
    assert set(found.refused) == {"[ensemble] seed", "[parameters] days"}


def test_growth_does_not_hide_a_refused_change() -> None:
    found = change(edit(("replicates = 10", "replicates = 20"), ("0.7", "0.8")))
    assert found.grows
    assert found.refused == ("[scenarios.masks] mask",)


def test_a_new_scenario_may_have_parameters_of_its_own() -> None:
    text = edit(("[sweep]", "[scenarios.late]\nstart = 30\n[sweep]"))
    assert change(text, start=0) == Change((), grows=True, relays=True)


@pytest.mark.parametrize("default", [0.1, 1, "open", True, [1, 2], {"a": 1.5}])
def test_a_default_that_is_newly_written_out_is_no_change(default: Any) -> None:
    silent = make(OLD)
    parameters = {**silent.parameters, "policy": default}
    spoken = dataclasses.replace(silent, parameters=parameters)
    both = fill(silent, policy=default), fill(spoken, policy=default)
    assert compare(silent, spoken, *both).none
    assert compare(spoken, silent, *both).none


def test_a_parameter_may_move_between_tables_with_its_value() -> None:
    text = edit(
        ("days = 180\n", ""),
        ("[scenarios.baseline]", "[scenarios.baseline]\ndays = 180"),
        ("mask = 0.7", "mask = 0.7\ndays = 180"),
    )
    assert change(text).none


def test_scenarios_are_matched_by_name() -> None:
    new = make(edit(("[0.2, 0.4]", "[0.4, 0.6]"), ("[scenarios.baseline]\n", "")))
    # masks,beta=0.4 is the fourth of the old spec
    assert match(make(OLD), new) == {0: 3}
    assert match(make(OLD), make(OLD)) == {0: 0, 1: 1, 2: 2, 3: 3}


def keep(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a parameter as it is read back from a result file's column."""
    column = to_column(values).tolist()
    text = to_column(values).dtype == object
    return tuple(json.loads(value) for value in column) if text else tuple(column)


@settings(max_examples=60, deadline=None, database=None)
@given(
    st.lists(
        st.one_of(
            *(st.none(), st.booleans(), st.integers(-9, 9), st.just(2**70)),
            *(st.floats(allow_nan=False), st.text(max_size=3)),
            st.lists(st.integers(0, 3), max_size=2),
        ),
        min_size=1,
        max_size=4,
    )
    | st.lists(st.integers(-9, 9) | st.floats(-9, 9) | st.none(), min_size=1)
)
@example([1, 0.5])
@example([1, None])
@example([True, None])
def test_parameters_as_a_file_keeps_them_are_no_change(values: list[Any]) -> None:
    bases = {f"s{i}": {"p": value} for i, value in enumerate(values)}
    spec = Spec(Ensemble("model.py:simulate", 1, 1), bases=bases)
    kept = {name: keep(column) for name, column in fill(spec).items()}
    assert compare(spec, spec, kept, fill(spec)).none


def test_a_number_that_has_changed_is_seen_in_a_mixed_column() -> None:
    old = '[ensemble]\nmodel = "m:f"\nreplicates = 1\nseed = 1\n[scenarios.a]\np = 1\n'
    old += "[scenarios.b]\np = 0.5\n[scenarios.c]\n"
    before, now = make(old), make(old.replace("p = 1", "p = 2"))
    kept = {"p": keep(fill(before)["p"])}
    assert compare(before, now, kept, fill(now)).refused == ("[scenarios.a] p",)
    given = make(old + "p = 3")
    assert compare(before, given, kept, fill(given)).refused == ("[scenarios.c] p",)
