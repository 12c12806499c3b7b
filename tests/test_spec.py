"""The spec: what TOML and JSON become, every fault at once, names, and numbers."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import pickle
import textwrap
from pathlib import Path
from typing import Any

import pytest
from conftest import write
from hypothesis import given, settings
from hypothesis import strategies as st

from mpiens import spec as specs
from mpiens.fault import Fault, SpecError
from mpiens.reader import decode, locate_faults, read
from mpiens.spec import Spec

HEAD = """\
[ensemble]
model = "model.py:simulate"
replicates = 3
seed = 20260529
"""

FULL = """
[ensemble]
model = "model.py:simulate"
replicates = 200
seed = 20260529
pairing = "independent"
reduce = "model.py:reduce"

[parameters]
days = 180
beta = 0.3

[scenarios.baseline]
[scenarios.masks]
mask = 0.7
beta = 0.25

[sweep]
agents = [1000, 2000]
policy = ["open", "closed"]

[shared]
loader = "model.py:load"
kwargs = { path = "contacts.h5", since = 2020-03-01 }

[outputs.infected]
dims = ["day"]
summaries = ["final", "peak", "peak_time", "total"]
dtype = "float32"
units = "agents"
keep = false
length = 365

[bands]
levels = [0, 0.5, 1]
baseline = "baseline"

[limits]
task_seconds = 600
retries = 1
cost = "days * agents"
"""

quick = settings(max_examples=60, deadline=None, database=None)


def make(text: str, **form: bool) -> Spec:
    return decode(textwrap.dedent(text), "lab/sweep.toml", **form).require()


def faults(text: str, **form: bool) -> list[str]:
    """The faults of a text as the user sees them; there has to be one."""
    with pytest.raises(SpecError) as caught:
        make(text, **form)
    return list(caught.value.lines())


def names(text: str) -> list[str]:
    return [scenario.name for scenario in make(HEAD + textwrap.dedent(text)).scenarios]


def test_every_key_of_a_spec_arrives() -> None:
    spec = make(FULL)
    assert spec.ensemble == specs.Ensemble(
        "model.py:simulate", 200, 20260529, "independent", "model.py:reduce"
    )
    assert not spec.common
    assert spec.parameters == {"days": 180, "beta": 0.3}
    assert spec.bases == {"baseline": {}, "masks": {"mask": 0.7, "beta": 0.25}}
    assert spec.sweep == {"agents": (1000, 2000), "policy": ("open", "closed")}
    since = datetime.date(2020, 3, 1)
    kwargs = {"path": "contacts.h5", "since": since}
    assert spec.shared == specs.Shared("model.py:load", kwargs)
    summaries = ("final", "peak", "peak_time", "total")
    infected = specs.Output(
        dims=("day",),
        summaries=summaries,
        dtype="float32",
        units="agents",
        keep=False,
        length=365,
    )
    assert spec.outputs == {"infected": infected}
    assert spec.bands == specs.Bands((0.0, 0.5, 1.0), "baseline")
    assert spec.limits == specs.Limits(
        task_seconds=600.0, retries=1, cost="days * agents"
    )
    assert spec.tasks == 2 * 2 * 2 * 200


def test_what_is_not_said_has_the_documented_default() -> None:
    spec = make(HEAD)
    assert spec.common
    assert spec.bands == specs.Bands((0.05, 0.25, 0.5, 0.75, 0.95), None)
    assert spec.limits == specs.Limits(
        task_seconds=None,
        task_memory=None,
        retries=0,
        max_failed=None,
        cost=None,
        isolation="process",
    )
    assert spec.shared is None
    assert (spec.parameters, spec.bases, spec.sweep, spec.outputs) == ({}, {}, {}, {})


def test_the_effective_spec_writes_defaults_out() -> None:
    document = json.loads(make(HEAD).to_json())
    assert document["ensemble"]["pairing"] == "common"
    assert document["bands"]["levels"] == [0.05, 0.25, 0.5, 0.75, 0.95]
    assert document["limits"] == {
        "retries": 0,
        "heartbeat": 30.0,
        "isolation": "process",
    }


def test_paths_are_relative_to_the_spec(tmp_path: Path) -> None:
    path = write(tmp_path, "sweep.toml", HEAD)
    assert read(path).require().folder == str(tmp_path)


def test_all_faults_are_told_at_once_with_file_line_and_place() -> None:
    text = """\
    [ensemble]
    model = "model.py"
    replicates = true
    seed = -1
    pairng = "common"

    [parameters]
    rng = 3
    "two words" = 2

    [limts]
    retries = 1

    [scenarios]
    open = 3

    [scenarios.masks]
    beta = 1

    [sweep]
    beta = [1, 2]
    mask = []

    [outputs.infected]
    dims = "day"
    summaries = ["finl"]

    [bands]
    levels = [0.9, 0.1, 2.0]
    baseline = "mask"

    [limits]
    cost = "days *"
    task_seconds = 0
    """
    wanted = [
        (11, "[limts]", "limits?"),
        (2, "[ensemble] model", "file.py:function"),
        (33, "[limits] cost", "no arithmetic expression"),
        (3, "[ensemble] replicates", "True"),
        (4, "[ensemble] seed", "-1"),
        (5, "[ensemble] pairng", "did you mean pairing?"),
        (8, "[parameters] rng", "choose another name"),
        (9, "[parameters] two words", "choose another name"),
        (15, "[scenarios] open", "write [scenarios.open]"),
        (18, "[scenarios.masks] beta", "axis of [sweep]"),
        (22, "[sweep] mask", "a list of values, not []"),
        (25, "[outputs.infected] dims", "'day'"),
        (26, "[outputs.infected] summaries", "'finl'"),
        (29, "[bands] levels", "2.0 is no quantile"),
        (29, "[bands] levels", "should rise"),
        (30, "[bands] baseline", "'mask' is no scenario; did you mean masks?"),
        (34, "[limits] task_seconds", "greater than 0"),
    ]
    told = faults(text)
    for line, place, part in wanted:
        start = f"lab/sweep.toml:{line}: {place}: "
        assert any(t.startswith(start) and part in t for t in told), (start, told)
    assert len(told) == len(wanted)


def test_a_wrong_type_hides_no_other_fault_of_its_section() -> None:
    text = """
    [ensemble]
    model = "model.py"
    replicates = 0
    seed = 1
    [outputs.infected]
    dims = ["level"]
    length = 0
    [limits]
    cost = "days *"
    retries = -1
    """
    places = [fault.split(": ")[1] for fault in faults(text)]
    assert sorted(places) == [
        *("[ensemble] model", "[ensemble] replicates"),
        *("[limits] cost", "[limits] retries"),
        *("[outputs.infected] dims", "[outputs.infected] length"),
    ]


@pytest.mark.parametrize(
    ("text", "place", "parts"),
    [
        ('[ensemble]\nmodel = "m:f"\nseed = 1', "[ensemble] replicates", ["missing"]),
        (HEAD + "[limits]\nretry = 1", "[limits] retry", ["did you mean retries?"]),
        (HEAD + "[swep]\na = [1]", "[swep]", ["no section", "did you mean sweep?"]),
        (HEAD + "[bands]\nlevels = []", "[bands] levels", ["empty", "[0.5]"]),
        (HEAD + "[bands]\nlevels = [nan]", "[bands] levels", ["nan", "0 and 1"]),
        (HEAD + '[bands]\nlevels = ["a"]', "[bands] levels", ["'a'", "number"]),
        (HEAD + '[sweep]\na = ["1", 1]', "[sweep]", ["'a=1' twice"]),
        (HEAD + "[limits]\nretries = 1.0", "[limits] retries", ["1.0", "integer"]),
        (HEAD + "[parameters]\nshared = 1", "[parameters] shared", ["mpiens itself"]),
        (HEAD + "[shared]\nkwargs = {}", "[shared] loader", ["missing"]),
        (
            HEAD + '[limits]\nisolation = "thread"',
            "[limits] isolation",
            ["'thread'", "'process' or 'none'"],
        ),
        (
            HEAD + '[limits]\ncost = "open(days)"',
            "[limits] cost",
            ["'open(days)'", "arithmetic"],
        ),
        (
            HEAD + '[outputs.x]\ndims = ["level"]',
            "[outputs.x] dims",
            ["'level'", "choose another name"],
        ),
        (
            HEAD + '[outputs.x]\ndims = ["day", "day"]',
            "[outputs.x] dims",
            ["'day'", "twice"],
        ),
        (
            HEAD + '[outputs.x]\ndims = ["a", "b"]\nsummaries = ["peak"]',
            "[outputs.x] summaries",
            ["one dimension", "a, b"],
        ),
        (
            HEAD + '[outputs.x]\ndims = []\nsummaries = ["peak_time"]',
            "[outputs.x] summaries",
            ["'peak_time' needs a dimension"],
        ),
        (
            HEAD + '[outputs.x]\ndtype = "text"',
            "[outputs.x] dtype",
            ["'text'", "float64"],
        ),
        (
            HEAD + '[outputs.x]\ndtype = "float64, int"',
            "[outputs.x] dtype",
            ["float64, int", "no numeric type"],
        ),
        (
            HEAD + '[outputs.x]\ndtype = "8:"',
            "[outputs.x] dtype",
            ["'8:'", "no numeric type"],
        ),
        (
            HEAD + '[outputs.x]\ndims = ["day"]\nlength = 9\ndtype = "int64"',
            "[outputs.x] dtype",
            ["'int64'", "NaN", "float64"],
        ),
        (HEAD + "[outputs.x]\nlength = 9", "[outputs.x] length", ["needs dims"]),
        (
            HEAD + '[outputs.x]\ndims = ["day"]\nlength = 9\n'
            '[outputs.y]\ndims = ["day"]\nlength = 8',
            "[outputs.y] length",
            ["8", "9", "same length"],
        ),
        (HEAD + '[outputs."a b"]', "[outputs.a b]", ["letters, digits"]),
        (
            '[ensemble]\nmodel = "model.py::simulate"\nreplicates = 1\nseed = 1',
            "[ensemble] model",
            ["'model.py::simulate'", '"file.py:function"'],
        ),
        (
            HEAD + '[shared]\nloader = "model.py"',
            "[shared] loader",
            ["'model.py'", '"file.py:function"'],
        ),
        ("ensemble = 3", "[ensemble]", ["a table, not 3"]),
    ],
    ids=lambda value: "text" if "=" in value else None,
)
def test_a_fault_names_its_place_the_value_and_a_way_out(
    text: str, place: str, parts: list[str]
) -> None:
    told = [t for t in faults(text) if f": {place}: " in t]
    assert any(all(part in t for part in parts) for t in told), faults(text)


def test_a_key_has_its_line_however_it_is_written() -> None:
    text = """\
    ensemble.model = "model.py:simulate"
    ensemble.replicates = 1
    ensemble . "seed" = -1
    bands = { levels = [2] }

    [ scenarios . "two masks" ] # both
    'rng' = 1
    """
    told = faults(text)
    assert [t.split(": ")[0] for t in told] == [
        f"lab/sweep.toml:{line}" for line in (3, 4, 7)
    ]
    assert "[scenarios.two masks] rng" in told[2]


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("none.toml", None, "cannot be read: No such file"),
        ("latin.toml", b"a = '\xe9'", "not UTF-8"),
        ("bad.toml", b"[ensemble\n", "is not TOML"),
        ("bad.json", b"{,}", "is not JSON"),
        ("list.json", b"[1, 2]", "a table of sections"),
    ],
)
def test_a_file_that_is_no_spec_is_told_in_a_sentence(
    tmp_path: Path, name: str, content: bytes | None, part: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        read(path).require()
    [told] = caught.value.lines()
    assert told.startswith(f"{path}: ")
    assert part in told


def test_faults_found_later_get_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "sweep.toml", FULL)
    places = ["[parameters] beta", "[scenarios.masks] mask", "[scenarios.masks] new"]
    located = locate_faults([Fault(place, "is wrong") for place in places], path)
    lines = FULL.splitlines()
    assert [lines[fault.line - 1] for fault in located if fault.line] == [
        "beta = 0.3",
        "mask = 0.7",
        "[scenarios.masks]",  # of what is not there, the table around it
    ]


def test_a_spec_error_travels_between_processes_whole() -> None:
    error = SpecError([Fault("[bands]", "is wrong", 3), Fault("", "too")], "a.toml")
    arrived = pickle.loads(pickle.dumps(error))
    assert (arrived.faults, arrived.path) == (error.faults, error.path)
    assert list(arrived.lines()) == ["a.toml:3: [bands]: is wrong", "a.toml: too"]


def test_an_empty_shared_section_lacks_its_loader() -> None:
    assert "[shared] loader" in faults(HEAD + "[shared]")[0]


@pytest.mark.parametrize("seed", [0, 2**32, 2**128 + 1])
def test_seeds_of_any_size_are_taken(seed: int) -> None:
    spec = make(HEAD.replace("20260529", str(seed)))
    assert spec.ensemble.seed == seed
    assert make(spec.to_json(), is_json=True).ensemble.seed == seed


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", ["default"]),
        ("[scenarios.masks]", ["masks"]),
        ("[sweep]\nbeta = [0.2]", ["beta=0.2"]),
        ("[scenarios.masks]\n[sweep]\nbeta = [0.2]", ["masks,beta=0.2"]),
        ("[sweep]\nb = [1]\na = [2]", ["b=1,a=2"]),
        ('[sweep]\npolicy = ["open", "é"]', ["policy=open", "policy=é"]),
        ("[sweep]\non = [true, false]", ["on=true", "on=false"]),
        ("[sweep]\nx = [1, 1.0, 1e-9]", ["x=1", "x=1.0", "x=1e-09"]),
        ('[sweep]\nw = [[1, 2.5], ["a"]]', ["w=[1, 2.5]", 'w=["a"]']),
        ("[sweep]\nw = [{ a = 1 }]", ['w={"a": 1}']),
        ("[sweep]\nstart = [2020-03-01]", ["start=2020-03-01"]),
        ('[scenarios."two masks"]', ["two masks"]),
    ],
)
def test_scenarios_are_named_as_documented(text: str, wanted: list[str]) -> None:
    assert names(text) == wanted


def test_a_scenario_overrides_parameters_and_an_axis_overrides_both() -> None:
    spec = make(FULL)
    baseline, masks = spec.scenarios[0], spec.scenarios[4]
    assert baseline.parameters == {
        **{"days": 180, "beta": 0.3},
        **{"agents": 1000, "policy": "open"},
    }
    assert masks.parameters == {
        **{"days": 180, "beta": 0.25, "mask": 0.7},
        **{"agents": 1000, "policy": "open"},
    }
    swept = make(HEAD + "[parameters]\nbeta = 1\n[sweep]\nbeta = [2]")
    assert swept.scenarios[0].parameters == {"beta": 2}


@quick
@given(
    st.lists(st.integers(1, 4), max_size=4), st.integers(0, 3), st.integers(1, 2**40)
)
def test_scenarios_are_crossed_with_any_number_of_axes(
    sizes: list[int], bases: int, replicates: int
) -> None:
    sweep = {f"axis{i}": tuple(range(size)) for i, size in enumerate(sizes)}
    spec = Spec(
        specs.Ensemble("m:f", replicates, 1),
        bases={f"base{i}": {} for i in range(bases)},
        sweep=sweep,
    )
    expected = [
        (base, dict(zip(sweep, values, strict=True)))
        for base in [f"base{i}" for i in range(bases)] or [None]
        for values in itertools.product(*sweep.values())
    ]
    assert [(s.base, dict(s.axes)) for s in spec.scenarios] == expected
    assert len({s.name for s in spec.scenarios}) == len(expected)
    assert spec.tasks == len(expected) * replicates


def test_the_baseline_of_a_crossed_scenario_has_the_same_axis_values() -> None:
    spec = make(
        HEAD + "[scenarios.a]\n[scenarios.b]\n[scenarios.c]\n"
        '[sweep]\nx = [1, 2]\ny = [3, 4]\n[bands]\nbaseline = "b"'
    )
    for index, other in enumerate(spec.baselines):
        assert other is not None
        assert spec.scenarios[other].base == "b"
        assert spec.scenarios[other].axes == spec.scenarios[index].axes


def test_one_point_can_be_the_baseline_of_all() -> None:
    text = HEAD + '[scenarios.a]\n[sweep]\nx = [1, 2]\n[bands]\nbaseline = "a,x=2"'
    assert make(text).baselines == (1, 1)
    assert make(HEAD + "[sweep]\nx = [1, 2]").baselines == (None, None)


@quick
@given(st.integers(1, 5), st.integers(1, 2**40), st.data())
def test_tasks_and_their_identities_are_one_to_one(
    scenarios: int, replicates: int, data: st.DataObject
) -> None:
    spec = Spec(
        specs.Ensemble("m:f", replicates, 1), sweep={"x": tuple(range(scenarios))}
    )
    task = data.draw(st.integers(0, spec.tasks - 1))
    scenario, replicate = spec.locate(task)
    assert 0 <= scenario < scenarios
    assert 0 <= replicate < replicates
    assert spec.number(scenario, replicate) == task
    identity = (
        data.draw(st.integers(0, scenarios - 1)),
        data.draw(st.integers(0, replicates - 1)),
    )
    assert spec.locate(spec.number(*identity)) == identity
    # row-major: replicates of one scenario follow one another
    assert spec.number(*identity) == identity[0] * replicates + identity[1]


def test_no_part_of_a_spec_can_be_assigned() -> None:
    spec = make(FULL)
    parts = [spec, spec.ensemble, spec.shared, spec.outputs["infected"]]
    parts += [spec.bands, spec.limits, spec.scenarios[0], Fault("", "")]
    for part in parts:
        for field in dataclasses.fields(part):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(part, field.name, None)


def test_the_same_keys_as_json_are_the_same_spec() -> None:
    document = {
        "ensemble": {"model": "model.py:simulate", "replicates": 3, "seed": 20260529},
        "scenarios": {"baseline": {}, "masks": {"mask": 0.7}},
        "sweep": {"beta": [0.2, 0.4]},
        "outputs": {"infected": {"dims": ["day"], "summaries": ["peak"]}},
        "bands": {"baseline": "baseline"},
    }
    text = HEAD + (
        "[scenarios.baseline]\n[scenarios.masks]\nmask = 0.7\n[sweep]\n"
        'beta = [0.2, 0.4]\n[outputs.infected]\ndims = ["day"]\n'
        'summaries = ["peak"]\n[bands]\nbaseline = "baseline"'
    )
    assert make(json.dumps(document), is_json=True) == make(text)


def test_a_null_of_json_is_kept() -> None:
    document = {
        "ensemble": {"model": "m:f", "replicates": 3, "seed": 1},
        "parameters": {"mask": None, "policy": {"until": None}},
    }
    spec = make(json.dumps(document), is_json=True)
    assert make(spec.to_json(), is_json=True) == spec


words = st.text(
    st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=6
)
zones = st.sampled_from([None, datetime.UTC])
dates = st.one_of(st.dates(), st.times(), st.datetimes(timezones=zones))
scalars = st.one_of(
    st.integers(), st.floats(allow_nan=False), st.booleans(), words, dates
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=2)
    ),
    max_leaves=5,
)


def keys(prefix: str) -> st.SearchStrategy[str]:
    """Names that Python takes; the prefixes keep sections from each other's names."""
    return st.from_regex(rf"{prefix}_[a-z0-9]{{1,3}}", fullmatch=True)


def written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


ranges = st.one_of(
    st.fixed_dictionaries({"choices": st.lists(scalars, min_size=1, max_size=3)}),
    st.fixed_dictionaries(
        {"low": st.integers(1, 9), "high": st.integers(10, 99) | st.floats(10, 99)},
        optional={"scale": st.sampled_from(["linear", "log"])},
    ),
    st.just({"low": 1, "high": 2, "integer": True}),
)


documents = st.fixed_dictionaries(
    {
        "ensemble": st.fixed_dictionaries(
            {
                "model": st.just("model.py:simulate"),
                "replicates": st.integers(1, 2**40),
                "seed": st.integers(0, 2**130),
            }
        )
    },
    optional={
        "parameters": st.dictionaries(keys("p"), values, max_size=3),
        "scenarios": st.dictionaries(
            words, st.dictionaries(keys("p"), values, max_size=2), max_size=3
        ),
        "sweep": st.dictionaries(
            keys("x"),
            st.lists(scalars, min_size=1, max_size=3, unique_by=written),
            max_size=3,
        ),
        "shared": st.fixed_dictionaries(
            {"loader": st.just("model.py:load")},
            optional={"kwargs": st.dictionaries(words, values, max_size=2)},
        ),
        "outputs": st.dictionaries(
            keys("o"),
            st.fixed_dictionaries(
                {},
                optional={
                    "dims": st.just(["day"]),
                    "units": words,
                    "keep": st.booleans(),
                    "summaries": st.just(["final", "total"]),
                },
            ),
            max_size=2,
        ),
        "design": st.fixed_dictionaries(
            {
                "method": st.sampled_from(["lhs", "sobol", "halton"]),
                "samples": st.integers(1, 5),
                "ranges": st.dictionaries(keys("d"), ranges, min_size=1, max_size=3),
            }
        ),
        "bands": st.fixed_dictionaries(
            {
                "levels": st.lists(
                    st.floats(0, 1), min_size=1, max_size=4, unique=True
                ).map(sorted)
            }
        ),
        "limits": st.fixed_dictionaries({"retries": st.integers(0, 9)}),
    },
)


def to_toml(value: Any) -> str:
    """Write a value as TOML, tables inline."""
    if isinstance(value, dict):
        items = (f"{to_toml(key)} = {to_toml(item)}" for key, item in value.items())
        return "{ " + ", ".join(items) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


@settings(quick, max_examples=100)
@given(documents)
def test_the_effective_spec_is_the_same_spec_again(document: dict[str, Any]) -> None:
    text = "\n".join(f"{name} = {to_toml(part)}" for name, part in document.items())
    spec = make(text)
    again = make(spec.to_json(), is_json=True)
    assert again == spec
    assert repr(again) == repr(spec)  # 1, 1.0 and true are equal, and are not the same
    assert [s.name for s in again.scenarios] == [s.name for s in spec.scenarios]
    assert again.to_json() == spec.to_json()


trash = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                [
                    *("model", "replicates", "seed", "reduce", "loader", "kwargs"),
                    *("dims", "summaries", "dtype", "length", "levels", "baseline"),
                    *("cost", "retries", "x", "rng", "zip", "exclude", "file"),
                    *("method", "samples", "ranges", "columns", "points", "labels"),
                    *("low", "high", "scale", "integer", "choices", "scenario"),
                ]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=8,
)


sections = (
    *("ensemble", "parameters", "scenarios", "sweep", "design"),
    *("shared", "outputs", "bands", "limits", "ensembel"),
)


@settings(quick, max_examples=100)
@given(st.dictionaries(st.sampled_from(sections), trash))
def test_no_document_is_too_odd_for_sentences(document: dict[str, Any]) -> None:
    reading = decode(json.dumps(document), "odd.json", is_json=True)
    if not reading.faults:
        reading.require()
    for line in SpecError(reading.faults, reading.path).lines():
        assert line.startswith("odd.json: ")
