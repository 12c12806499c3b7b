"""Programs as models: their fields, what is told before they run, and how they end."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import Launch, Launcher, wait_until, write
from hypothesis import given
from hypothesis import strategies as st

from mpiens import program, streams, window
from mpiens.child import ask_child
from mpiens.fault import SpecError
from mpiens.memfile import as_files
from mpiens.model import Model, Signature, inspect_model
from mpiens.program import ProgramError, Text
from mpiens.reader import decode
from mpiens.spec import Spec
from mpiens.store import Store

# newer Pythons warn of forks beside threads, and numpy's BLAS may have started some
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

HEAD = """
[ensemble]
replicates = 3
seed = 1
"""
NUMBER = """
[model.read.x]
"""


class Lab:
    """A folder with programs, and a folder below it for the tasks' own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scratch = folder / "scratch"
        self.scratch.mkdir()

    def program(self, text: str, name: str = "run") -> Path:
        path = write(self.folder, name, f"#!/bin/sh\n{textwrap.dedent(text)}")
        path.chmod(0o755)
        return path

    def spec(self, model: str, rest: str = "", read: str = NUMBER) -> Spec:
        text = f"{HEAD}\n[model]\n{textwrap.dedent(model)}\n{read}\n"
        text += textwrap.dedent(rest)
        return decode(text, self.folder / "s.toml").require()

    def inspect(self, *texts: str, **more: str) -> Signature:
        return inspect_model(self.spec(*texts, **more))

    def faults(self, *texts: str, **more: str) -> list[str]:
        with pytest.raises(SpecError) as caught:
            self.inspect(*texts, **more)
        return [str(fault) for fault in caught.value.faults]

    def run(self, spec: Spec, task: int = 0) -> dict[str, Any]:
        """Run a task as a runner does, in a process of its own."""
        found = ask_child(lambda: self._run(spec, task))
        if isinstance(found, str):
            raise ProgramError(found)
        return dict(found)

    def _run(self, spec: Spec, task: int) -> Any:
        [stream] = streams.of(spec, [task])
        try:
            return Model(spec, lambda: window.hold(spec)).run(task, stream)
        except ProgramError as error:
            return f"{error}\n{error.said}"

    def fails(self, spec: Spec) -> str:
        with pytest.raises(ProgramError) as caught:
            self.run(spec)
        return str(caught.value)

    @property
    def kept(self) -> list[Path]:
        return sorted({*self.scratch.iterdir()} - {*self.scratch.glob(KEPT)})


KEPT = "mpiens-numba-*"  # what numba compiles is for later runs too


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    lab = Lab(tmp_path)
    monkeypatch.setattr(program.tempfile, "tempdir", str(lab.scratch))
    return lab


# Fields


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("plain", "plain"),
        ("{beta}", "0.1"),
        ("{beta:.3f} and {beta:8.1e}", "0.100 and  1.0e-01"),
        ("{days:04d}", "0007"),
        ("{{beta}} {{", "{beta} {"),
        ('{{"b": {beta}}}', '{"b": 0.1}'),
        ("{town}", "Uster am See"),
        ("{open} {open:d}", "true 1"),
        ("{ages}", "[1, 2.5]"),
        ("{table}", '{"a": "b"}'),
        ("", ""),
    ],
)
def test_fields_are_filled(text: str, filled: str) -> None:
    values = {"beta": 0.1, "days": 7, "town": "Uster am See", "open": True}
    values |= {"ages": [1, 2.5], "table": {"a": "b"}}
    assert Text(text).fill(values) == filled


@given(st.floats(allow_nan=False))
def test_a_number_arrives_to_the_last_bit(value: float) -> None:
    assert float(Text("{x}").fill({"x": value})) == value


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{beta", "write {{ and }} for braces"),
        ("beta}", "write {{ and }} for braces"),
        ("{}", "{} is no field"),
        ("{0}", "{0} is no field"),
        ("{a.b}", "{a.b} is no field"),
        ("{a[0]}", "{a[0]} is no field"),
        ("{a!r}", "{a} is no field"),
        ("{a:{b}}", "the format of {a} cannot have fields itself"),
    ],
)
def test_what_cannot_be_a_field_is_told(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        Text(text)


# What is wrong with a spec, told before any task starts

ALL = 'command = "/bin/true {a}"'
SPEC_FAULTS = [
    ("[ensemble] model: is missing", "", ""),
    ("[model] command: and [ensemble] model = 'a.py:f' are two models", ALL, "py"),
    ("[model] stdin: is for a program", 'stdin = "a"', "py"),
    ("[model] files: is for a program", 'files = { "a" = "b" }', "py"),
    ("[model] fresh: 'task' is for Python models", f'{ALL}\nfresh = "task"', ""),
    ("[model] fresh: 'always'", 'fresh = "always"', "py"),
    ("[model] command: is empty", 'command = ""', ""),
    (
        '[model] command: "a \'b" cannot be split into words',
        'command = "a \'b"',
        "",
    ),
    ("[model] command: 3", "command = 3", ""),
    ("[model] comand: is not a key here; did you mean command?", 'comand = "a"', ""),
    ("[model] read: is missing; write [model.read.NAME]", ALL, "unread"),
    ("[model] files./etc/x: should be the name of", ALL + '\nfiles."/etc/x" = "t"', ""),
    ("[model] files.../x: should be the name of", ALL + '\nfiles."../x" = "t"', ""),
    ("[model] files.stdin: is what mpiens itself", ALL + '\nfiles.stdin = "t"', ""),
    ("[model.read.x] file: '../x.csv' should be", ALL, 'file = "../x.csv"'),
    ("[model.read.x] file: 'x.out' does not tell its format", ALL, 'file = "x.out"'),
    ("[model.read.x] format: 'xml'", ALL, 'format = "xml"'),
    ("[model.read.x] colum: is not a key here", ALL, "colum = 1"),
    ("[model.read.x] column: True should be a name or", ALL, "column = true"),
    ("[model.read.x] column: -1 is no column", ALL, "column = -1"),
    ("[model.read.x] column: 'I': columns of text", ALL, 'column = "I"'),
    ("[model.read.x] column: 1: a file of format npy", ALL, 'file="a.npy"\ncolumn = 1'),
    ("[model.read.x] column: should be the path of", ALL, 'file = "a.h5"'),
    ("[outputs.y]: is not read of the program", ALL, "[outputs.y]"),
    ("[parameters] workdir: is what mpiens itself", ALL, "[parameters]\nworkdir = 1"),
]


@pytest.mark.parametrize(("told", "model", "rest"), SPEC_FAULTS)
def test_a_spec_that_cannot_be_is_refused(told: str, model: str, rest: str) -> None:
    head = HEAD + ('model = "a.py:f"\n' if rest == "py" else "")
    read = "" if rest in ("py", "unread") or not model.startswith(ALL) else NUMBER
    rest = "" if rest in ("py", "unread") else rest
    reading = decode(f"{head}\n[model]\n{model}\n{read}\n{rest}\n")
    faults = [str(fault) for fault in reading.faults]
    assert any(fault.startswith(told) for fault in faults), faults


def test_neither_and_both_are_told_once() -> None:
    assert len(decode(HEAD).faults) == 1
    both = decode(HEAD + 'model = "a.py:f"\n[model]\ncommand = "x"\n[model.read.y]\n')
    assert len(both.faults) == 1


def test_fresh_stands_beside_a_python_model() -> None:
    text = HEAD + 'model = "a.py:f"\n[model]\nfresh = "task"\n'
    assert decode(text).require().model.fresh == "task"
    assert decode(HEAD + 'model = "a.py:f"\n').require().model.fresh == "runner"
    [fault] = decode(text + '[limits]\nisolation = "none"\n').faults
    assert str(fault).startswith("[model] fresh: 'task' needs a process")


def test_a_spec_of_a_program_is_a_spec_again(lab: Lab) -> None:
    lab.program("echo 1")
    spec = lab.spec(
        'command = "./run \'{town} a\' {seed}"\nstdin = "x"\nfiles = { "a" = "b" }',
        '[parameters]\ntown = "Uster"\n',
        '[model.read.x]\nfile = "a/b.csv"\ncolumn = "I"\n',
    )
    assert spec.model.command == ("./run", "{town} a", "{seed}")
    assert spec.model.read["x"].format == "csv"
    again = decode(spec.to_json(), lab.folder / "s.json", is_json=True).require()
    assert again == spec
    plain = decode(HEAD + 'model = "a.py:f"\n').require()
    assert "model" not in plain.document()


FAULTS = [
    ("{bata} is no parameter and no field; did you mean beta?", "./run {bata} {beta}"),
    ("{rng} is no parameter and no field", "./run {beta} {rng}"),
    ("{mask} is what scenario 'a' lacks", "./run {beta} {mask}"),
    ("{beta:d} does not go with 0.5", "./run {beta:d}"),
    ("{beta is no", "./run {beta"),
    ("there is no program FOLDER/walk", "./walk {beta}"),
    ("there is no 'no-such-program' on the PATH", "no-such-program {beta}"),
    ("there is no 'plain' on the PATH; write ./plain for", "plain {beta}"),
    ("FOLDER/plain cannot be executed; chmod +x may do", "./plain {beta}"),
    ("{shared} is not there: no [shared] loader makes it", "./run {beta} {shared}"),
    ("{prepared} is not there: no [prepare] makes", "./run {beta} {prepared}"),
]


@pytest.mark.parametrize(("told", "command"), FAULTS)
def test_a_command_that_cannot_be_is_told(lab: Lab, told: str, command: str) -> None:
    lab.program("echo 1")
    write(lab.folder, "plain", "echo 1")
    told = "write {{ and }} for braces" if told == "{beta is no" else told
    scenarios = "[parameters]\nbeta = 0.5\n[scenarios.a]\n[scenarios.b]\n"
    if "mask" in command:
        scenarios += "mask = 1\n"
    faults = lab.faults(f'command = "{command}"', scenarios)
    told = told.replace("FOLDER", str(lab.folder))
    found = [f for f in faults if told in f]
    assert len(found) == 1, faults
    assert found[0].startswith("[model] command: ")
    assert len(faults) == (2 if "bata" in command else 1) - ("bata" in command)


def test_templates_and_what_is_not_used_are_told(lab: Lab) -> None:
    lab.program("echo 1")
    write(lab.folder, "bad.template", "x = {mask}")
    (lab.folder / "latin.template").write_bytes(b"\xfc")
    model = 'command = "./run"\nstdin = "{nothing}"\n'
    files = ("none", "bad", "latin")
    model += "\n".join(f'files."{n}.txt" = "{n}.template"' for n in files)
    assert lab.faults(model) == [
        "[model] files.none.txt: the template 'none.template' cannot be read: "
        "No such file or directory",
        "[model] files.latin.txt: the template 'latin.template' is not UTF-8",
        "[model] stdin: {nothing} is no parameter and no field",
        "[model] files.bad.txt: {mask} is no parameter and no field",
    ]
    unused = "[parameters]\nmask = 1\n[sweep]\nbeta = [1]\n[scenarios.a]\nbata = 2\n"
    text = "no field of the program uses it; its fields are {beta}"
    assert lab.faults('command = "./run {beta}"', unused) == [
        f"[parameters] mask: {text}",
        f"[scenarios.a] bata: {text}; did you mean beta?",
    ]
    write(lab.folder, "data.py", "def load(): return b'1'")
    shared = '[shared]\nloader = "data.py:load"\n'
    [fault] = lab.faults('command = "./run"', shared)
    assert fault.startswith("[shared] loader: is not used: no field {shared}")


def test_check_tells_all_faults_with_their_lines(launcher: Launcher) -> None:
    text = HEAD + '[model]\ncommand = "./run {beta}"\n[model.read.x]\nfile = "/x.csv"\n'
    write(launcher.folder, "s.toml", text)
    launch = launcher.mpiens("check", "s.toml")
    assert launch.code == 2
    assert "s.toml:6: [model] command: {beta} is no parameter" in launch.errors
    assert "s.toml:8: [model.read.x] file: '/x.csv' should be" in launch.errors


def test_a_program_has_a_signature_and_its_bytes_are_its_code(lab: Lab) -> None:
    path = lab.program("echo 1")
    write(lab.folder, "t", "{days}")
    model = 'command = "./run {beta} {seed} {workdir}"\nfiles = { "in.txt" = "t" }'
    rest = "[parameters]\nbeta = 1\ndays = 3\n"
    first = lab.inspect(model, rest)
    assert first.names == first.required == ("beta", "days")
    assert lab.inspect(model, rest) == first
    codes = {first.code}
    lab.program("echo 2")
    codes.add(lab.inspect(model, rest).code)
    write(lab.folder, "t", "{days}!")
    codes.add(lab.inspect(model, rest).code)
    codes.add(lab.inspect(model.replace("{seed}", "{seed} -v"), rest).code)
    assert len(codes) == 4
    script = 'command = "sh {folder}/run {beta} {days}"'
    before = lab.inspect(script, rest).code
    path.write_text("echo 3")
    assert lab.inspect(script, rest).code != before


# A task


def test_every_field_arrives_as_one_word(lab: Lab) -> None:
    lab.program(f'for w in "$@"; do echo "$w"; done > {lab.folder}/words; echo 1')
    spec = lab.spec(
        """
        command = '''./run "{town}" {seed} {scenario}:{replicate} {workdir}/o {open}
        "a b" {folder} {empty}'''
        """,
        """
        [parameters]
        town = "Uster $HOME *"
        open = false
        empty = ""
        [scenarios.a]
        [scenarios.b]
        """,
    )
    assert lab.run(spec, spec.number(1, 2)) == {"x": 1.0}
    words = (lab.folder / "words").read_text().split("\n")[:-1]
    seed = int(np.random.SeedSequence(1, spawn_key=(2,)).generate_state(1)[0])
    folder = f"{lab.scratch}/{program.folder_of(5).name}"
    expected = ["Uster $HOME *", str(seed), "b:2", f"{folder}/o", "false", "a b"]
    assert words == [*expected, str(lab.folder), ""]
    assert lab.kept == []


def test_stdin_templates_environment_and_folder(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB_TOWN", "3")
    lab.program(
        """
        read n
        echo $n $LAB_TOWN $(cat deep/in.nml) > out.txt
        [ "$PWD" = "$1" ] && ls
        """
    )
    write(lab.folder, "in.template", "{{{days}}}")
    spec = lab.spec(
        """
        command = ["./run", "{workdir}"]
        stdin = "{beta:.2f}\\nrest"
        files = { "deep/in.nml" = "in.template" }
        """,
        "[parameters]\nbeta = 0.256\ndays = 7\n",
        '[model.read.x]\nfile = "out.txt"\n',
    )
    told = lab.fails(spec)
    assert "out.txt has '{7}' in line 1: no number" in told
    [folder] = lab.kept
    assert f"its folder is kept: {folder} on " in told
    assert (folder / "out.txt").read_text() == "0.26 3 {7}\n"
    assert (folder / "deep" / "in.nml").read_text() == "{7}"
    assert sorted(p.name for p in folder.iterdir()) == ["deep", "out.txt", "stdin"]
    write(lab.folder, "in.template", "{days}")
    assert lab.run(spec)["x"].tolist() == [0.26, 3, 7]
    assert lab.kept == []  # that of the first attempt is replaced


def test_what_was_read_can_be_reduced(lab: Lab) -> None:
    lab.program("echo 1 2 3")
    write(
        lab.folder,
        "reduce_program.py",
        "def total(read, scenario): return {scenario: sum(read['x'])}",
    )
    text = HEAD.rstrip() + '\nreduce = "reduce_program.py:total"\n'
    text += f'[model]\ncommand = "./run"\n{NUMBER}\n[scenarios.a]\n[outputs.a]\n'
    spec = decode(text, lab.folder / "s.toml").require()
    inspect_model(spec)
    assert lab.run(spec) == {"a": 6.0}


# What is read


def make_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["run/I"] = np.arange(3, dtype=np.int32)


FILES: dict[str, Callable[[Path], Any]] = {
    "a.csv": lambda path: path.write_text("t, I\n0,1\n1,2.5\n\n2,nan\n"),
    "plain.csv": lambda path: path.write_text("0,1\r\n1,2\r\n"),
    "one.csv": lambda path: path.write_text("I\n3\n4\n"),
    "head.csv": lambda path: path.write_text("t,I\n"),
    "bad.csv": lambda path: path.write_text("t,I\n0,1\n1,high\n2\n"),
    "short.csv": lambda path: path.write_text("t,I\n0,1\n1\n"),
    "empty.csv": lambda path: path.write_text("\n"),
    "a.txt": lambda path: path.write_text("# t I\n0 1\n 1 2.5 # end\n"),
    "n.txt": lambda path: path.write_text("7\n"),
    "ragged.txt": lambda path: path.write_text("7\n1 2\n"),
    "a.npy": lambda path: np.save(path, np.eye(2, dtype=np.float32)),
    "bad.npy": lambda path: path.write_text("no"),
    "a.h5": make_hdf5,
    "bad.h5": lambda path: path.write_text("no"),
    "a.json": lambda path: path.write_text('{"r": {"I": [1, 2], "n": 3, "s": "x"}}'),
    "list.json": lambda path: path.write_text("[[1, 2], [3, 4.5]]"),
    "bad.json": lambda path: path.write_text("{"),
}
READ: list[tuple[str, str, Any]] = [
    ('file = "a.csv"\ncolumn = "I"', "", [1, 2.5, np.nan]),
    ('file = "a.csv"\ncolumn = 0', "", [0, 1, 2]),
    ('file = "plain.csv"\ncolumn = 1', "", [1, 2]),
    ('file = "plain.csv"\ncolumn = 1', 'dtype = "int64"', [1, 2]),
    ('file = "one.csv"', "", [3, 4]),
    ('file = "a.txt"', "", [[0, 1], [1, 2.5]]),
    ('file = "a.txt"\ncolumn = 1', "", [1, 2.5]),
    ('file = "n.txt"', "", 7),
    ('file = "n.txt"', 'dims = ["day"]', [7]),
    ('file = "one.csv"\nformat = "text"\ncolumn = 0', "", [3, 4]),
    ('file = "a.npy"', "", [[1, 0], [0, 1]]),
    ('file = "a.h5"\ncolumn = "run/I"', "", [0, 1, 2]),
    ('file = "a.json"\ncolumn = "r.I"', "", [1, 2]),
    ('file = "a.json"\ncolumn = "r.I.1"', "", 2),
    ('file = "a.json"\ncolumn = "r.n"', "dims = []", 3),
    ('file = "list.json"', "", [[1, 2], [3, 4.5]]),
]


def prepare(lab: Lab, read: str, output: str = "") -> Spec:
    """A program that leaves all these files."""
    (lab.folder / "made").mkdir()
    for name, make in FILES.items():
        make(lab.folder / "made" / name)
    lab.program(f"cp {lab.folder}/made/* .")
    outputs = f"[outputs.x]\n{output}\n" if output else ""
    return lab.spec('command = "./run"', outputs, f"[model.read.x]\n{read}\n")


@pytest.mark.parametrize(("read", "output", "expected"), READ)
def test_outputs_are_read(lab: Lab, read: str, output: str, expected: Any) -> None:
    found = lab.run(prepare(lab, read, output))["x"]
    np.testing.assert_array_equal(found, expected)
    kind = {"a.npy": "f4", "a.h5": "i4"}.get(read.split('"')[1], "f8")
    assert found.dtype == ("i8" if "int64" in output else kind)


UNREADABLE = [
    ('file = "none.csv"', "the program left no file none.csv; it left a.csv, a.h5"),
    ('file = "a.csv"\ncolumn = "J"', "a.csv has no column 'J'; it has t, I"),
    ('file = "a.csv"\ncolumn = 2', "a.csv has no column 2; it has t, I"),
    ('file = "a.csv"', "a.csv has 2 columns; name one of t, I"),
    ('file = "head.csv"\ncolumn = "I"', "head.csv has a header and no rows"),
    (
        'file = "bad.csv"\ncolumn = "I"',
        "bad.csv has 'high' in column 'I', line 3: no number",
    ),
    ('file = "short.csv"\ncolumn = "I"', "short.csv has 1 cells only in line 3"),
    ('file = "empty.csv"\ncolumn = "I"', "empty.csv is empty"),
    ('file = "ragged.txt"', "ragged.txt has 2 numbers in line 2, and 1 in the first"),
    ('file = "bad.npy"', "bad.npy is no NPY file"),
    ('file = "bad.h5"\ncolumn = "a"', "bad.h5 is no HDF5 file"),
    (
        'file = "a.h5"\ncolumn = "run/J"',
        "a.h5 has no dataset 'run/J'; it has run, run/I",
    ),
    ('file = "bad.json"', "bad.json is no JSON: Expecting"),
    ('file = "a.json"\ncolumn = "r.J"', "a.json has no 'r.J': there is no 'J' in ['I'"),
    ('file = "a.json"\ncolumn = "r.s"', "a.json, r.s: could not convert string"),
    ("", "standard output is empty"),
]


@pytest.mark.parametrize(("read", "told"), UNREADABLE)
def test_what_cannot_be_read_is_told(lab: Lab, read: str, told: str) -> None:
    text = lab.fails(prepare(lab, read))
    assert text.startswith(told)
    assert len(lab.kept) == 1


def test_a_whole_number_that_is_none_is_told(lab: Lab) -> None:
    spec = prepare(lab, 'file = "a.csv"\ncolumn = "I"', 'dtype = "int64"')
    told = "a.csv has '2.5' in column 'I', line 3: no whole number"
    assert lab.fails(spec).startswith(told)


def test_several_outputs_of_one_file_are_read_together(lab: Lab) -> None:
    lab.program("printf 't,I\\n0,1\\n1,2\\n' > a.csv; echo 0 1; echo 1 2")
    read = '[model.read.t]\nfile = "a.csv"\ncolumn = "t"\n'
    read += "[model.read.all]\n[model.read.i]\ncolumn = 1\n"
    found = lab.run(lab.spec('command = "./run"', read=read))
    assert [*found] == ["t", "all", "i"]
    assert found["t"].tolist() == [0, 1]
    assert found["all"].tolist() == [[0, 1], [1, 2]]
    assert found["i"].tolist() == [1, 2]


# How it ends


def test_a_flood_of_output_costs_neither_memory_nor_time(lab: Lab) -> None:
    lab.program("head -c 100000000 /dev/zero; yes | head -c 100000000 >&2; exit 3")

    def measure() -> tuple[str, int]:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        told = lab._run(lab.spec('command = "./run"'), 0)
        return told, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    told, kilobytes = ask_child(measure)
    assert told.startswith("the program ended with exit code 3")
    assert len(told) < 10_000
    assert kilobytes < 20_000
    [folder] = lab.kept
    assert (folder / "stdout").stat().st_size == 100_000_000


def test_what_a_program_leaves_behind_ends_with_its_task(lab: Lab) -> None:
    lab.program(f"sleep 1000 & echo $! > {lab.folder}/pid; echo 1")
    began = time.monotonic()
    assert lab.run(lab.spec('command = "./run"')) == {"x": 1.0}
    assert time.monotonic() - began < 5  # though its standard error is still open
    assert not Path("/proc", (lab.folder / "pid").read_text().strip()).exists()


WILD = """
mood=$1
echo "$mood speaks" >&2
[ $mood = exits ] && echo and says more
case $mood in
exits) exit 3 ;;
crashes) kill -SEGV $$ ;;
hangs) trap '' TERM INT; sleep 999 & while :; do sleep 0.1; done ;;
eats) exec "$2" -c "b'x' * (1 << 30)" ;;
floods) head -c 100000000 /dev/zero ;;
leaves) (sleep 1000; sleep 999) & ;;
forgets) exit 0 ;;
garbles) printf 't,x\\n0,high\\n' > out.csv; exit 0 ;;
esac
printf 't,x\\n0,1\\n1,%s\\n' $3 > out.csv
"""
MOODS = (
    *("good", "exits", "crashes", "hangs", "eats"),
    *("floods", "leaves", "forgets", "garbles"),
)
TOLD = {
    "exits": ["ended with exit code 3 after", "says more", "run exits "],
    "crashes": ["was ended by SIGSEGV after", "crashes speaks"],
    "hangs": ["longer than task_seconds = 2.0", "hangs speaks"],
    "eats": ["MemoryError", "it may allocate task_memory = 300000000 bytes"],
    "forgets": ["the program left no file out.csv; it left nothing"],
    "garbles": ["out.csv has 'high' in column 'x', line 2: no number"],
}
WILD_SPEC = f"""
[ensemble]
replicates = 2
seed = 1
[model]
command = "./run {{mood}} {sys.executable} {{seed}}"
[model.read.x]
file = "out.csv"
column = "x"
[sweep]
mood = {json.dumps(MOODS)}
[limits]
task_seconds = 2
task_memory = 300000000
"""


@dataclass
class Wild:
    lab: Lab
    launch: Launch


@pytest.fixture(scope="module")
def wild(tmp_path_factory: pytest.TempPathFactory) -> Wild:
    """A run on two ranks in which much went wrong."""
    lab = Lab(tmp_path_factory.mktemp("wild"))
    lab.program(WILD)
    write(lab.folder, "s.toml", WILD_SPEC)
    launcher = Launcher(lab.folder)
    scratch = {"TMPDIR": str(lab.scratch)}
    launch = launcher.start_ranks("mpich", 2, "s.toml", **scratch).wait(90)
    return Wild(lab, launch)


def test_whatever_a_program_does_costs_its_task(wild: Wild) -> None:
    assert wild.launch.code == 3, wild.launch.errors
    assert "Traceback" not in wild.launch.errors
    assert wild.launch.orphans() == []
    with h5py.File(wild.lab.folder / "s.h5") as file:
        failed = file["tasks/status"][:, 0] == 2
        series = file["series/x"][0]
    assert [m for m, f in zip(MOODS, failed, strict=True) if f] == [*TOLD]
    streams = [np.random.SeedSequence(1, spawn_key=(r,)) for r in range(2)]
    seeds = [int(stream.generate_state(1)[0]) for stream in streams]
    assert series.tolist() == [[1, seed] for seed in seeds]


def test_every_failure_of_a_program_tells_why_and_where(wild: Wild) -> None:
    store = Store(wild.lab.folder / "s.h5")
    texts = dict(store.failures())
    store.close()
    kept = set()
    for index, mood in enumerate(MOODS):
        for task in (2 * index, 2 * index + 1):
            if mood in TOLD:
                for told in TOLD[mood]:
                    assert told in texts[task]
                assert texts[task].count("speaks") == (2 if mood == "exits" else 1)
                [folder] = re.findall(r"its folder is kept: (\S+) on", texts[task])
                kept.add(Path(folder))
    assert set(wild.lab.kept) == kept  # and no other
    assert len(kept) == 2 * len(TOLD)


def test_the_table_of_failures_says_how_a_program_ended(wild: Wild) -> None:
    launcher = Launcher(wild.lab.folder)
    shown = launcher.mpiens("show", "s.h5").output
    line = "failed: scenario mood=exits, replicate 0: the program ended with exit code"
    assert line in shown
    assert "./run {mood}" in shown


def test_programs_are_tried_and_replayed(wild: Wild) -> None:
    launcher = Launcher(wild.lab.folder)

    def ask(*words: str) -> Launch:
        command = [sys.executable, "-m", "mpiens", *words]
        return launcher.run(command, TMPDIR=str(wild.lab.scratch))

    before = len(wild.lab.kept)
    good = ask("replay", "s.h5", "mood=good", "1")
    assert (good.code, good.output.strip()[-13:]) == (0, "bit-identical")
    assert "good speaks" in good.errors
    assert len(wild.lab.kept) == before
    bad = ask("replay", "s.h5", "mood=exits", "1")
    assert bad.code == 3
    assert "failed, as it did in the file" in bad.output
    late = ask("try", "s.toml", "mood=hangs")
    assert late.code == 3
    assert "longer than task_seconds = 2.0 and was ended; its folder is" in late.errors
    assert late.orphans() == []
    assert len(wild.lab.kept) == before + 2
    tried = ask("try", "s.toml", "mood=good")
    assert tried.code == 0, tried.errors
    assert "x: shape (2,), float64" in tried.output
    assert "good speaks" in tried.errors


def test_a_task_that_succeeds_at_last_leaves_no_folder(launcher: Launcher) -> None:
    lab = Lab(launcher.folder)
    lab.program(
        f"""
        echo > {lab.folder}/tries-$1-$$
        case $(ls {lab.folder} | grep -c tries-$1-) in
        1) exit 1;;
        2) sleep 999;;
        esac
        echo $1
        """
    )
    limits = "[limits]\nretries = 2\ntask_seconds = 2\n"
    text = HEAD + f'[model]\ncommand = "./run {{replicate}}"\n{NUMBER}\n{limits}'
    write(lab.folder, "s.toml", text)
    command = [sys.executable, "-m", "mpiens", "s.toml"]
    launch = launcher.run(command, TMPDIR=str(lab.scratch))
    assert launch.code == 0, launch.errors
    with h5py.File(lab.folder / "s.h5") as file:
        assert file["series/x"][0].tolist() == [0, 1, 2]
        assert file["tasks/attempts"][0].tolist() == [3, 3, 3]
    assert lab.kept == []


def test_a_program_killed_from_outside_is_tried_again(launcher: Launcher) -> None:
    lab = Lab(launcher.folder)
    lab.program(
        f"""
        [ $1 = 0 ] && kill -9 $$
        [ $1 = 1 ] && ! [ -f {lab.folder}/once ] && echo > {lab.folder}/once && kill $$
        echo $1
        """
    )
    text = f'{HEAD}[model]\ncommand = "./run {{replicate}}"\n{NUMBER}'
    write(lab.folder, "s.toml", text)
    command = [sys.executable, "-m", "mpiens", "s.toml"]
    launch = launcher.run(command, TMPDIR=str(lab.scratch))
    assert launch.code == 3, launch.errors
    store = Store(lab.folder / "s.h5")
    [(task, told)] = store.failures()
    assert task == 0
    assert "the program was ended by SIGKILL" in told
    assert store.read("/tasks/attempts")[0].tolist() == [4, 2, 1]
    store.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_program_ends_with_its_rank(launcher: Launcher, number: int) -> None:
    lab = Lab(launcher.folder)
    lab.program(f"trap '' TERM; echo > {lab.folder}/begun; sleep 999")
    write(lab.folder, "s.toml", HEAD + f'[model]\ncommand = "./run"\n{NUMBER}')
    command = [sys.executable, "-m", "mpiens", "s.toml"]
    launch = launcher.start(command, TMPDIR=str(lab.scratch))
    wait_until((lab.folder / "begun").exists)
    os.kill(launch.process.pid, number)
    launch.wait(60)
    assert launch.orphans() in ([], ["sleep\0999\0"] * (number == signal.SIGKILL))
    if number == signal.SIGTERM:
        assert launch.code == 75, launch.errors
        assert lab.kept == []


def test_without_isolation_a_program_runs_as_well(launcher: Launcher) -> None:
    lab = Lab(launcher.folder)
    lab.program("echo $1; echo printed >&2")
    text = HEAD + f'[model]\ncommand = "./run {{seed}}"\n{NUMBER}'
    write(lab.folder, "s.toml", text)
    write(lab.folder, "none.toml", text + '[limits]\nisolation = "none"\n')
    for name in ("s", "none"):
        launch = launcher.mpiens(f"{name}.toml")
        assert launch.code == 0, launch.errors
        assert "printed" not in launch.output
    assert launcher.digest("s.h5") == launcher.digest("none.h5")


def test_a_changed_program_is_told_like_a_changed_model(launcher: Launcher) -> None:
    lab = Lab(launcher.folder)
    lab.program("echo 1")
    text = HEAD + f'[model]\ncommand = "./run"\n{NUMBER}'
    write(lab.folder, "s.toml", text)
    assert launcher.mpiens("s.toml").code == 0
    write(lab.folder, "s.toml", text.replace("replicates = 3", "replicates = 4"))
    lab.program("echo 2")
    refused = launcher.mpiens("s.toml")
    assert refused.code == 2
    assert "s.toml:6: [model] command: its code has changed since" in refused.errors
    assert launcher.mpiens("s.toml", "--accept-model-change").code == 0
    with h5py.File(lab.folder / "s.h5") as file:
        assert file["series/x"][0].tolist() == [1, 1, 1, 2]
    write(lab.folder, "s.toml", text.replace("[model.read.x]", "[model.read.y]"))
    refused = launcher.mpiens("s.toml")
    assert refused.code == 2
    assert "[model] read: has changed since" in refused.errors


# Shared data


def as_bytes(value: Any) -> dict[str, bytes]:
    return {name: b"".join(parts) for name, parts in as_files(value).items()}


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4),
        np.asfortranarray(np.arange(12).reshape(3, 4)),
        np.arange(10, dtype=np.int16)[::3],
        np.zeros((0, 3)),
        np.array(3.5),
        np.array(["2020-03-01"], dtype="M8[D]"),
        np.zeros(2, dtype="i4,f8"),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_an_array_is_an_npy_file(array: Any, tmp_path: Path) -> None:
    [(name, data)] = as_bytes(array).items()
    (tmp_path / name).write_bytes(data)
    back = np.load(tmp_path / "shared.npy")
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_bytes_are_a_file_and_a_mapping_is_a_folder() -> None:
    assert as_bytes(b"net") == {"shared": b"net"}
    found = as_bytes({"a.txt": b"1", "people": np.zeros(1), "none": b""})
    assert [*found] == ["shared/a.txt", "shared/people.npy", "shared/none"]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([1, 2], "list is no file: a program's loader returns bytes"),
        (None, "NoneType is no file"),
        (np.array([object()]), "ndarray is no file"),
        ({}, "an empty mapping is no folder of files"),
        ({"a/b": b""}, "'a/b' is no name of a file"),
        ({3: b""}, "3 is no name of a file"),
    ],
)
def test_what_is_no_file_is_told(value: Any, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        as_files(value)


LOADER = """
import numpy as np

def array(): return np.arange(10**6, dtype=np.int64)
def folder(): return {"a.txt": b"5", "b": np.arange(3.0), "none": b""}
def wrong(): return ["no", "file"]
"""


def test_shared_files_are_read_only_and_as_the_loader_returned_them(lab: Lab) -> None:
    write(lab.folder, "data.py", LOADER)
    lab.program(
        """
        cat $1/a.txt; echo
        wc -c < $1/b.npy
        wc -c < $1/none
        (echo 6 > $1/a.txt) 2> /dev/null || echo 1
        cat $1/a.txt
        """
    )
    shared = '[shared]\nloader = "data.py:folder"\n'
    spec = lab.spec('command = "./run {shared}"', shared)
    inspect_model(spec)
    assert lab.run(spec)["x"].tolist() == [5, 128 + 24, 0, 1, 5]


def test_every_node_holds_the_files_of_programs_once(launcher: Launcher) -> None:
    lab = Lab(launcher.folder)
    write(lab.folder, "data.py", LOADER)
    seen = f"> {lab.folder}/seen-$2; sleep 0.3; sha256sum $1 >> {lab.folder}/seen-$2"
    lab.program(
        f"readlink $1 {seen}\nstat -L -c '%d %i %s' $1 >> {lab.folder}/seen-$2\necho 1"
    )
    text = HEAD.replace("= 3", "= 12") + NUMBER
    text += '[model]\ncommand = "./run {shared} {replicate}"\n'
    write(lab.folder, "s.toml", text + '[shared]\nloader = "data.py:array"\n')
    launch = launcher.ranks("mpich", 4, "s.toml")
    assert launch.code == 0, launch.errors
    seen_by = [p.read_text().splitlines() for p in lab.folder.glob("seen-*")]
    assert len(seen_by) == 12
    assert len({lines[0] for lines in seen_by}) == 4  # runners, each with its own
    assert len({lines[1].split()[0] for lines in seen_by}) == 1  # the same bytes
    assert len({lines[2] for lines in seen_by}) == 1  # in the same file
    assert int(seen_by[0][2].split()[2]) == 128 + 8 * 10**6


def test_a_loader_that_makes_no_files_is_told(launcher: Launcher) -> None:
    lab = Lab(launcher.folder)
    write(lab.folder, "data.py", LOADER)
    lab.program("echo 1")
    text = f'{HEAD}[model]\ncommand = "./run {{shared}}"\n{NUMBER}'
    write(lab.folder, "s.toml", text + '[shared]\nloader = "data.py:wrong"\n')
    told = "[shared] loader: list is no file: a program's loader returns bytes"
    for launch in (
        launcher.mpiens("check", "s.toml"),
        launcher.ranks("mpich", 2, "s.toml"),
    ):
        assert launch.code == 2
        assert told in launch.errors
