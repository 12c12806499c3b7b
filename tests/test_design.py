"""Cubes, sampled points, and points in files: which scenarios a spec makes of them."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import itertools
import json
import math
import pickle
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Launcher, write
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import qmc

from mpiens.cube import Axes, Zips, check_exclusions, check_zips, cross
from mpiens.design import Range
from mpiens.fault import SpecError
from mpiens.growth import Change, compare, match
from mpiens.reader import decode
from mpiens.spec import Spec

HEAD = """\
[ensemble]
model = "model.py:simulate"
replicates = 2
seed = 20260529
"""
SOBOL = """
[design]
method = "sobol"
samples = 8
ranges.beta = { low = 0.1, high = 2.0, scale = "log" }
ranges.share = { low = 0.01, high = 0.9, scale = "logit" }
ranges.size = { low = 3, high = 12, integer = true }
ranges.policy = { choices = ["open", "closed", 2020-03-01] }
"""
quick = settings(max_examples=60, deadline=None, database=None)


def make(text: str, folder: Path | str = "lab") -> Spec:
    return decode(text, f"{folder}/sweep.toml").require()


def names(spec: Spec) -> list[str]:
    return [scenario.name for scenario in spec.scenarios]


def told(text: str, folder: Path | str = "lab") -> list[str]:
    """The faults of a spec, without the file and the lines."""
    with pytest.raises(SpecError) as caught:
        make(text, folder)
    return [str(fault) for fault in caught.value.faults]


def again(spec: Spec) -> Spec:
    """The spec that a result file keeps."""
    return decode(spec.to_json(), f"{spec.folder}/spec.json", is_json=True).require()


# cubes


@st.composite
def cubes(
    draw: st.DrawFn,
) -> tuple[Axes, Zips]:
    """Axes and groups of them that walk in step."""
    axes = [f"a{i}" for i in range(draw(st.integers(1, 5)))]
    group_of = {axis: draw(st.integers(0, 4)) for axis in axes}
    sizes = [draw(st.integers(1, 3)) for _ in range(5)]
    order = draw(st.permutations(axes))
    groups = [tuple(a for a in order if group_of[a] == g) for g in range(5)]
    values = {axis: tuple(range(sizes[group_of[axis]])) for axis in axes}
    return values, tuple(group for group in groups if len(group) > 1)


@quick
@given(cubes(), st.data())
def test_a_cube_is_the_product_less_what_is_out_of_step_or_excluded(
    cube: tuple[Axes, Zips],
    data: st.DataObject,
) -> None:
    axes, zips = cube
    points = [
        dict(zip(axes, values, strict=True))
        for values in itertools.product(*axes.values())
    ]
    # in step: here every value is its own index
    points = [p for p in points if all(len({p[a] for a in g}) == 1 for g in zips)]
    exclude = tuple(
        {a: point[a] for a in data.draw(st.sets(st.sampled_from([*axes]), min_size=1))}
        for point in data.draw(st.lists(st.sampled_from(points), max_size=3))
    )
    kept = [p for p in points if not any(e.items() <= p.items() for e in exclude)]
    assert [*cross(axes, zips, exclude)] == kept
    assert [*check_zips(axes, zips)] == []
    faults = [fault.text for fault in check_exclusions(axes, zips, exclude)]
    alone = ["leaves no point of the sweep; exclude fewer"]
    assert faults == ([] if kept else alone)


def test_axes_have_values_of_any_type() -> None:
    spec = make(
        HEAD
        + """
        [sweep]
        a = [1, 2.5, "x", true]
        since = [2020-03-01, 12:30:00]
        weights = [[1, 2], [3.5]]
        ages = [{ low = 1 }, { low = 2, high = 3 }]
        """
    )
    assert len(spec.scenarios) == 4 * 2 * 2 * 2
    last = spec.scenarios[-1]
    assert last.name == (
        'a=true,since=12:30:00,weights=[3.5],ages={"low": 2, "high": 3}'
    )
    assert last.parameters["since"] == datetime.time(12, 30)
    assert again(spec).scenarios == spec.scenarios


def test_zipped_axes_walk_together_in_the_place_of_the_first() -> None:
    spec = make(
        HEAD
        + """
        [sweep]
        a = [1, 2]
        b = ["x", "y"]
        c = [3, 4]
        zip = [["c", "a"]]
        """
    )
    assert names(spec) == [
        *("a=1,b=x,c=3", "a=1,b=y,c=3", "a=2,b=x,c=4", "a=2,b=y,c=4")
    ]
    assert again(spec) == spec
    assert names(again(spec)) == names(spec)


def test_excluded_points_are_left_out_whatever_else_they_are() -> None:
    spec = make(
        HEAD
        + """
        [scenarios.base]
        [scenarios.other]
        [sweep]
        a = [1, true, 2.0]
        since = [2020-03-01, 2020-04-01]
        exclude = [{ a = 2 }, { a = 1, since = 2020-04-01 }]
        """
    )
    # 2 is 2.0, and 1 is not true
    kept = [
        "a=1,since=2020-03-01",
        "a=true,since=2020-03-01",
        "a=true,since=2020-04-01",
    ]
    assert names(spec) == [f"{base},{p}" for base in ("base", "other") for p in kept]
    assert names(again(spec)) == names(spec)
    assert again(spec) == spec


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a = []", "[sweep] a: should be a list of values, not []"),
        (
            'zip = "a"',
            '[sweep] zip: should list groups of axes, as in [["a", "b"]], not \'a\'',
        ),
        (
            "zip = [[]]",
            '[sweep] zip: should list groups of axes, as in [["a", "b"]], not [[]]',
        ),
        (
            'beta = [1]\nzip = [["beta", "betta"]]',
            "[sweep] zip: 'betta' is no axis; did you mean beta?",
        ),
        (
            'a = [1]\nb = [1]\nzip = [["a", "b"], ["a"]]',
            "[sweep] zip: names 'a' twice; an axis walks with one group",
        ),
        (
            'a = [1, 2]\nb = [1]\nzip = [["a", "b"]]',
            "[sweep] zip: a has 2 and b has 1 values; axes that walk together need "
            "equally many",
        ),
        (
            "exclude = { a = 1 }",
            "[sweep] exclude: should list points, as in [{ a = 1, b = 2 }], "
            "not {'a': 1}",
        ),
        (
            "beta = [1, 2]\nexclude = [{ betta = 1 }]",
            "[sweep] exclude: 'betta' is no axis; did you mean beta?",
        ),
        (
            "a = [1, 2]\nb = [3]\nexclude = [{ a = 1, b = 4 }]",
            "[sweep] exclude: {'a': 1, 'b': 4} matches no point; name values that "
            "meet in the sweep",
        ),
        (
            "a = [1, 2]\nexclude = [{ a = 1 }, { a = 2 }]",
            "[sweep] exclude: leaves no point of the sweep; exclude fewer",
        ),
    ],
)
def test_a_fault_of_a_cube_is_told_once(text: str, sentence: str) -> None:
    assert told(f"{HEAD}[sweep]\n{text}") == [sentence]


def test_an_axis_at_fault_is_not_told_of_again_where_it_is_zipped() -> None:
    text = 'a = []\nb = [1]\nzip = [["a", "b"]]\nexclude = [{ a = 1 }]'
    assert told(f"{HEAD}[sweep]\n{text}") == [
        "[sweep] a: should be a list of values, not []"
    ]


# sampled points

ENGINES = {"lhs": qmc.LatinHypercube, "sobol": qmc.Sobol, "halton": qmc.Halton}


@pytest.mark.parametrize("method", ENGINES)
def test_points_are_those_of_scipy_scrambled_by_the_seed(method: str) -> None:
    spec = make(HEAD + SOBOL.replace("sobol", method))
    engine = ENGINES[method](4, rng=np.random.default_rng(20260529))
    units = engine.random(8)
    assert names(spec) == [f"sample={i}" for i in range(8)]
    policies = ["open", "closed", datetime.date(2020, 3, 1)]
    for scenario, (beta, share, size, policy) in zip(
        spec.scenarios, units, strict=True
    ):
        assert list(scenario.parameters) == ["beta", "share", "size", "policy"]
        own = scenario.parameters
        assert own["beta"] == pytest.approx(0.1 * 20**beta, rel=1e-12)
        odds = (0.01 / 0.99) * ((0.9 / 0.1) / (0.01 / 0.99)) ** share
        assert own["share"] == pytest.approx(odds / (1 + odds), rel=1e-12)
        assert own["size"] == 3 + math.floor(10 * size)
        assert own["policy"] == policies[math.floor(3 * policy)]
        assert [type(own[k]) for k in ("beta", "share", "size")] == [float, float, int]


def test_linear_points_are_what_scipy_scales() -> None:
    text = "ranges.x = { low = -1, high = 3 }\nranges.y = { low = 0.5, high = 0.75 }"
    spec = make(f'{HEAD}[design]\nmethod = "halton"\nsamples = 50\n{text}')
    units = qmc.Halton(2, rng=np.random.default_rng(20260529)).random(50)
    scaled = qmc.scale(units, [-1, 0.5], [3, 0.75])
    points = [[*s.parameters.values()] for s in spec.scenarios]
    np.testing.assert_allclose(points, scaled, rtol=1e-15)


def test_another_seed_gives_other_points() -> None:
    one, other = make(HEAD + SOBOL), make(HEAD.replace("29", "30") + SOBOL)
    assert names(one) == names(other)
    assert one.scenarios != other.scenarios


@pytest.mark.parametrize("seed", [0, 2**128 + 1])
def test_seeds_of_any_size_scramble(seed: int) -> None:
    spec = make(HEAD.replace("20260529", str(seed)) + SOBOL)
    assert again(spec).scenarios == spec.scenarios


@quick
@given(
    st.integers(-(2**53), 2**53 - 1),
    st.integers(1, 2**53),
    st.floats(0, 1, exclude_max=True),
)
@example(0, 2**53, 1 - 2**-53)
@example(1, 2, 1 - 2**-53)
def test_integers_stay_within_their_ends(low: int, width: int, unit: float) -> None:
    high = min(low + width, 2**53)
    value = Range(low, high, integer=True).value(unit)
    assert type(value) is int
    assert low <= value <= high


@quick
@given(
    st.floats(1e-300, 1e300),
    st.floats(1e-300, 1e300),
    st.floats(0, 1, exclude_max=True),
)
def test_numbers_stay_within_their_ends(a: float, b: float, unit: float) -> None:
    low, high = min(a, b), max(a, b)
    for own in (Range(low, high), Range(-high, -low), Range(low, high, "log")):
        assert own.low is not None
        assert own.high is not None
        assert own.low <= own.value(unit) <= own.high
    low, high = low / (1 + low), high / (1 + high)
    if 0 < low < high < 1:
        assert low <= Range(low, high, "logit").value(unit) <= high


def test_every_integer_and_every_choice_is_equally_likely() -> None:
    units = [(i + 0.5) / 6000 for i in range(6000)]
    size = Range(3, 8, integer=True)
    assert Counter(map(size.value, units)) == dict.fromkeys(range(3, 9), 1000)
    policy = Range(choices=("a", "b", "c"))
    assert Counter(map(policy.value, units)) == dict.fromkeys("abc", 2000)


def test_integers_on_a_log_scale_have_their_share_of_it() -> None:
    units = [(i + 0.5) / 10000 for i in range(10000)]
    counts = Counter(map(Range(1, 10, "log", integer=True).value, units))
    assert [*counts] == [*range(1, 11)]
    for value, count in counts.items():
        share = math.log((value + 0.5) / (value - 0.5)) / math.log(10.5 / 0.5)
        assert count == pytest.approx(10000 * share, abs=1)


def test_samples_need_be_no_power_of_two(recwarn: pytest.WarningsRecorder) -> None:
    assert len(make(HEAD + SOBOL.replace("8", "7", 1)).scenarios) == 7
    assert len(recwarn) == 0


@pytest.mark.parametrize("method", ["sobol", "halton", "saltelli"])
def test_more_samples_keep_the_points_to_the_last_bit(method: str) -> None:
    text = SOBOL.replace("sobol", method)
    block = 6 if method == "saltelli" else 1
    most = make(HEAD + text.replace("samples = 8", "samples = 999"))
    assert len(most.scenarios) == 999 * block
    for samples in (1, 2, 7, 8, 64, 500):
        fewer = make(HEAD + text.replace("samples = 8", f"samples = {samples}"))
        assert repr(fewer.scenarios) == repr(most.scenarios[: samples * block])


def test_samples_of_a_saltelli_design_are_blocks_of_points() -> None:
    spec = make(HEAD + SOBOL.replace("sobol", "saltelli"))
    assert names(spec) == [f"sample={i}" for i in range(8 * 6)]
    ranges = ["beta", "share", "size", "policy"]
    firsts = []
    for block in range(8):
        a, *mixed, b = spec.scenarios[6 * block : 6 * block + 6]
        for name, own in zip(ranges, mixed, strict=True):
            assert own.parameters == {**a.parameters, name: b.parameters[name]}
        firsts.append(a.parameters["beta"])
    assert len({*firsts}) == 8
    assert spec.design is not None
    assert [*spec.design.describe()][:1] == ["design saltelli: 8 samples, 48 points"]
    assert repr(again(spec).scenarios) == repr(spec.scenarios)


def test_a_design_is_crossed_with_scenarios_and_sweep() -> None:
    spec = make(
        HEAD
        + "[parameters]\nbeta = 7\ndays = 10\n[scenarios.open]\n[scenarios.masks]\n"
        + "mask = 1\n[sweep]\nx = [1, 2]\n[bands]\nbaseline = 'open'\n"
        + SOBOL.replace("8", "3", 1)
    )
    assert names(spec) == [
        f"{base},x={x},sample={i}"
        for base in ("open", "masks")
        for x in (1, 2)
        for i in range(3)
    ]
    assert spec.baselines == (*range(6), *range(6))
    one, other = spec.scenarios[4], spec.scenarios[10]
    assert one.name == "open,x=2,sample=1"
    assert other.parameters == {**one.parameters, "mask": 1}
    assert list(other.parameters) == [
        *("beta", "days", "mask", "x", "share", "size", "policy")
    ]
    assert other.parameters["beta"] < 2  # the design's, not that of [parameters]
    assert again(spec).baselines == spec.baselines


def test_a_spec_has_its_points_and_needs_neither_scipy_nor_file_again(
    launcher: Launcher, tmp_path: Path
) -> None:
    listed = '[design]\nmethod = "csv"\nfile = "points.csv"'
    for text in (SOBOL, listed):
        write(tmp_path, "points.csv", "a,b\n1,x\n2,y\n")
        spec = make(HEAD + text, tmp_path)
        assert repr(again(spec)) == repr(
            dataclasses.replace(spec, folder=again(spec).folder)
        )
        assert repr(again(spec).scenarios) == repr(spec.scenarios)
        assert again(spec).to_json() == spec.to_json()
        (tmp_path / "spec.json").write_text(spec.to_json())
        (tmp_path / "spec.pickle").write_bytes(pickle.dumps(spec))
        (tmp_path / "points.csv").unlink()
        code = """
import json, pickle, sys
sys.modules["scipy"] = None
from pathlib import Path
from mpiens.reader import read
spec = read("spec.json").require()
other = pickle.loads(Path("spec.pickle").read_bytes())
assert repr(spec.scenarios) == repr(other.scenarios)
print(json.dumps([s.name for s in other.scenarios]))
"""
        launch = launcher.run([sys.executable, "-c", code])
        assert launch.code == 0, launch.errors
        assert json.loads(launch.output) == names(spec)


def test_without_salib_the_way_to_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "SALib.sample", None)
    [sentence] = told(HEAD + SOBOL.replace("sobol", "saltelli"))
    way = "[design] method: 'saltelli' needs SALib; install it by pip install "
    assert sentence.startswith(way + '"mpiens[sensitivity]" (')


def test_points_written_out_have_to_be_those_of_the_design() -> None:
    document = json.loads(make(HEAD + SOBOL).to_json())
    wrong = "[design] points: are not those of the design; leave points out to have "
    document["design"]["samples"] = 9
    reading = decode(json.dumps(document), "a.json", is_json=True)
    assert [str(f) for f in reading.faults] == [wrong + "them made"]
    del document["design"]["points"]
    assert (
        len(decode(json.dumps(document), "a.json", is_json=True).require().scenarios)
        == 9
    )


BETA = "ranges.beta = { low = 1, high = 2 }\n"
SAMPLES = "samples = 4\n"


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        (SAMPLES + BETA, ["[design] method: is missing; every spec needs it"]),
        (
            'method = "lsh"\n' + SAMPLES + BETA,
            [
                "[design] method: 'lsh' should be 'lhs', 'sobol', 'halton', 'saltelli' "
                "or 'csv'",
            ],
        ),
        (
            'method = "sobol"\n' + BETA,
            [
                "[design] samples: is missing, and method = 'sobol' needs it; say how "
                "many points, such as samples = 256"
            ],
        ),
        (
            'method = "sobol"\nsamples = 0\n' + BETA,
            ["[design] samples: 0 should be greater than or equal to 1"],
        ),
        (
            'method = "lhs"\n' + SAMPLES,
            [
                "[design] ranges: is missing, and method = 'lhs' needs it; give each "
                "parameter one, such as ranges.beta = { low = 0.1, high = 2.0 }"
            ],
        ),
        (
            'method = "sobol"\nfile = "a.csv"\ncolumns = ["a"]\n' + SAMPLES + BETA,
            [
                "[design] file: does not go with method = 'sobol'; leave it out",
                "[design] columns: does not go with method = 'sobol'; leave it out",
            ],
        ),
        (
            'method = "csv"\n' + SAMPLES + BETA,
            [
                "[design] file: is missing, and method = 'csv' needs it; name it, such "
                'as file = "points.csv"',
                "[design] samples: does not go with method = 'csv'; leave it out",
                "[design] ranges: does not go with method = 'csv'; leave it out",
            ],
        ),
        (
            'method = "lhs"\nsample = 4\n' + BETA + SAMPLES,
            ["[design] sample: is not a key here; did you mean samples?"],
        ),
        (
            'method = "lhs"\nranges = 3\n' + SAMPLES,
            ["[design] ranges: should be a table, not 3"],
        ),
        (
            'method = "lhs"\nranges.beta = [1, 2]\n' + SAMPLES,
            [
                "[design.ranges] beta: should be a table, not [1, 2]; write "
                "[design.ranges.beta]"
            ],
        ),
    ],
)
def test_a_fault_of_a_design_is_told_once(text: str, sentences: list[str]) -> None:
    assert sorted(told(f"{HEAD}[design]\n{text}")) == sorted(sentences)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("low = 2, high = 1", " low: 2 is not below high = 1; a range rises"),
        ("low = 2, high = 2.0", " low: 2 is not below high = 2.0; a range rises"),
        ("low = 2", " high: is missing; a range has low and high, or choices"),
        (
            'low = -1, high = 1, scale = "log"',
            ' low: -1 has no logarithm; scale = "log" needs low above 0',
        ),
        (
            'low = 0, high = 1, scale = "log"',
            ' low: 0 has no logarithm; scale = "log" needs low above 0',
        ),
        (
            'low = 0, high = 0.5, scale = "logit"',
            ' low: 0 has no logit; scale = "logit" needs ends within 0 and 1',
        ),
        (
            'low = 0.5, high = 1.0, scale = "logit"',
            ' high: 1.0 has no logit; scale = "logit" needs ends within 0 and 1',
        ),
        (
            "low = 0.5, high = 3, integer = true",
            " low: 0.5 is no integer, and integer = true wants such ends",
        ),
        (
            "low = 0, high = nan",
            " high: nan is no end of a range; give one up to 8.99e+307",
        ),
        (
            "low = -inf, high = 1",
            " low: -inf is no end of a range; give one up to 8.99e+307",
        ),
        (
            "low = 0, high = 9007199254740994, integer = true",
            " high: 9007199254740994 is no end of a range; give one up to 9.01e+15",
        ),
        ("choices = []", " choices: is empty; give values, such as"),
        ('choices = ["a"], low = 1', " low: cannot go with choices; drop either"),
        ('low = "a", high = 1', " low: 'a'"),
        ("low = 1, hihg = 2, high = 3", " hihg: is not a key here; did you mean high?"),
        (
            'low = 1, high = 2, scale = "lin"',
            " scale: 'lin' should be 'linear', 'log' or 'logit'",
        ),
    ],
)
def test_a_fault_of_a_range_is_told_once(text: str, sentence: str) -> None:
    design = f'[design]\nmethod = "lhs"\n{SAMPLES}ranges.beta = {{ {text} }}'
    faults = told(HEAD + design)
    assert faults
    for fault in faults:
        assert fault.startswith("[design.ranges.beta]" + sentence)


def test_a_range_at_fault_has_its_line() -> None:
    text = (
        HEAD + "[design]\nmethod = 'lhs'\nsamples = 2\nranges.b = { low = 2, high = 1 }"
    )
    [fault] = decode(text, "lab/sweep.toml").faults
    assert fault.line == len(text.splitlines())


def test_parameters_are_checked_wherever_they_come_from(tmp_path: Path) -> None:
    write(tmp_path, "points.csv", "rng,two words,x,mask\n1,2,3,4\n5,6,7,8\n")
    write(tmp_path, "more.csv", "scenario,x,seed\na,1,2\nb,3,4\n")
    text = (
        HEAD + '[scenarios]\nfile = "more.csv"\n[scenarios.c]\nmask = 3\n'
        "[sweep]\nmask = [1]\nbeta = [2]\n"
        '[design]\nmethod = "csv"\nfile = "points.csv"'
    )
    own = "is what mpiens itself passes to a model; choose another name"
    assert {*told(text, tmp_path)} == {
        f"[design] file.rng: {own}",
        "[design] file.two words: cannot be an argument of a Python function; choose "
        "another name",
        f"[scenarios] file.seed: {own}",
        "[scenarios] file.x: is also a parameter of [design]; keep x in one of the two",
        "[scenarios.c] mask: is also a parameter of [design]; keep mask in one of the "
        "two",
        "[sweep] mask: is also a parameter of [design]; keep mask in one of the two",
    }
    ranged = HEAD + '[design]\nmethod = "lhs"\nsamples = 4\n'
    ranged += "ranges.seed = { low = 1, high = 2 }"
    assert told(ranged) == [f"[design.ranges.seed]: {own}"]


def test_the_word_that_names_samples_is_no_axis_beside_them() -> None:
    text = f"{HEAD}[sweep]\nsample = [1]\n"
    assert names(make(text)) == ["sample=1"]
    reserved = "is what names the points of a design, as in sample=17; choose another"
    assert told(text + SOBOL) == [f"[sweep] sample: {reserved} name"]
    assert told(HEAD + SOBOL.replace("ranges.beta", "ranges.sample")) == [
        f"[design.ranges.sample]: {reserved} name"
    ]


# points in a file


def points(text: str, folder: Path, more: str = "", head: str = HEAD) -> str:
    """A spec with a design of the given points."""
    write(folder, "points.csv", text)
    return f'{head}[design]\nmethod = "csv"\nfile = "points.csv"\n{more}\n'


def test_points_of_a_file_are_named_by_their_values(tmp_path: Path) -> None:
    text = 'size,depth,name,on\n75,2.5,"a, b",true\n-5,1e3,open,False\n'
    spec = make(points(text, tmp_path), tmp_path)
    assert [dict(s.parameters) for s in spec.scenarios] == [
        {"size": 75, "depth": 2.5, "name": "a, b", "on": True},
        {"size": -5, "depth": 1000.0, "name": "open", "on": False},
    ]
    assert names(spec) == [
        "size=75,depth=2.5,name=a, b,on=true",
        "size=-5,depth=1000.0,name=open,on=false",
    ]


def test_points_of_a_file_may_have_names_of_their_own(tmp_path: Path) -> None:
    text = points("scenario,x\nlow,1\nhigh,2\n", tmp_path, "[sweep]\na = [3, 4]")
    spec = make(text, tmp_path)
    assert names(spec) == ["a=3,low", "a=3,high", "a=4,low", "a=4,high"]
    assert spec.scenarios[1].parameters == {"a": 3, "x": 2}
    assert again(spec).scenarios == spec.scenarios


def test_columns_say_what_is_taken_and_in_which_order(tmp_path: Path) -> None:
    text = "a,note,b\n1,,2\n3,x,4\n"
    spec = make(points(text, tmp_path, 'columns = ["b", "a"]'), tmp_path)
    assert names(spec) == ["b=2,a=1", "b=4,a=3"]


def test_a_file_of_a_spreadsheet_is_read(tmp_path: Path) -> None:
    text = points("", tmp_path)
    (tmp_path / "points.csv").write_bytes("\ufeffa, b\r\n1, é\r\n,\r\n".encode())
    assert names(make(text, tmp_path)) == ["a=1,b=é"]


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        *(("1", 1), ("-7", -7), ("+3", 3), ("007", 7), ("1.0", 1.0), (".5", 0.5)),
        *(("1e-3", 0.001), ("inf", math.inf), ("true", True), ("FALSE", False)),
        *(("1_000", "1_000"), ("0x10", "0x10"), ("2020-03-01", "2020-03-01")),
        *(("NA", "NA"), ("1,5", "1,5")),
    ],
)
def test_a_cell_is_a_number_or_a_truth_or_else_text(
    tmp_path: Path, cell: str, value: Any
) -> None:
    spec = make(points(f'x\n"{cell}"\n', tmp_path), tmp_path)
    [own] = spec.scenarios[0].parameters.values()
    assert (own, type(own)) == (value, type(value))


@quick
@given(
    st.lists(
        st.tuples(
            st.integers(-(2**70), 2**70),
            st.floats(allow_nan=False),
            st.booleans(),
            st.from_regex(r"[a-zäé][a-z ,;\"']{0,5}[xyz]", fullmatch=True),
        ),
        min_size=1,
        max_size=5,
        unique=True,
    )
)
def test_what_csv_writes_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, ...]]
) -> None:
    folder = tmp_path_factory.mktemp("points")
    text = points("", folder)
    with (folder / "points.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow("abcd")
        writer.writerows(rows)
    spec = make(text, folder)
    assert [tuple(s.parameters.values()) for s in spec.scenarios] == rows


@pytest.mark.parametrize(
    ("text", "more", "sentences"),
    [
        (
            "",
            "",
            ["[design] file: points.csv has no points; it wants a row "],
        ),
        ("a,b\n", "", ["[design] file: points.csv has no points; it wants a row "]),
        ("a,,b\n1,2,3\n", "", ["[design] file: points.csv: column 2 has no name; "]),
        ("a,b,a\n1,2,3\n", "", ["[design] file: points.csv has column 'a' twice; "]),
        (
            "a,b\n1,2\n1\n1,2,3\n",
            "",
            [
                "[design] file: points.csv, row 3: has 1 cells, and there are 2 ",
                "[design] file: points.csv, row 4: has 3 cells, and there are 2 ",
            ],
        ),
        (
            "a,b\n1,\n\n,2\n",
            "",
            [
                "[design] file: points.csv, row 2: b is empty; fill it in",
                "[design] file: points.csv, row 4: a is empty; fill it in",
            ],
        ),
        (
            "a\n1\n2\n1\n",
            "",
            ["[design] file: gives scenario 'a=1' twice; name each point once"],
        ),
        (
            "scenario,a\nx,1\nx,2\n",
            "",
            ["[design] file: gives scenario 'x' twice; name each point once"],
        ),
        (
            "scenario,a\nx,1\n,2\n",
            "",
            ["[design] file: points.csv, row 3: scenario is empty; fill it in"],
        ),
        (
            "beta,b\n1,2\n",
            'columns = ["betta", "b", "zzz"]',
            [
                "[design] columns: points.csv has no column 'betta'; did you mean beta",
                "[design] columns: points.csv has no column 'zzz'",
            ],
        ),
        ("scenario\nx\n", "", ["[design] file: points.csv has no column of a "]),
        ('a\n"1\n', "", ["[design] file: points.csv, row 2: is not CSV: "]),
    ],
)
def test_a_fault_of_a_file_of_points_tells_its_row(
    tmp_path: Path, text: str, more: str, sentences: list[str]
) -> None:
    faults = told(points(text, tmp_path, more), tmp_path)
    assert len(faults) == len(sentences), faults
    for fault, sentence in zip(faults, sentences, strict=True):
        assert fault.startswith(sentence)


def test_many_faults_of_a_file_are_counted(tmp_path: Path) -> None:
    text = "a,b\n" + "1,\n" * 1000
    faults = told(points(text, tmp_path), tmp_path)
    assert len(faults) == 9
    assert faults[-1] == "[design] file: and 992 more faults like these"


def test_a_file_of_points_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    text = points("", tmp_path)
    (tmp_path / "points.csv").write_bytes(b"a\n\xe9\n")
    path = tmp_path / "points.csv"
    start = f"[design] file: {path} cannot be read: "
    assert told(text, tmp_path) == [start + "it is not UTF-8"]
    path.unlink()
    assert told(text, tmp_path) == [start + "No such file or directory"]


# scenarios in a file


def test_scenarios_come_from_a_table_with_gaps(tmp_path: Path) -> None:
    write(tmp_path, "s.csv", "mask,scenario,beta\n0.5,masks,\n,open,2\n")
    text = HEAD + '[scenarios]\nfile = "s.csv"\n[scenarios.own]\ndays = 3\n'
    text += "[bands]\nbaseline = 'open'"
    spec = make(text, tmp_path)
    assert [(s.name, dict(s.parameters)) for s in spec.scenarios] == [
        ("masks", {"mask": 0.5}),
        ("open", {"beta": 2}),
        ("own", {"days": 3}),
    ]
    assert spec.baselines == (1, 1, 1)
    assert again(spec).scenarios == spec.scenarios
    assert "file" not in json.loads(spec.to_json())["scenarios"]


def test_scenarios_come_from_json_as_an_object_or_a_list(tmp_path: Path) -> None:
    own = {"mask": 0.5, "ages": [1, 2], "who": None}
    forms: list[Any] = [{"masks": own, "open": {}}]
    forms.append([{"scenario": "masks", **own}, {"scenario": "open"}])
    for form in forms:
        (tmp_path / "s.json").write_text(json.dumps(form))
        spec = make(HEAD + '[scenarios]\nfile = "s.json"', tmp_path)
        assert [(s.name, s.parameters) for s in spec.scenarios] == [
            ("masks", own),
            ("open", {}),
        ]


def test_a_scenario_may_be_called_file() -> None:
    assert names(make(HEAD + "[scenarios.file]\nx = 1")) == ["file"]
    assert told(HEAD + "[scenarios]\nfile = 3") == [
        "[scenarios] file: should be a table, not 3; write [scenarios.file]"
    ]


@pytest.mark.parametrize(
    ("name", "text", "sentences"),
    [
        (
            "s.csv",
            "name,a\nx,1\n",
            ["s.csv has no column 'scenario', which names"],
        ),
        (
            "s.csv",
            "scenario,a\nx,1\n,1\n",
            ["s.csv, row 3: scenario is empty; give"],
        ),
        (
            "s.csv",
            "scenario,a\nx,1\nx,1\n",
            ["s.csv, row 3: scenario 'x' stands there twice; rename one"],
        ),
        ("s.json", "{", ["s.json is not JSON: "]),
        (
            "s.json",
            '{"x": {}, "x": {}}',
            ["s.json is not JSON: 'x' stands twice"],
        ),
        (
            "s.json",
            "3",
            ["s.json should hold an object of scenarios, or a list"],
        ),
        ("s.json", "{}", ["s.json has no scenario; give it one"]),
        (
            "s.json",
            '{"x": 3}',
            ["s.json, x: should be an object of parameters"],
        ),
        (
            "s.json",
            "[{}]",
            ["s.json, entry 1: has no name; give it a text"],
        ),
        (
            "s.json",
            "[3]",
            ["s.json, entry 1: should be an object of parameters"],
        ),
        (
            "s.json",
            '[{"scenario": "x"}, {"scenario": "x"}]',
            ["s.json, entry 2: scenario 'x' stands there twice; rename one"],
        ),
        ("s.yaml", "", ["'s.yaml' is neither .csv nor .json; write the scenarios as"]),
    ],
)
def test_a_fault_of_a_file_of_scenarios_is_told(
    tmp_path: Path, name: str, text: str, sentences: list[str]
) -> None:
    write(tmp_path, name, text)
    faults = told(f'{HEAD}[scenarios]\nfile = "{name}"', tmp_path)
    assert len(faults) == len(sentences), faults
    for fault, sentence in zip(faults, sentences, strict=True):
        assert fault.startswith(f"[scenarios] file: {sentence}")


def test_a_scenario_of_a_file_and_of_the_spec_is_told(tmp_path: Path) -> None:
    write(tmp_path, "s.csv", "scenario,a\nx,1\n")
    text = HEAD + '[scenarios]\nfile = "s.csv"\n[scenarios.x]'
    assert told(text, tmp_path) == [
        "[scenarios.x]: is also a scenario of s.csv; rename one of them"
    ]


# growth


def change(old: Spec, new: Spec) -> Change:
    def fill(spec: Spec) -> dict[str, tuple[Any, ...]]:
        names = dict.fromkeys(n for s in spec.scenarios for n in s.parameters)
        return {n: tuple(s.parameters.get(n) for s in spec.scenarios) for n in names}

    return compare(old, new, fill(old), fill(new))


@pytest.mark.parametrize("method", ["sobol", "halton", "saltelli"])
def test_more_or_fewer_samples_are_growth(method: str) -> None:
    old = make(HEAD + SOBOL.replace("sobol", method))
    block = 6 if method == "saltelli" else 1
    for samples in (5, 9, 16):
        text = SOBOL.replace("sobol", method).replace("= 8", f"= {samples}", 1)
        new = make(HEAD + text)
        assert change(again(old), new) == Change((), grows=True, relays=True)
        kept = block * min(samples, 8)
        assert match(old, new) == {i: i for i in range(kept)}
    assert change(again(old), old).none


def test_more_samples_of_an_lhs_are_refused_with_the_reason() -> None:
    lhs = SOBOL.replace("sobol", "lhs")
    old, new = make(HEAD + lhs), make(HEAD + lhs.replace("= 8", "= 9", 1))
    found = change(again(old), new)
    assert found.refused == ("[design] samples",)
    assert found.why["[design] samples"] == (
        "every point of an lhs moves with their number (sobol and halton keep theirs)"
    )
    assert change(again(old), old).none


@pytest.mark.parametrize(
    ("old", "new", "places"),
    [
        ("high = 2.0", "high = 2.5", {"[design.ranges.beta]"}),
        ('["open"', '["shut"', {"[design.ranges.policy]"}),
        ('method = "sobol"', 'method = "halton"', {"[design] method"}),
    ],
)
def test_points_that_move_are_refused_by_what_has_moved_them(
    old: str, new: str, places: set[str]
) -> None:
    before, now = make(HEAD + SOBOL), make(HEAD + SOBOL.replace(old, new))
    assert {*change(before, now).refused} == places


def test_another_seed_is_refused_as_that() -> None:
    before, now = make(HEAD + SOBOL), make(HEAD.replace("29", "30") + SOBOL)
    assert change(before, now).refused == ("[ensemble] seed",)


def test_points_of_a_file_grow_by_rows(tmp_path: Path) -> None:
    old = make(points("a,b\n1,2\n3,4\n", tmp_path), tmp_path)
    new = make(points("a,b\n5,6\n3,4\n1,2\n", tmp_path), tmp_path)
    assert change(old, new) == Change((), grows=True, relays=True)
    assert match(old, new) == {1: 1, 2: 0}
    old = make(points("scenario,a\nx,2\ny,4\n", tmp_path), tmp_path)
    new = make(points("scenario,a\nx,3\ny,4\n", tmp_path), tmp_path)
    assert change(old, new).refused == ("[design] file.a",)


# size


def test_a_hundred_thousand_scenarios_take_seconds(tmp_path: Path) -> None:
    text = SOBOL.replace("= 8", "= 50000", 1)
    text += "[scenarios.open]\n[scenarios.masks]\n[bands]\nbaseline = 'open'"
    began = time.process_time()
    spec = make(HEAD + text)
    assert len(spec.scenarios) == 100_000
    assert spec.baselines[-1] == 49_999
    kept = pickle.loads(pickle.dumps(again(spec)))
    assert kept.scenarios[-1] == spec.scenarios[-1]
    assert time.process_time() - began < 60  # some 4 s
