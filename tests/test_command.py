"""What a user types and sees: commands, exit codes, and which stream says what."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import MODEL, SPEC, Launch, Launcher, write

SCENARIOS = [
    *("baseline,beta=0.2", "baseline,beta=0.4"),
    *("masks,beta=0.2", "masks,beta=0.4"),
]
KINDS = {"infected": ["final", "peak", "peak_time", "total"], "share": ["final"]}

HEAD = "[ensemble]\nmodel = 'model.py:simulate'\nreplicates = 3\nseed = 1\n"

FAULTY = """
import os
import sys

def simulate(rng, replicate, scenario, *, mask=0.0):
    print("by the model", flush=True)
    os.write(1, b"by the model\\n")
    if scenario == "masks" and replicate in (1, 4):
        raise ValueError(f"too many masks in {replicate}")
    return {"infected": rng.normal(size=5)}
"""
FAULTY_SPEC = """
[ensemble]
model = "faulty.py:simulate"
replicates = 6
seed = 7

[scenarios.baseline]
[scenarios.masks]
mask = 0.7125

[bands]
baseline = "baseline"
"""


@dataclass
class Finished:
    """A run that has ended, for tests that only look."""

    folder: Path
    launch: Launch
    name: str = "sweep.h5"

    def ask(self, *words: str) -> Launch:
        return Launcher(self.folder).mpiens(*words)

    def digest(self) -> str:
        with h5py.File(self.folder / self.name, "r") as file:
            return str(file.attrs["digest"])

    def series(self, name: str) -> np.ndarray:
        with h5py.File(self.folder / self.name, "r") as file:
            return file[f"/series/{name}"][:]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    (folder / "model.py").write_text(MODEL)
    (folder / "sweep.toml").write_text(SPEC)
    return Finished(folder, Launcher(folder).mpiens("sweep.toml"))


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("faulty")
    write(folder, "faulty.py", FAULTY)
    write(folder, "faulty.toml", FAULTY_SPEC)
    launch = Launcher(folder).mpiens("faulty.toml")
    return Finished(folder, launch, "faulty.h5")


@pytest.fixture
def partial(finished: Finished, tmp_path: Path) -> Path:
    """The finished file as if it had been killed on its way."""
    path = tmp_path / "sweep.h5.partial"
    shutil.copy(finished.folder / "sweep.h5", path)
    with h5py.File(path, "r+") as file:
        del file.attrs["digest"]
        file["/tasks/status"][3, 5:] = 0
        file["/tasks/status"][1, 3:6] = 0  # its baseline
    return path


def assert_told(launch: Launch, *sentences: str, code: int = 2) -> None:
    """One line for each fault, on standard error, in any order."""
    assert launch.code == code, launch.errors
    assert launch.output == ""
    assert "Traceback" not in launch.errors
    for sentence in sentences:
        assert sentence in launch.errors
    assert len(launch.errors.strip().splitlines()) == len(sentences), launch.errors


# running


def test_a_run_leaves_one_file_under_the_name_of_its_spec(finished: Finished) -> None:
    assert finished.launch.code == 0
    names = {path.name for path in finished.folder.iterdir()} - {"__pycache__"}
    assert names == {"model.py", "sweep.toml", "sweep.h5"}


def test_standard_output_is_the_answer_and_the_rest_is_standard_error(
    finished: Finished,
) -> None:
    launch = finished.launch
    assert launch.output == finished.ask("show", "sweep.h5").output
    assert "48 of 48 tasks done, 0 failed: complete" in launch.output
    assert re.search(r"48 tasks, 0 failed, in .* on 1 ranks", launch.errors)
    assert "mpiens:" not in launch.output
    assert "\r" not in launch.output + launch.errors
    assert "\x1b" not in launch.output + launch.errors


def test_the_file_lies_where_the_command_is_typed(
    launcher: Launcher, folder: Path
) -> None:
    below = folder / "below"
    below.mkdir()
    shutil.move(folder / "model.py", below)
    shutil.move(folder / "sweep.toml", below)
    launch = launcher.mpiens(str(Path("below") / "sweep.toml"))
    assert launch.code == 0, launch.errors
    assert (folder / "sweep.h5").exists()
    assert not (below / "sweep.h5").exists()


def test_the_same_command_on_a_complete_file_does_nothing(finished: Finished) -> None:
    file = finished.folder / "sweep.h5"
    before = file.stat()
    launch = finished.ask("sweep.toml")
    assert launch.code == 0
    assert "sweep.h5 is complete: nothing to do" in launch.errors
    assert launch.output == finished.launch.output
    after = file.stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


def test_fresh_starts_over_and_gives_the_same_digest(
    finished: Finished, launcher: Launcher, folder: Path
) -> None:
    shutil.copy(finished.folder / "sweep.h5", folder)
    before = (folder / "sweep.h5").stat().st_ino
    assert launcher.mpiens("sweep.toml", "--fresh").code == 0
    assert (folder / "sweep.h5").stat().st_ino != before
    assert launcher.digest("sweep.h5") == finished.digest()


def test_two_ranks_are_started_by_n_and_give_the_same_digest(
    finished: Finished, launcher: Launcher, folder: Path
) -> None:
    launch = launcher.mpiens("sweep.toml", "-n", "2", "-o", "two.h5")
    assert launch.code == 0, launch.errors
    assert "on 2 ranks" in launch.errors
    assert launch.output.count("48 of 48 tasks done") == 1
    assert not (folder / "sweep.h5").exists()
    assert launcher.digest("two.h5") == finished.digest()


@pytest.mark.parametrize(
    "words", [["-n", "2"], ["-n2"], ["--ranks", "2"], ["--ranks=2"], ["--rank", "2"]]
)
def test_ranks_are_not_told_to_start_ranks(words: list[str]) -> None:
    # no end-to-end test: where this is wrong, every rank starts ranks for ever
    from mpiens.__main__ import _without_ranks

    rest = ["sweep.toml", "-o", "x.h5", "--fresh"]
    assert _without_ranks([*words, *rest]) == rest
    assert _without_ranks([rest[0], *words, *rest[1:]]) == rest


def test_n_hands_on_that_tasks_failed(faulty: Finished, tmp_path: Path) -> None:
    output = str(tmp_path / "two.h5")
    launch = faulty.ask("faulty.toml", "-n", "2", "-o", output)
    assert launch.code == 3, launch.errors
    assert launch.output.count("2 failed: complete") == 1
    assert "by the model" not in launch.output


def test_n_hands_on_that_the_spec_is_wrong(launcher: Launcher, folder: Path) -> None:
    write(folder, "wrong.toml", SPEC.replace("replicates", "replicate"))
    launch = launcher.mpiens("wrong.toml", "-n", "2")
    assert launch.code == 2
    assert launch.output == ""
    assert launch.errors.count("did you mean replicates?") == 1
    assert "Traceback" not in launch.errors


def test_a_folder_that_is_not_there_is_told_before_any_task(
    launcher: Launcher, folder: Path
) -> None:
    launch = launcher.mpiens("sweep.toml", "-o", "nowhere/x.h5")
    assert_told(launch, "nowhere")
    assert "nowhere/x.h5" in launch.errors


def test_what_a_model_prints_is_never_standard_output(faulty: Finished) -> None:
    assert "by the model" not in faulty.launch.output
    assert "infected, final" in faulty.launch.output


def test_nor_is_it_where_the_model_has_no_process_of_its_own(
    launcher: Launcher, tmp_path: Path
) -> None:
    write(tmp_path, "faulty.py", FAULTY)
    write(tmp_path, "faulty.toml", FAULTY_SPEC + '[limits]\nisolation = "none"\n')
    launch = launcher.mpiens("faulty.toml")
    assert launch.code == 3, launch.errors
    assert "infected, final" in launch.output
    assert "by the model" not in launch.output


# tasks that fail


def test_failed_tasks_are_listed_and_the_run_ends_with_3(faulty: Finished) -> None:
    launch = faulty.launch
    assert launch.code == 3
    assert "10 of 12 tasks done, 2 failed: complete" in launch.output
    for number in (1, 4):
        told = f"scenario masks, replicate {number}: ValueError: too many masks in"
        assert f"failed: {told} {number}" in launch.output
    assert "Traceback" not in launch.output + launch.errors


def test_a_failure_is_kept_with_traceback_parameters_and_stream(
    faulty: Finished,
) -> None:
    with h5py.File(faulty.folder / "faulty.h5", "r") as file:
        assert file["/failures/task"][:3].tolist() == [7, 10, -1]
        text = file["/failures/text"][0].decode()
        assert file["/tasks/status"][1].tolist() == [1, 2, 1, 1, 2, 1]
    assert "scenario 'masks', replicate 1" in text
    assert "in simulate\n    raise ValueError" in text
    assert "ValueError: too many masks in 1" in text
    assert "0.7125" in text
    sequence = np.random.SeedSequence(7, spawn_key=(1,))
    assert str(sequence.generate_state(1)[0]) in text


def test_bands_rest_on_the_tasks_that_are_done(faulty: Finished) -> None:
    series = faulty.series("infected")
    done = series[1, [0, 2, 3, 5]]
    with h5py.File(faulty.folder / "faulty.h5", "r") as file:
        assert file["/tasks/done"][:].tolist() == [6, 4]
        levels = file["level"][:]
        bands = file["/bands/infected"][1]
        deviation = file["/bands/infected.std"][1]
        pairs = file["/comparison/infected/final"][1]
    np.testing.assert_array_equal(bands, np.quantile(done, levels, axis=0))
    np.testing.assert_allclose(deviation, done.std(axis=0, ddof=1), rtol=1e-12)
    assert np.isnan(series[1, [1, 4]]).all()
    difference = series[1, :, -1] - series[0, :, -1]
    np.testing.assert_array_equal(pairs, difference)  # NaN where either failed


def test_the_same_command_ends_with_3_again(faulty: Finished) -> None:
    before = (faulty.folder / "faulty.h5").stat().st_mtime_ns
    launch = faulty.ask("faulty.toml")
    assert launch.code == 3
    assert "nothing to do" in launch.errors
    assert (faulty.folder / "faulty.h5").stat().st_mtime_ns == before


def test_an_ensemble_whose_tasks_all_fail_is_told_and_shown(
    launcher: Launcher, tmp_path: Path
) -> None:
    write(tmp_path, "model.py", "def simulate():\n    return 1 / 0")
    spec = '[ensemble]\nmodel = "model.py:simulate"\nreplicates = 3\nseed = 1\n'
    write(tmp_path, "run.toml", spec)
    launch = launcher.mpiens("run.toml")
    assert launch.code == 3, launch.errors
    assert "0 of 3 tasks done, 3 failed" in launch.output
    assert launch.output.count("ZeroDivisionError: division by zero") == 3
    table = launcher.mpiens("show", "run.h5", "--csv")
    assert table.output == "scenario,done,failed\ndefault,0,3\n"
    document = json.loads(launcher.mpiens("show", "run.h5", "--json").output)
    assert document["tasks"] == {"done": 0, "failed": 3, "pending": 0}
    assert document["scenarios"][0]["summaries"] == {}


# faults of a spec

SHOULD = 'should read "file.py:function"'
SPECS = {
    "unknown key": (("seed =", "sed ="), ["did you mean seed?", "[ensemble] seed: is"]),
    "no table": (("[parameters]", "[paramters]"), ["did you mean parameters?"]),
    "bad model": (("model.py:simulate", "model.py"), [SHOULD]),
    "no function": (("py:simulate", "py:simulat"), ["did you mean simulate?"]),
    "no file": (("model.py:sim", "modle.py:sim"), ["there is no file"]),
    "no loader": (("model.py:load", "model.py:lode"), ["has no function lode"]),
    "not TOML": (("[shared]", "[shared"), ["is not TOML"]),
}


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        *(([], fault) for fault in ("unknown key", "no function")),
        *((("check",), fault) for fault in SPECS),
        *((("try",), fault) for fault in ("bad model", "no loader")),
    ],
)
def test_every_command_refuses_a_wrong_spec(
    launcher: Launcher, folder: Path, command: tuple[str, ...], fault: str
) -> None:
    change, sentences = SPECS[fault]
    write(folder, "wrong.toml", SPEC.replace(*change))
    assert_told(launcher.mpiens(*command, "wrong.toml"), *sentences)
    assert not (folder / "wrong.h5").exists()


@pytest.mark.parametrize("command", [[], ["check"]])
def test_all_faults_of_a_spec_and_its_model_are_told_at_once(
    launcher: Launcher, folder: Path, command: list[str]
) -> None:
    spec = SPEC.replace("mask = 0.7", "msk = 0.7")
    spec = spec.replace("days = 10", "town = 3")
    spec = spec.replace('units = "agents"', 'unit = "agents"')
    spec = spec.replace('baseline = "baseline"', 'baseline = "base"\nlevels = [0.5, 2]')
    write(folder, "wrong.toml", spec)
    launch = launcher.mpiens(*command, "wrong.toml")
    assert_told(
        launch,
        "[scenarios.masks] msk: simulate() takes no such parameter; "
        "it takes beta, days, mask; did you mean mask?",
        "[parameters] town: simulate() takes no such parameter",
        "[outputs.infected] unit: is not a key here; did you mean units?",
        "[bands] levels: 2.0 is no quantile; levels lie between 0 and 1",
        "[bands] baseline: 'base' is no scenario; did you mean baseline",
    )
    lines = spec.splitlines()
    for told in launch.errors.splitlines():
        number, key = re.match(r"wrong.toml:(\d+): \[.*\] (\w+):", told).groups()
        assert lines[int(number) - 1].startswith(f"{key} = ")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("raise SystemExit('no licence')", "no licence"),
        ("import nowhere_to_be_found", "No module named 'nowhere_to_be_found'"),
        ("def simulate(:", "SyntaxError"),
        ("import os; os._exit(4)", "ended its process with code 4"),
    ],
)
def test_a_model_that_cannot_be_imported_is_told_in_a_sentence(
    launcher: Launcher, folder: Path, source: str, sentence: str
) -> None:
    write(folder, "model.py", source)
    write(folder, "plain.toml", SPEC.partition("[shared]")[0])
    assert_told(launcher.mpiens("check", "plain.toml"), sentence)


@pytest.mark.parametrize("command", [[], ["check"]])
@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("return lambda: 3", "cannot be pickled"),
        ("return open('nowhere.csv')", "FileNotFoundError"),
        ("raise SystemExit('no contacts')", "no contacts"),
    ],
)
def test_a_loader_that_fails_is_told_in_a_sentence(
    launcher: Launcher, folder: Path, command: list[str], body: str, sentence: str
) -> None:
    (folder / "model.py").write_text(f"{MODEL}\n\ndef lode():\n    {body}\n")
    write(folder, "lode.toml", SPEC.replace("py:load", "py:lode"))
    launch = launcher.mpiens(*command, "lode.toml")
    assert_told(launch, "[shared] loader")
    assert sentence in launch.errors


@pytest.mark.parametrize("words", [[], ["sweep.toml", "-n", "0"], ["sweep.toml", "-x"]])
def test_a_wrong_command_line_ends_with_2(
    launcher: Launcher, folder: Path, words: list[str]
) -> None:
    launch = launcher.mpiens(*words)
    assert launch.code == 2
    assert launch.output == ""
    assert "usage: mpiens" in launch.errors
    assert "Traceback" not in launch.errors


def test_a_spec_that_is_not_there_is_told(launcher: Launcher) -> None:
    assert_told(launcher.mpiens("none.toml"), "none.toml: cannot be read: No such file")


# check


def test_check_tells_scenarios_tasks_axes_and_shared_bytes(
    launcher: Launcher, folder: Path
) -> None:
    launch = launcher.mpiens("check", "sweep.toml")
    assert launch.code == 0, launch.errors
    assert launch.errors == ""
    assert "scenarios: 4 (" + ", ".join(SCENARIOS) + ")" in launch.output
    assert "axis beta: 2 values" in launch.output
    assert "tasks: 48 (4 scenarios x 12 replicates), common streams" in launch.output
    shared = re.search(
        r"shared data: (.*) per node, (\d+) bytes per rank", launch.output
    )
    assert shared[1] == "512 bytes"  # 64 numbers of 8 bytes
    assert 0 < int(shared[2]) < 512
    assert "output: its size is known once the first task is done" in launch.output
    names = {path.name for path in folder.iterdir()} - {"__pycache__"}
    assert names == {"model.py", "sweep.toml"}


def test_check_tells_what_is_zipped_excluded_and_sampled(
    launcher: Launcher, folder: Path
) -> None:
    sweep = "[sweep]\nmask = [0.1, 0.2]\ndays = [5, 6]\nzip = [['mask', 'days']]\n"
    sweep += "exclude = [{ mask = 0.1 }]\n"
    design = (
        "[design]\nmethod = 'sobol'\nsamples = 8\n"
        'ranges.beta = { low = 0.1, high = 2.0, scale = "log" }\n'
        "ranges.n = { low = 1, high = 3, integer = true }\n"
        'ranges.policy = { choices = ["open", "closed"] }\n'
    )
    write(folder, "model.py", "def simulate(**own):\n    return {'x': 1}\n")
    write(folder, "a.toml", HEAD + sweep + design)
    launch = launcher.mpiens("check", "a.toml")
    assert launch.code == 0, launch.errors
    lines = launch.output.splitlines()
    first = "mask=0.2,days=6,sample=0"
    assert lines[0].startswith(f"scenarios: 8 ({first}, ")
    assert lines[1:9] == [
        "axis mask: 2 values",
        "axis days: 2 values",
        "axes mask, days: walk together",
        "excluded: mask = 0.1",
        "design sobol: 8 samples",
        "range beta: 0.1 to 2.0, log",
        "range n: 1 to 3, integers",
        "range policy: open, closed",
    ]
    write(folder, "points.csv", "beta,days\n0.1,3\n0.2,4\n")
    design = "[design]\nmethod = 'csv'\nfile = 'points.csv'\n"
    write(folder, "a.toml", HEAD + design)
    launch = launcher.mpiens("check", "a.toml")
    assert launch.output.splitlines()[:2] == [
        "scenarios: 2 (beta=0.1,days=3, beta=0.2,days=4)",
        "design points.csv: 2 points of beta, days",
    ]


def test_check_tells_what_the_model_does_not_take_of_a_design(
    launcher: Launcher, folder: Path
) -> None:
    model = "def simulate(*, beta, mask=0):\n    return {'x': 1}\n"
    write(folder, "model.py", model)
    design = "[design]\nmethod = 'lhs'\nsamples = 8\n"
    write(folder, "a.toml", HEAD + design + "ranges.betta = { low = 1, high = 2 }\n")
    takes = "simulate() takes no such parameter; it takes beta, mask"
    assert_told(
        launcher.mpiens("check", "a.toml"),
        f"a.toml:8: [design.ranges.betta]: {takes}; did you mean beta?",
        "[parameters]: simulate() needs beta, which scenario 'sample=0' lacks",
    )
    write(folder, "points.csv", "beta,masks\n0.1,3\n0.2,4\n")
    write(folder, "more.csv", "scenario,day\n" + "".join(f"s{i},1\n" for i in range(9)))
    design = "[design]\nmethod = 'csv'\nfile = 'points.csv'\n"
    write(folder, "a.toml", HEAD + "[scenarios]\nfile = 'more.csv'\n" + design)
    assert_told(
        launcher.mpiens("check", "a.toml"),
        f"a.toml:6: [scenarios] file.day: {takes}",
        f"a.toml:9: [design] file.masks: {takes}; did you mean mask?",
    )
    # a design at fault hides nothing, and is not told of as if it were not there
    design = "[design]\nmethod = 'lhs'\nsamples = 8\n"
    write(folder, "a.toml", HEAD + design + "ranges.beta = { low = 3, high = 2 }\n")
    assert_told(launcher.mpiens("check", "a.toml"), "[design.ranges.beta] low: 3")


def test_check_tells_bytes_and_time_by_an_earlier_file(finished: Finished) -> None:
    with h5py.File(finished.folder / "sweep.h5", "r") as file:
        sizes: list[int] = []
        file.visititems(
            lambda _, item: (
                sizes.append(item.nbytes) if isinstance(item, h5py.Dataset) else None
            )
        )
        mean = file["/tasks/seconds"][:].mean()
    lines = finished.ask("check", "sweep.toml").output.splitlines()
    assert f"output: {sum(sizes) / 1024:,.1f} KiB in all" in lines
    [time] = [line for line in lines if line.startswith("time: ")]
    assert f"{mean:.2g} s a task by sweep.h5, {48 * mean:.2g} s for all" in time


# try


def test_try_runs_one_task_and_tells_shapes_time_and_memory(
    finished: Finished,
) -> None:
    launch = finished.ask("try", "sweep.toml", "masks,beta=0.4", "5")
    assert launch.code == 0, launch.errors
    first, *_, last = launch.output.splitlines()
    assert first == "scenario masks,beta=0.4, replicate 5"
    assert "infected: shape (10,), int64: [" in launch.output
    assert "wave: shape (3, 2), float64: [[" in launch.output
    share = finished.series("share")[3, 5]
    assert f"share: shape (), float64: {np.array2string(share, precision=4)}\n" in (
        launch.output
    )
    assert re.fullmatch(r"[\d.e-]+ s, [\d,]+ MiB at most", last)


def test_try_takes_the_first_scenario_and_replicate(finished: Finished) -> None:
    launch = finished.ask("try", "sweep.toml")
    assert launch.output.startswith(f"scenario {SCENARIOS[0]}, replicate 0\n")


def test_try_shows_what_the_model_prints_on_standard_error(
    launcher: Launcher, tmp_path: Path
) -> None:
    write(tmp_path, "faulty.py", FAULTY + "\nprint('at import')\n")
    write(tmp_path, "faulty.toml", FAULTY_SPEC)
    launch = launcher.mpiens("try", "faulty.toml")
    assert launch.code == 0
    assert launch.errors.count("by the model") == 2
    assert "at import" in launch.errors
    assert "by the model" not in launch.output
    assert "at import" not in launch.output


def test_try_tells_a_fault_with_its_parameters_and_seed(faulty: Finished) -> None:
    launch = faulty.ask("try", "faulty.toml", "masks", "4")
    assert launch.code == 3
    assert launch.output == ""
    assert "Traceback (most recent call last):" in launch.errors
    assert "ValueError: too many masks in 4" in launch.errors
    assert "mpiens/foreground.py" not in launch.errors
    assert "'mask': 0.7125" in launch.errors
    seed = np.random.SeedSequence(7, spawn_key=(4,)).generate_state(1)[0]
    assert f"seed: {seed}" in launch.errors


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("raise SystemExit(0)", "SystemExit"),
        ("return 3", "mapping of output names to numbers, not int"),
        ("return {'x': 'text'}", "output 'x' is of type <U4"),
    ],
)
def test_try_tells_what_else_is_a_models_fault(
    launcher: Launcher, tmp_path: Path, body: str, sentence: str
) -> None:
    write(tmp_path, "model.py", f"def simulate():\n    {body}")
    spec = '[ensemble]\nmodel = "model.py:simulate"\nreplicates = 3\nseed = 1\n'
    write(tmp_path, "run.toml", spec)
    launch = launcher.mpiens("try", "run.toml")
    assert launch.code == 3
    assert sentence in launch.errors
    assert "mpiens/" not in launch.errors


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["mask,beta=0.2"], "no scenario 'mask,beta=0.2'; did you mean masks,beta=0.2"),
        (["masks,beta=0.2", "12"], "no replicate 12; they are 0 to 11"),
    ],
)
def test_try_and_replay_tell_what_there_is(
    finished: Finished, words: list[str], sentence: str
) -> None:
    assert_told(finished.ask("try", "sweep.toml", *words), sentence)
    words = [words[0], words[1] if words[1:] else "0"]
    assert_told(finished.ask("replay", "sweep.h5", *words), sentence)


# replay


def test_replay_gives_the_same_bits(finished: Finished) -> None:
    launch = finished.ask("replay", "sweep.h5", "masks,beta=0.4", "7")
    told = "scenario masks,beta=0.4, replicate 7: bit-identical\n"
    assert (launch.code, launch.output) == (0, told)


def test_replay_tells_a_row_that_differs(finished: Finished, tmp_path: Path) -> None:
    path = tmp_path / "other.h5"
    shutil.copy(finished.folder / "sweep.h5", path)
    with h5py.File(path, "r+") as file:
        file["/tasks/checksum"][2, 3] += 1
    launch = finished.ask("replay", str(path), "masks,beta=0.2", "3")
    assert launch.code == 3
    assert "NOT bit-identical" in launch.output


def test_replay_runs_a_failed_task_to_its_fault(faulty: Finished) -> None:
    launch = faulty.ask("replay", "faulty.h5", "masks", "1")
    assert launch.code == 3
    assert launch.output == (
        "scenario masks, replicate 1: failed, as it did in the file\n"
    )
    assert "ValueError: too many masks in 1" in launch.errors
    assert "by the model" in launch.errors


def test_replay_of_a_row_that_does_not_fit_tells_so(
    launcher: Launcher, tmp_path: Path
) -> None:
    body = "return {'x': [1.0] * (2 + (replicate == CHANGED))}"
    source = f"CHANGED = 1\ndef simulate(replicate):\n    {body}\n"
    write(tmp_path, "model.py", source)
    spec = '[ensemble]\nmodel = "model.py:simulate"\nreplicates = 3\nseed = 1\n'
    write(tmp_path, "run.toml", spec)
    assert launcher.mpiens("run.toml").code == 3
    launch = launcher.mpiens("replay", "run.h5", "default", "1")
    assert launch.code == 3
    assert "failed, as it did in the file" in launch.output
    assert "output 'x' has shape (3,) here and shape (2,)" in launch.errors
    write(tmp_path, "model.py", source.replace("CHANGED = 1", "CHANGED = 2"))
    launch = launcher.mpiens("replay", "run.h5", "default", "2")
    assert launch.code == 3
    assert "failed, unlike in the file" in launch.output
    assert "output 'x' has shape (3,) here and shape (2,)" in launch.errors
    assert "Traceback" not in launch.errors


# show

COUNTS = """
def simulate(scenario, replicate):
    return {"infected": (20_000 if scenario == "baseline" else 9_000) + 10 * replicate}
"""
COUNTS_SPEC = """
[ensemble]
model = "model.py:simulate"
replicates = 11
seed = 1

[scenarios.baseline]
[scenarios."masks [all], :b:"]

[outputs.infected]
units = "[agents]"

[bands]
levels = [0.1, 0.5, 0.9]
baseline = "baseline"
"""


def test_the_table_compares_with_the_baseline_in_thousands(
    launcher: Launcher, tmp_path: Path
) -> None:
    write(tmp_path, "model.py", COUNTS)
    write(tmp_path, "run.toml", COUNTS_SPEC)
    launch = launcher.mpiens("run.toml")
    assert launch.code == 0, launch.errors
    lines = [" ".join(line.split()) for line in launch.output.splitlines()]
    assert "infected, final ([agents])" in lines
    heading = "scenario replicates mean median [10%, 90%] median, 95% sure"
    assert f"{heading} replicates for half of that" in lines
    # of 11 the 2nd and the 9th are enough; of 44, which lie closer, those half as far
    own = "11 20,050 20,050 [20,010, 20,090] 20,010 to 20,080 44"
    assert f"baseline {own}" in lines
    own = "11 9,050 9,050 [9,010, 9,090] 9,010 to 9,080 44"
    assert f"masks [all], :b: {own}" in lines
    assert "infected, final ([agents]): against the baseline, 95% sure" in lines
    heading = "scenario mean difference differences [10%, 90%]"
    assert any(line.startswith(f"{heading} averted") for line in lines)
    own = "-11,000 [-11,000, -11,000] -11,000 to -11,000"
    assert any(line.startswith(f"masks [all], :b: vs baseline {own}") for line in lines)
    assert "11 of 11" not in launch.output
    assert "22 of 22 tasks done, 0 failed: complete" in lines


def summarise(rows: np.ndarray, kind: str) -> np.ndarray:
    """Return a summary over the last axis, by numpy."""
    return {
        "final": lambda: rows[..., -1],
        "peak": lambda: rows.max(axis=-1),
        "peak_time": lambda: rows.argmax(axis=-1),
        "total": lambda: rows.sum(axis=-1),
    }[kind]().astype(float)


def expect(finished: Finished) -> dict[str, list[dict[str, float]]]:
    """Return what show should tell of each summary: a table for every scenario."""
    expected = {}
    for name, kinds in KINDS.items():
        series = finished.series(name).reshape(4, 12, -1)
        for kind in kinds:
            values = summarise(series, kind)
            low, median, high = np.quantile(values, [0.05, 0.5, 0.95], axis=1)
            tables = [
                {"mean": v.mean(), "median": median[i], "low": low[i], "high": high[i]}
                for i, v in enumerate(values)
            ]
            for index in (2, 3):  # masks against the baseline of the same beta
                pairs = values[index] - values[index - 2]
                tables[index] |= {
                    "difference.mean": pairs.mean(),
                    "difference.low": np.quantile(pairs, 0.05),
                    "difference.high": np.quantile(pairs, 0.95),
                }
            expected[f"{name}.{kind}"] = tables
    return expected


def test_csv_has_a_row_for_every_scenario(finished: Finished) -> None:
    launch = finished.ask("show", "sweep.h5", "--csv")
    assert (launch.code, launch.errors) == (0, "")
    header, *rows = csv.reader(io.StringIO(launch.output))
    expected = expect(finished)
    order = [0, 2, 1, 3]  # as the parameters sort them
    columns = [
        f"{path}.{key}" for path, tables in expected.items() for key in tables[2]
    ]
    told = [column for column in header if ".verdict." not in column]
    assert told == ["scenario", "beta", "days", "mask", "done", "failed", *columns]
    assert [row[0] for row in rows] == [SCENARIOS[index] for index in order]
    sorted_by = [["0.2", "10", "0.0"], ["0.2", "10", "0.7"]]
    sorted_by += [["0.4", "10", "0.0"], ["0.4", "10", "0.7"]]
    assert [row[1:4] for row in rows] == sorted_by
    assert [row[4:6] for row in rows] == [["12", "0"]] * 4
    for index, row in zip(order, rows, strict=True):
        told = dict(zip(header, row, strict=True))
        for column in columns:
            output, kind, key = column.split(".", 2)
            number = expected[f"{output}.{kind}"][index].get(key)
            assert (
                told[column] == ""
                if number is None
                else pytest.approx(float(told[column]), rel=1e-12) == number
            )


def test_json_tells_the_paired_differences(finished: Finished) -> None:
    launch = finished.ask("show", "sweep.h5", "--json")
    assert (launch.code, launch.errors) == (0, "")
    document = json.loads(launch.output)
    assert list(document) == ["complete", "digest", "tasks", "scenarios"]
    assert document["complete"] is True
    assert document["digest"] == finished.digest()
    assert document["tasks"] == {"done": 48, "failed": 0, "pending": 0}
    assert [entry["name"] for entry in document["scenarios"]] == SCENARIOS
    expected = expect(finished)
    keys = ["name", "parameters", "done", "failed", "summaries"]
    for index, entry in enumerate(document["scenarios"]):
        assert list(entry) == keys
        mask, beta = (0.0, 0.7)[index // 2], (0.2, 0.4)[index % 2]
        assert entry["parameters"] == {"beta": beta, "days": 10, "mask": mask}
        assert (entry["done"], entry["failed"]) == (12, 0)
        told = {
            f"{output}.{kind}": flatten(numbers)
            for output, kinds in entry["summaries"].items()
            for kind, numbers in kinds.items()
        }
        assert told.keys() == expected.keys()
        for path, numbers in told.items():
            assert numbers == pytest.approx(expected[path][index], rel=1e-12)


def flatten(numbers: dict) -> dict[str, float]:
    inner = numbers.pop("difference", {})
    assert inner == {} or list(inner) == ["mean", "low", "high"]
    verdict = numbers.pop("verdict", {})  # what it says: see test_comparison.py
    assert bool(verdict) == bool(inner)
    return numbers | {f"difference.{key}": value for key, value in inner.items()}


def test_the_digest_is_64_hex_digits_and_a_newline(finished: Finished) -> None:
    launch = finished.ask("show", "sweep.h5", "--digest")
    assert (launch.code, launch.errors) == (0, "")
    assert re.fullmatch(r"[0-9a-f]{64}\n", launch.output)
    with h5py.File(finished.folder / "sweep.h5", "r") as file:
        assert file.attrs["digest"] == launch.output.strip()
    assert launch.output.strip() in finished.launch.output


def test_an_incomplete_file_has_no_digest_yet(
    launcher: Launcher, partial: Path
) -> None:
    launch = launcher.mpiens("show", partial.name, "--digest")
    assert (launch.code, launch.output) == (75, "")
    shown = launcher.mpiens("show", partial.name)
    assert shown.code == 0
    assert "38 of 48 tasks done, 0 failed: incomplete" in shown.output
    document = json.loads(launcher.mpiens("show", partial.name, "--json").output)
    assert (document["complete"], document["digest"]) == (False, None)
    assert document["tasks"] == {"done": 38, "failed": 0, "pending": 10}
    assert document["scenarios"][3]["done"] == 5


def test_an_incomplete_file_is_shown_by_the_rows_that_are_there(
    finished: Finished, launcher: Launcher, partial: Path
) -> None:
    document = json.loads(launcher.mpiens("show", partial.name, "--json").output)
    last = finished.series("infected")[..., -1].astype(float)
    told = document["scenarios"][3]["summaries"]["infected"]["final"]
    assert told["mean"] == pytest.approx(last[3, :5].mean(), rel=1e-12)
    pairs = last[3, :3] - last[1, :3]  # of those that both have
    assert told["difference"]["mean"] == pytest.approx(pairs.mean(), rel=1e-12)
    assert told["difference"]["high"] == pytest.approx(np.quantile(pairs, 0.95))


def test_other_files_are_refused_in_a_sentence(
    finished: Finished, launcher: Launcher, tmp_path: Path
) -> None:
    whole = (finished.folder / "sweep.h5").read_bytes()
    (tmp_path / "short.h5").write_bytes(whole[: len(whole) // 2])
    write(tmp_path, "text.h5", "day,infected\n")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = 1
    damaged = "is no HDF5 file, or a damaged one"
    none = "there is no such file"
    foreign = "is no result file of this version of mpiens"
    told = {
        ("show", "none.h5", "--digest"): none,
        ("show", "short.h5"): damaged,
        ("show", "text.h5", "--json"): damaged,
        ("show", "foreign.h5", "--csv"): foreign,
        ("show", "."): "cannot be opened: Is a directory",
        ("replay", "none.h5", "masks", "1"): none,
    }
    for words, sentence in told.items():
        assert_told(launcher.mpiens(*words), f"{words[1]}: {sentence}")


def test_a_reader_that_has_seen_enough_is_no_fault(finished: Finished) -> None:
    show = f"{sys.executable} -m mpiens show sweep.h5 --json"
    launcher = Launcher(finished.folder)
    launch = launcher.run(["bash", "-c", f"{show} | true; exit ${{PIPESTATUS[0]}}"])
    assert (launch.code, launch.errors) == (0, "")


# designs


def test_a_sobol_design_grows_by_only_its_new_points(
    launcher: Launcher, folder: Path
) -> None:
    model = """
        from pathlib import Path

        def simulate(rng, scenario, replicate, *, beta, size, mask=0.0):
            with Path("ran").open("a") as file:
                file.write(f"{scenario} {replicate}\\n")
            return {"x": beta * size * (1 - mask) * rng.random(4)}
    """
    write(folder, "model.py", model)
    spec = HEAD + (
        "[scenarios.open]\n[scenarios.masks]\nmask = 0.5\n"
        "[design]\nmethod = 'sobol'\nsamples = SAMPLES\n"
        "ranges.beta = { low = 0.1, high = 2.0, scale = 'log' }\n"
        "ranges.size = { low = 1, high = 9, integer = true }\n"
        "[bands]\nbaseline = 'open'\n"
    )

    def run(samples: int, *words: str) -> set[str]:
        """Run with so many samples, and return the tasks that ran."""
        (folder / "ran").write_text("")
        write(folder, "a.toml", spec.replace("SAMPLES", str(samples)))
        launch = launcher.mpiens("a.toml", *words)
        assert launch.code == 0, launch.errors
        ran = (folder / "ran").read_text().splitlines()
        assert len({*ran}) == len(ran)
        return {*ran}

    def tasks(samples: range) -> set[str]:
        return {
            f"{base},sample={sample} {replicate}"
            for base in ("open", "masks")
            for sample in samples
            for replicate in range(3)
        }

    assert run(4) == tasks(range(4))
    assert run(4) == set()
    assert run(8) == tasks(range(4, 8))
    assert run(8, "-o", "fresh.h5") == tasks(range(8))
    assert launcher.digest("a.h5") == launcher.digest("fresh.h5")
    few = launcher.digest("a.h5")
    assert run(5) == set()  # fewer samples are scenarios that are gone
    assert launcher.digest("a.h5") != few
    shown = json.loads(launcher.mpiens("show", "a.h5", "--json").output)
    names = [entry["name"] for entry in shown["scenarios"]]
    assert names[:5] == [f"open,sample={i}" for i in range(5)]
    replayed = launcher.mpiens("replay", "a.h5", "masks,sample=3", "2")
    assert "bit-identical" in replayed.output


def test_an_lhs_design_does_not_grow_and_says_why(
    launcher: Launcher, folder: Path
) -> None:
    write(folder, "model.py", "def simulate(beta):\n    return {'x': beta}\n")
    spec = HEAD + "[design]\nmethod = 'lhs'\nsamples = 4\n"
    spec += "ranges.beta = { low = 0, high = 1 }\n"
    write(folder, "a.toml", spec)
    assert launcher.mpiens("a.toml").code == 0
    write(folder, "a.toml", spec.replace("samples = 4", "samples = 5"))
    assert_told(
        launcher.mpiens("a.toml"),
        "a.toml:7: [design] samples: has changed since a.h5 was begun, and every point "
        "of an lhs moves with their number (sobol and halton keep theirs); use --fresh "
        "to start over, or -o to write another file",
    )


def test_ranks_but_the_root_load_no_scipy(launcher: Launcher, folder: Path) -> None:
    model = """
        import sys
        import time

        def simulate(beta):
            time.sleep(0.02)
            return {"loaded": "scipy" in sys.modules}
    """
    write(folder, "model.py", model)
    spec = HEAD + "[design]\nmethod = 'halton'\nsamples = 16\n"
    write(folder, "a.toml", spec + "ranges.beta = { low = 0, high = 1 }\n")
    launch = launcher.mpiens("-n", "2", "a.toml")
    assert launch.code == 0, launch.errors
    with h5py.File(folder / "a.h5", "r") as file:
        loaded, rank = file["/series/loaded"][:], file["/tasks/rank"][:]
    assert {*rank.flat} == {0, 1}
    assert not loaded[rank == 1].any()
