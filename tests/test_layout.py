"""The result file as data: rows, what is refused of them, and every dataset's place."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from mpiens import spec as specs
from mpiens.layout import FAILURE_BYTES, FAILURES, Dataset, Layout, to_column
from mpiens.row import Output, OutputError, Row, checksum, describe, settle
from mpiens.spec import Spec

quick = settings(max_examples=60, deadline=None, database=None)
REAL = list("?bBhHiIlLefd")


def make_spec(
    replicates: int = 2, baseline: str | None = None, **outputs: specs.Output
) -> Spec:
    return Spec(
        specs.Ensemble("model.py:simulate", replicates, 1),
        bases={"baseline": {}, "masks": {"mask": 0.7}},
        sweep={"beta": (0.2, 0.4, 0.6)},
        outputs=outputs,
        bands=specs.Bands((0.1, 0.9), baseline),
    )


def settled(spec: Spec, **returned: Any) -> Row:
    return settle(spec, describe(spec, returned))


def refused(spec: Spec, returned: Any) -> str:
    with pytest.raises(OutputError) as caught:
        describe(spec, returned)
    return str(caught.value)


# What one task leaves


def test_a_row_is_packed() -> None:
    row = settled(make_spec(), a=np.int8(1), b=np.ones((3, 2)), c=np.float32(2), d=True)
    assert row.dtype.itemsize == 1 + 6 * 8 + 4 + 1
    assert row.dtype.names == ("a", "b", "c", "d")


def test_a_filled_row_holds_what_was_returned_byte_by_byte() -> None:
    returned = {"b": np.array([1.5, -2.5]), "a": 7, "c": [True, False]}
    row = settled(make_spec(), **returned)
    rows = np.zeros(1, row.dtype)
    row.fill(rows[0], dict(reversed(returned.items())))
    expected = np.array([1.5, -2.5], "<f8").tobytes() + np.array([7], "<i8").tobytes()
    assert rows.tobytes() == expected + b"\x01\x00"


@pytest.mark.parametrize("stored", REAL)
@pytest.mark.parametrize("given", REAL)
def test_a_later_row_is_cast_by_numpys_same_kind_rule(given: str, stored: str) -> None:
    first, later = np.zeros(2, stored), np.ones(2, given)
    [output] = settled(make_spec(), x=first).outputs
    target = np.zeros(2, stored)  # for numpy a number is no truth value
    try:
        np.copyto(target, later, casting="same_kind")
    except TypeError:
        with pytest.raises(OutputError) as caught:
            output.cast(later)
        assert "'x'" in str(caught.value)
        assert str(later.dtype) in str(caught.value)
        kept = bool if stored == "?" else output.dtype
        assert str(np.dtype(kept)) in str(caught.value)
    else:
        cast = output.cast(later)
        assert cast.dtype == np.dtype(output.dtype)
        assert cast.tolist() == target.tolist()


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        *(("?", "|i1"), ("i1", "|i1"), ("u2", "<u2"), ("i8", "<i8")),
        *(("e", "<f4"), ("f", "<f4"), ("d", "<f8"), ("g", "<f8"), (">f8", "<f8")),
        *((">i4", "<i4"), ("<u8", "<u8")),
    ],
)
def test_types_are_stored_as_netcdf_knows_them(given: str, stored: str) -> None:
    value = np.array([0, 1], given)
    row = settled(make_spec(), x=value)
    assert row.outputs[0].dtype in (stored, stored.replace("|", "<"))
    assert row.outputs[0].boolean == (given == "?")
    rows = np.zeros(1, row.dtype)
    row.fill(rows[0], {"x": value})
    assert rows["x"].tolist() == [[0, 1]]


def test_a_shorter_row_of_truth_values_is_refused_like_any_other() -> None:
    [output] = settled(make_spec(), x=[True, False]).outputs
    with pytest.raises(OutputError, match="shape"):
        output.cast([True])


def test_a_wrong_shape_is_refused_with_both_shapes() -> None:
    [output] = settled(make_spec(), x=np.zeros((3, 2))).outputs
    with pytest.raises(OutputError) as caught:
        output.cast(np.zeros((4, 2)))
    told = str(caught.value)
    assert "'x'" in told
    assert "(4, 2)" in told
    assert "(3, 2)" in told
    assert "length" in told


@quick
@given(
    arrays(st.sampled_from(["f8", "f4", "i4", "?"]), array_shapes(max_side=5)),
    st.integers(1, 7),
)
def test_shorter_rows_are_padded_with_nan_and_longer_ones_refused(
    value: Any, length: int
) -> None:
    dims = tuple("abcd"[: value.ndim])
    spec = make_spec(x=specs.Output(dims=dims, length=length))
    if len(value) > length:
        told = refused(spec, {"x": value})
        assert f"has {len(value)} entries" in told
        assert f"length in the spec is {length}" in told
        return
    row = settled(spec, x=value)
    rows = np.zeros(1, row.dtype)
    row.fill(rows[0], {"x": value})
    stored = rows["x"][0]
    assert stored.shape == (length, *value.shape[1:])
    assert stored.dtype.kind == "f"
    assert np.array_equal(stored[: len(value)], value, equal_nan=True)
    assert np.isnan(stored[len(value) :]).all()


def test_only_the_first_dimension_may_be_shorter() -> None:
    spec = make_spec(x=specs.Output(dims=("day", "age"), length=5))
    [output] = settled(spec, x=np.zeros((2, 3))).outputs
    for shape in ((2, 2), (2,), (2, 3, 1), ()):
        with pytest.raises(OutputError, match="shape"):
            output.cast(np.zeros(shape))


@pytest.mark.parametrize(
    ("returned", "parts"),
    [
        ({"x": 1 + 2j}, ["'x'", "complex128", "no real number"]),
        ({"x": "text"}, ["'x'", "no real number"]),
        ({"x": None}, ["'x'", "object", "no real number"]),
        ({"x": np.datetime64("2020-01-01")}, ["'x'", "datetime64", "no real number"]),
        ({"x": [[1], [1, 2]]}, ["'x'", "no array"]),
        ({}, ["no output at all"]),
        (3.5, ["mapping", "float", "reduce"]),
        (None, ["mapping", "NoneType", "reduce"]),
        ({"two words": 1}, ["'two words'", "letters, digits"]),
    ],
)
def test_what_is_no_output_is_refused_in_a_sentence(
    returned: Any, parts: list[str]
) -> None:
    told = refused(make_spec(), returned)
    assert all(part in told for part in parts), told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("output", "value", "parts"),
    [
        (specs.Output(dims=("day",)), np.ones((2, 3)), ["'x'", "(2, 3)", "(day)"]),
        (specs.Output(dims=("day", "age")), 1.0, ["'x'", "()", "(day, age)"]),
        (specs.Output(summaries=("peak",)), np.ones((2, 3)), ["'x'", "2 dimensions"]),
        (specs.Output(summaries=("peak_time",)), 1.0, ["'x'", "dimension"]),
        (specs.Output(dtype="int32"), 1.5, ["'x'", "float64", "int32"]),
        (specs.Output(dtype="bool"), 300, ["'x'", "int64", "bool"]),
    ],
)
def test_a_first_task_that_contradicts_the_spec_is_refused(
    output: specs.Output, value: Any, parts: list[str]
) -> None:
    told = refused(make_spec(x=output), {"x": value})
    assert all(part in told for part in parts), told


def test_an_output_of_the_spec_has_to_be_returned() -> None:
    told = refused(make_spec(infected=specs.Output()), {"x": 1, "y": 2})
    assert "'infected'" in told
    assert "x, y" in told


def test_a_dimension_has_one_length() -> None:
    day = specs.Output(dims=("day",))
    told = refused(make_spec(x=day, y=day), {"x": np.ones(3), "y": np.ones(4)})
    for part in ("'day'", "3", "4", "'x'", "'y'"):
        assert part in told


@pytest.mark.parametrize(
    ("returned", "parts"),
    [
        ({"x": 1}, ["'y'", "missing", "x, y"]),
        ({"x": 1, "y": 2, "z": 3}, ["'z'", "no earlier task", "x, y"]),
        ([1, 2], ["mapping", "list"]),
    ],
)
def test_a_later_task_has_the_outputs_of_the_first(
    returned: Any, parts: list[str]
) -> None:
    row = settled(make_spec(), x=1, y=2)
    with pytest.raises(OutputError) as caught:
        row.fill(np.zeros(1, row.dtype)[0], returned)
    assert all(part in str(caught.value) for part in parts)


@quick
@given(st.binary())
def test_a_checksum_is_the_head_of_a_sha256(data: bytes) -> None:
    head = hashlib.sha256(data).hexdigest()[:16]
    assert checksum(data) == int.from_bytes(bytes.fromhex(head), "little")
    assert checksum(memoryview(data)) == checksum(data)
    assert 0 <= checksum(data) < 2**64


@pytest.mark.parametrize(
    ("dtype", "fill"),
    [
        *(("<f8", math.nan), ("<f4", math.nan), ("<i8", -(2**63)), ("|i1", -128)),
        *(("<u2", 65535), ("<u8", 2**64 - 1)),
    ],
)
def test_a_place_that_no_model_filled_is_marked(dtype: str, fill: Any) -> None:
    found = Output("x", (), (), dtype).fill
    assert found.dtype == np.dtype(dtype)
    assert np.array_equal(found, fill, equal_nan=math.isnan(fill))


# What the whole file holds


def make_layout(**kwargs: Any) -> Layout:
    infected = specs.Output(("day",), ("peak", "peak_time"), units="agents")
    wave = specs.Output(dims=("day", "side"), keep=False)
    spec = make_spec(infected=infected, wave=wave, **kwargs)
    returned = {"infected": np.ones(5), "wave": np.ones((5, 2)), "share": 0.5}
    returned["grid"] = np.ones((3, 4), dtype=np.int32)
    row = settle(spec, describe(spec, returned))
    count = len(spec.scenarios)
    return Layout(spec, {"beta": (0.2,) * count, "policy": ("open",) * count}, row)


def beside(path: str, dims: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    """What stands beside every band."""
    return {
        f"{path}.interval": ("scenario", "level", "bound", *dims),
        f"{path}.prediction": ("scenario", "prediction", "bound", *dims),
        f"{path}.mean": ("scenario", *dims),
        f"{path}.std": ("scenario", *dims),
    }


def test_every_dataset_stands_where_the_design_says() -> None:
    layout = make_layout(baseline="baseline")
    found = {dataset.path: dataset.dims for dataset in layout.datasets()}
    task = ("scenario", "replicate")
    wanted: dict[str, tuple[str, ...]] = {
        "/parameters/beta": ("scenario",),
        "/parameters/policy": ("scenario",),
        "/tasks/done": ("scenario",),
        "/failures/task": ("failure",),
        "/failures/text": ("failure",),
    }
    for name in ("scenario", "replicate", "level", "failure", "day", "side"):
        wanted[f"/{name}"] = (name,)
    for name in ("grid_0", "grid_1", "bound", "prediction"):
        wanted[f"/{name}"] = (name,)
    for name in ("status", "checksum", "seconds", "ended", "attempts", "rank"):
        wanted[f"/tasks/{name}"] = task
    outputs = {
        "infected": ("day",),
        "wave": ("day", "side"),
        "share": (),
        "grid": ("grid_0", "grid_1"),
    }
    for name, dims in outputs.items():
        wanted[f"/series/{name}"] = (*task, *dims)
        for group in ("bands", "differences"):
            path = f"/{group}/{name}"
            wanted |= {path: ("scenario", "level", *dims), **beside(path, dims)}
        wanted[f"/differences/{name}.mean_interval"] = ("scenario", "bound", *dims)
    for summary in ("infected/peak", "infected/peak_time", "share/final"):
        for group in ("summary", "comparison"):
            path = f"/{group}/{summary}"
            wanted |= {path: task, f"{path}.bands": ("scenario", "level")}
            wanted |= beside(path)
        for name in ("better", "averted", "reduction"):
            wanted[f"{path}.{name}"] = ("scenario",)
        for name in ("mean", "better", "averted"):
            wanted[f"{path}.{name}_interval"] = ("scenario", "bound")
    assert found == wanted


def test_every_dataset_has_the_lengths_of_its_dimensions() -> None:
    datasets = list(make_layout(baseline="baseline").datasets())
    lengths = {d.path[1:]: d.shape[0] for d in datasets if d.dims == (d.path[1:],)}
    assert lengths == {
        **{"scenario": 6, "replicate": 2, "level": 2, "failure": 12},
        **{"day": 5, "side": 2, "grid_0": 3, "grid_1": 4},
        **{"bound": 2, "prediction": 1},
    }
    for dataset in datasets:
        assert dataset.shape == tuple(lengths[dim] for dim in dataset.dims)
        if dataset.data is not None:
            assert dataset.data.shape == dataset.shape
        else:
            assert dataset.nbytes == (
                math.prod(dataset.shape) * np.dtype(dataset.dtype).itemsize
            )


def find(layout: Layout, path: str) -> Dataset:
    [dataset] = [d for d in layout.datasets() if d.path == path]
    return dataset


def test_coordinates_hold_their_values() -> None:
    layout = make_layout()
    names = [scenario.name for scenario in layout.spec.scenarios]
    assert find(layout, "/scenario").data.tolist() == names
    assert find(layout, "/replicate").data.tolist() == [0, 1]
    assert find(layout, "/level").data.tolist() == [0.1, 0.9]
    assert find(layout, "/day").data.tolist() == [0, 1, 2, 3, 4]


def test_units_follow_an_output_but_a_time_has_others() -> None:
    layout = make_layout(baseline="baseline")
    for path in ("/series/infected", "/bands/infected", "/bands/infected.mean"):
        assert find(layout, path).attributes["units"] == "agents"
    assert find(layout, "/summary/infected/peak").attributes["units"] == "agents"
    assert "units" not in find(layout, "/summary/infected/peak_time").attributes


def test_bands_name_their_quantile_method() -> None:
    method = find(make_layout(), "/bands/infected").attributes["quantile_method"]
    assert "linear" in method


def test_statuses_are_named_in_the_file() -> None:
    status = find(make_layout(), "/tasks/status")
    assert status.attributes["flag_meanings"] == "pending done failed unused"
    assert list(status.attributes["flag_values"]) == [0, 1, 2, 3]


def test_without_a_baseline_nothing_is_compared() -> None:
    paths = [dataset.path for dataset in make_layout().datasets()]
    assert not [path for path in paths if path.startswith("/comparison")]


def test_a_slim_file_lacks_the_rows_that_are_not_kept_and_nothing_else() -> None:
    layout = make_layout()
    whole = [dataset.path for dataset in layout.datasets()]
    slim = [dataset.path for dataset in layout.datasets(slim=True)]
    assert [path for path in whole if path not in slim] == ["/series/wave"]


def test_the_table_of_failures_is_bounded() -> None:
    layout = make_layout(replicates=10**6)
    assert find(layout, "/failures/task").shape == (FAILURES,) == (1000,)
    assert np.dtype(find(layout, "/failures/text").dtype).itemsize == FAILURE_BYTES
    assert FAILURE_BYTES == 8192


# Parameters over the scenarios


@pytest.mark.parametrize(
    ("values", "dtype", "held"),
    [
        ((1, 2), np.int64, [1, 2]),
        ((1, 2.5), np.float64, [1.0, 2.5]),
        ((1, None), np.float64, [1.0, math.nan]),
        ((1, 2**63), np.float64, [1.0, 2.0**63]),
        ((-(2**63), 2**63 - 1), np.int64, [-(2**63), 2**63 - 1]),
        ((True, False), object, ["true", "false"]),
        ((1, True), object, ["1", "true"]),
        (("open", 2), object, ['"open"', "2"]),
        (([1, 2], {"a": None}), object, ["[1, 2]", '{"a": null}']),
        ((None, None), object, ["null", "null"]),
        ((datetime.date(2020, 3, 1),), object, ['"2020-03-01"']),
    ],
)
def test_a_parameter_is_held_as_numbers_or_as_json(
    values: tuple[Any, ...], dtype: type, held: list[Any]
) -> None:
    column = to_column(values)
    assert column.dtype == dtype
    if dtype is object:
        assert column.tolist() == held
    else:
        assert np.array_equal(column, np.array(held, dtype), equal_nan=True)


@quick
@given(st.lists(st.one_of(st.text(), st.booleans(), st.lists(st.integers()))))
def test_json_text_of_a_parameter_is_its_value(values: list[Any]) -> None:
    assert [json.loads(text) for text in to_column(tuple(values))] == values
