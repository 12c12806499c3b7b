"""Flat tables of a result file: sorted, typed, and bounded in memory."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import Launcher, write
from pyarrow import parquet

from mpiens.frame import Column, Frame, _find_kind, _rank, write_csv, write_parquet

MODEL = """
import os

def simulate(rng, replicate, *, beta, policy="open", on=False, ages=(1,), days=5):
    if policy == "closed" and replicate == 1:
        raise ValueError("closed")
    series = rng.poisson(10 * beta, size=4)
    return {
        "infected": series,
        "level": series[0] % 2 == 0,
        "count": series.sum(),
        "hidden": float(series[0]),
    }
"""
SPEC = """
[ensemble]
model = "model.py:simulate"
replicates = 3
seed = 1
[scenarios.b]
policy = "closed"
ages = [3, 4]
[scenarios.a]
policy = "2 m, \\"open\\""
on = true
[scenarios.c]
policy = "open"
days = 2.5
[sweep]
beta = [10, 0.5]
[outputs.infected]
dims = ["day"]
summaries = ["peak", "total"]
[outputs.hidden]
keep = false
[bands]
baseline = "c"
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a result file."""
    folder = tmp_path_factory.mktemp("frame")
    write(folder, "model.py", MODEL)
    write(folder, "sweep.toml", SPEC)
    launch = Launcher(folder).mpiens("sweep.toml")
    assert launch.code == 3, launch.errors
    return folder


def show(folder: Path, *words: str, code: int = 0) -> str:
    launch = Launcher(folder).mpiens("show", *words)
    assert (launch.code, launch.errors if code == 0 else "") == (code, "")
    return launch.output + launch.errors


def show_csv(folder: Path, *words: str) -> pd.DataFrame:
    text = show(folder, "sweep.h5", "--csv", *words)
    return pd.read_csv(io.StringIO(text))


def assert_same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """The same values, whatever stands for one that is missing."""
    plain = [f.astype(object).where(f.notna(), None) for f in (one, other)]
    pd.testing.assert_frame_equal(*plain, rtol=1e-14)  # as pandas 2 reads numbers


def test_scenarios_are_sorted_by_their_parameters_column_by_column(
    finished: Path,
) -> None:
    table = show_csv(finished)
    # beta as a number, then policy as text, in the order of the columns
    assert [*table.columns[:6]] == ["scenario", "beta", "policy", "on", "ages", "days"]
    assert table["beta"].tolist() == [0.5] * 3 + [10.0] * 3
    policies = ['2 m, "open"', "closed", "open"]
    assert table["policy"].tolist() == policies * 2
    assert table["on"].tolist() == [True, False, False] * 2
    assert table["ages"].tolist() == ["[1]", "[3, 4]", "[1]"] * 2
    assert table["days"].tolist() == [5.0, 5.0, 2.5] * 2
    assert table["scenario"].tolist() == [
        f"{base},beta={beta}" for beta in (0.5, 10) for base in "abc"
    ]
    assert table["done"].tolist() == [3, 2, 3] * 2
    assert table["failed"].tolist() == [0, 1, 0] * 2
    difference = table["count.final.difference.mean"]
    assert difference.isna().tolist() == [False, False, True] * 2


def expect(folder: Path) -> pd.DataFrame:
    """The table of tasks, made of what the file has, scenario by scenario."""
    with h5py.File(folder / "sweep.h5", "r") as file:
        names = file["scenario"].asstr()[:].tolist()
        rows: list[dict[str, Any]] = []
        for beta in (0.5, 10):
            for base in "abc":
                index = names.index(f"{base},beta={beta}")
                rows.extend(read_task(file, index, number) for number in range(3))
    return pd.DataFrame(rows)


def read_task(file: h5py.File, index: int, number: int) -> dict[str, Any]:
    at = (index, number)
    done = file["/tasks/status"][at] == 1
    series = file["/series/infected"][at]
    return {
        "scenario": file["scenario"].asstr()[index],
        "replicate": number,
        "status": "done" if done else "failed",
        "seconds": file["/tasks/seconds"][at],
        "attempts": file["/tasks/attempts"][at],
        "rank": file["/tasks/rank"][at],
        "level": bool(file["/series/level"][at]) if done else None,
        "count": file["/series/count"][at] if done else None,
        "infected.peak": series.max() if done else np.nan,
        "infected.total": series.sum() if done else np.nan,
        "level.final": file["/summary/level/final"][at],
        "count.final": file["/summary/count/final"][at],
        "hidden.final": file["/summary/hidden/final"][at],
    }


def test_the_long_table_has_a_row_for_every_task(finished: Path) -> None:
    table = show_csv(finished, "--long")
    expected = expect(finished)
    parameters = ["beta", "policy", "on", "ages", "days"]
    assert [*table.columns] == ["scenario", *parameters, *expected.columns[1:]]
    assert_same(table[[*expected.columns]], expected)
    assert {*table["level"].dropna()} == {True, False}
    short = show_csv(finished).set_index("scenario")
    for _, row in table.iterrows():
        assert row[parameters].tolist() == (
            short.loc[row["scenario"], parameters].tolist()
        )


@pytest.mark.parametrize("words", [(), ("--long",)])
def test_parquet_is_the_same_table_with_types(
    finished: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    path = tmp_path / "table.parquet"
    assert show(finished, "sweep.h5", "--parquet", str(path), *words) == ""
    assert [p.name for p in tmp_path.iterdir()] == ["table.parquet"]
    table = parquet.read_table(path)
    kinds = {field.name: str(field.type) for field in table.schema}
    wanted = {"scenario": "string", "beta": "double", "policy": "string"}
    wanted |= {"on": "bool", "ages": "string", "days": "double"}
    if words:
        wanted |= {"replicate": "int64", "status": "string", "seconds": "double"}
        wanted |= {"attempts": "int64", "rank": "int64"}
        wanted |= {"level": "bool", "count": "int64", "count.final": "double"}
    else:
        wanted |= {"done": "int64", "failed": "int64", "count.final.mean": "double"}
    assert kinds | wanted == kinds
    assert_same(table.to_pandas(), show_csv(finished, *words))
    if words:  # a failed task has no value, and not the one that fills its place
        assert table["count"].null_count == table["level"].null_count == 2


def test_an_incomplete_file_has_a_table_too(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "sweep.h5"
    shutil.copy(finished / "sweep.h5", path)
    whole = show_csv(finished, "--long")
    with h5py.File(path, "r+") as file:
        names = file["scenario"].asstr()[:].tolist()
        del file.attrs["digest"]
        index = names.index("a,beta=0.5")
        file["/tasks/status"][index, 1:] = 0
        file["/tasks/rank"][index, 1:] = -1
        file["/tasks/seconds"][index, 1:] = np.nan
        file["/summary/infected/peak"][:] = np.nan
        hidden = file.create_dataset("/series/hidden", data=np.full((6, 3), 7.5))
        assert hidden.chunks is None
    table = show_csv(tmp_path, "--long")
    assert table["status"].tolist()[:3] == ["done", "pending", "pending"]
    assert table["count"].isna().tolist()[:3] == [False, True, True]
    assert table["rank"].isna().tolist()[:3] == [False, True, True]
    columns = ["infected.peak", "infected.total", "count.final"]
    kept = table["status"] == "done"
    assert_same(table[kept][columns], whole[kept][columns])
    assert table["hidden"].dropna().unique().tolist() == [7.5]


def test_tasks_of_other_shards_are_left_out(launcher: Launcher) -> None:
    write(launcher.folder, "model.py", MODEL)
    write(launcher.folder, "sweep.toml", SPEC)
    ran = launcher.mpiens("sweep.toml", "--shard", "1/2", "-o", "sweep.h5")
    assert ran.code in (0, 3), ran.errors
    table = show_csv(launcher.folder, "--long")
    assert len(table) == 9
    assert {*table["status"]} <= {"done", "failed"}
    assert not table["infected.total"][table["status"] == "done"].isna().any()


def test_numbers_come_before_text_and_what_is_missing_last() -> None:
    values = ["b", None, 2, float("nan"), True, "a", 1.5, [1]]
    assert sorted(values, key=_rank)[:6] == [True, 1.5, 2, [1], "a", "b"]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        *(((1, 2), int), ((1, 2.5), float), ((1, None), int), ((True, None), bool)),
        *(((1, True), str), ((1, "a"), str), (("a", None), str), (([1],), str)),
        *(((2**63,), float), ((float("nan"), 1.0), float), ((None,), float)),
    ],
)
def test_a_parameter_has_the_narrowest_kind(values: tuple[Any, ...], kind: Any) -> None:
    assert _find_kind(values) is kind


def test_no_two_columns_have_one_name(launcher: Launcher) -> None:
    model = "def simulate(rank, done, x):\n    return {'x': x, 'rank': rank, 'y': 1}\n"
    write(launcher.folder, "model.py", model)
    head = SPEC[: SPEC.index("[scenarios.b]")]
    write(launcher.folder, "sweep.toml", head + "[sweep]\nrank=[5]\ndone=[6]\nx=[7]\n")
    assert launcher.mpiens("sweep.toml").code == 0
    short = show_csv(launcher.folder)
    assert [*short.columns[:6]] == [
        *("scenario", "rank", "parameters.done", "x", "done", "failed")
    ]
    long = show_csv(launcher.folder, "--long")
    names = ["scenario", "parameters.rank", "done", "parameters.x", "replicate"]
    names += ["status", "seconds", "attempts", "rank", "series.x", "series.rank", "y"]
    assert [*long.columns[:12]] == names
    assert long["parameters.rank"].tolist() == long["series.rank"].tolist() == [5] * 3
    assert long["rank"].tolist() == [0] * 3


def test_memory_is_bounded_by_blocks(tmp_path: Path) -> None:
    made = []

    def rows() -> Any:
        for number in range(200_000):
            made.append(number)
            yield [number, None if number % 2 else 0.5]

    columns = [Column("n", int), Column("x", float)]
    path = tmp_path / "table.parquet"
    write_parquet(Frame(columns, rows()), path)
    assert parquet.ParquetFile(path).metadata.num_row_groups == 4
    assert parquet.read_table(path)["n"].to_pylist() == [*range(200_000)]
    text = io.StringIO()
    write_csv(Frame(columns, iter([[1, None], [2, 0.1]])), text)
    assert text.getvalue() == "n,x\n1,\n2,0.1\n"


def test_what_cannot_be_written_is_told(finished: Path, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "none" / "table.parquet")
    told = show(finished, "sweep.h5", "--parquet", nowhere, code=2)
    assert told == f"{nowhere}: cannot be written: No such file or directory\n"
    told = show(finished, "sweep.h5", "--parquet", "sweep.h5", code=2)
    assert told == (
        "sweep.h5: --parquet: is the result file itself; choose another name\n"
    )
    told = show(finished, "sweep.h5", "--long", code=2)
    assert told == "--long: goes with --csv or --parquet; add either\n"


def test_without_pyarrow_the_way_to_it_is_told(
    monkeypatch: pytest.MonkeyPatch, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mpiens.__main__ import main

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")  # which main would set for every test
    monkeypatch.chdir(finished)
    assert main(["show", "sweep.h5", "--parquet", "table.parquet"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert 'pip install "mpiens[parquet]"' in told
    assert not (finished / "table.parquet").exists()
