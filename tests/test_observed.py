"""What was observed: read from CSV, and found in an output's coordinate."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpiens.fault import SpecError
from mpiens.observed import Observed, align, read_observed

quick = settings(max_examples=60, deadline=None, database=None)

DATA = "day, in_bed, note\n1,3,0\n2,8,0\n\n4,,0\n3,NA,0\n 14 , 4.5 , 0\n"


def read(folder: Path, text: str, column: str = "in_bed") -> Observed:
    path = folder / "observed.csv"
    path.write_text(text, encoding="utf-8")
    return read_observed(path, "day", column)


def test_a_column_is_read_in_the_order_of_the_file(tmp_path: Path) -> None:
    observed = read(tmp_path, DATA)
    assert observed.index.tolist() == [1, 2, 4, 3, 14]
    np.testing.assert_array_equal(observed.values, [3, 8, math.nan, math.nan, 4.5])
    assert observed.index.dtype == observed.values.dtype == np.float64


def test_what_spreadsheets_write_is_read(tmp_path: Path) -> None:
    text = "\ufeffday,in_bed\r\n1,3\r\n,\r\n2,nan\r\n"
    observed = read(tmp_path, text)
    assert observed.index.tolist() == [1, 2]
    np.testing.assert_array_equal(observed.values, [3, math.nan])


@pytest.mark.parametrize(
    ("text", "column", "told"),
    [
        (DATA, "inbed", ["column: observed.csv has no column 'inbed'; did you mean "]),
        (
            "x,y\n1,2\n",
            "in_bed",
            [
                "index: observed.csv has no column 'day'; it has x, y",
                "column: observed.csv has no column 'in_bed'; it has x, y",
            ],
        ),
        (
            "day,in_bed\n1,three\n2,inf\nx,3\n,4\n1,5\n",
            "in_bed",
            [
                "line 2: 'three' in column in_bed is no finite number; correct it, or "
                "leave the cell empty",
                "line 3: 'inf' in column in_bed is no finite number",
                "line 4: 'x' in column day is no finite number; correct it",
                "line 5: column day is empty; fill it in, or drop the line",
            ],
        ),
        (
            "day,in_bed\n1,3\n2,3\n1.0,5\n",
            "in_bed",
            ["line 4: day 1 stands in line 2 already; keep one of them"],
        ),
        ("day,in_bed\n1,3,5\n2\n", "in_bed", ["line 2: has 3 cells", "line 3: has 1 "]),
        ("day,day,in_bed\n1,1,3\n", "in_bed", ["has column 'day' twice"]),
        ("day,in_bed\n1,\n2,NA\n", "in_bed", ["no value in column 'in_bed'"]),
        ("day,in_bed\n", "in_bed", ["observed.csv has no data; it wants a line"]),
        ("", "in_bed", ["observed.csv has no data"]),
        ('day,in_bed\n1,"3"4\n', "in_bed", ["line 2: no CSV"]),
    ],
)
def test_all_faults_of_a_file_are_told(
    tmp_path: Path, text: str, column: str, told: list[str]
) -> None:
    with pytest.raises(SpecError) as caught:
        read(tmp_path, text, column)
    faults = [str(fault) for fault in caught.value.faults]
    assert len(faults) == len(told)
    for fault, part in zip(faults, told, strict=True):
        assert part in fault
        assert "observed.csv" in fault
        assert fault.partition(":")[0] in ("data", "index", "column")


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.csv cannot be read: No such file"):
        read_observed(tmp_path / "none.csv", "day", "in_bed")
    (tmp_path / "latin.csv").write_bytes("day,größe\n1,2\n".encode("latin-1"))
    with pytest.raises(SpecError, match="it is not UTF-8"):
        read_observed(tmp_path / "latin.csv", "day", "in_bed")


def test_of_many_faults_the_first_are_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        read(tmp_path, "day,in_bed\n" + "x,1\n" * 30)
    faults = caught.value.faults
    assert len(faults) == 9
    assert str(faults[-1]) == "data: and 22 more faults like these"


# Alignment


def at(*index: float) -> Observed:
    return Observed(np.array(index), np.zeros(len(index)))


def test_days_lie_where_they_do_in_the_output() -> None:
    assert align(at(1, 4, 2), np.arange(5)).tolist() == [1, 4, 2]
    assert align(at(1, 4, 2), np.array([4.0, 2.0, 1.0])).tolist() == [2, 0, 1]
    assert align(at(7), np.array([7])).tolist() == [0]
    assert align(at(), np.arange(3)).tolist() == []
    assert align(at(1), np.arange(3)).dtype == np.intp


@quick
@given(
    st.integers(1, 60),
    st.floats(1e-6, 1e6),
    st.floats(-1e3, 1e3),
    st.data(),
)
def test_what_decimals_lose_is_no_matter(
    count: int, step: float, start: float, data: st.DataObject
) -> None:
    coordinate = (start + np.arange(count)) * step
    chosen = data.draw(st.lists(st.integers(0, count - 1), unique=True))
    written = [float(f"{value:.14g}") for value in coordinate[chosen]]
    assert align(at(*written), coordinate).tolist() == chosen


@pytest.mark.parametrize("off", [-0.5, 0.5, 1e-4, -1e-4])
def test_what_lies_between_two_points_has_no_match(off: float) -> None:
    told = rf"observed at {2 + off:g} has no match .* from 0 to 9 in 10 points"
    with pytest.raises(ValueError, match=told):
        align(at(1, 2 + off), np.arange(10))


@pytest.mark.parametrize("index", [-1, 10, 14])
def test_what_lies_beyond_has_no_match(index: float) -> None:
    with pytest.raises(ValueError, match=f"observed at {index} has no match"):
        align(at(3, index), np.arange(10))


def test_days_since_long_ago_are_told_apart() -> None:
    seconds = 1.7e9 + 86400 * np.arange(5)  # since 1970
    assert align(at(seconds[3]), seconds).tolist() == [3]
    with pytest.raises(ValueError, match="no match"):
        align(at(seconds[3] + 1), seconds)


def test_an_output_without_points_matches_nothing() -> None:
    with pytest.raises(ValueError, match="no point to compare"):
        align(at(1), np.zeros(0))
