"""Calibration: trials asked for, simulated once, scored against every target, told."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import h5py
import numpy as np
import optuna
import pytest
from conftest import Launch, Launcher, wait_until, write
from test_survive import supervisors

from mpiens.deadline import MARGIN
from mpiens.layout import COMPLETE, FAILED_TRIAL, TRIAL_STATE

pytest.importorskip("optuna")

MODEL = """
import os, time
import numpy as np


def simulate(rng, replicate, *, a, b, days=6, pause=0.0, log="", wave="sine"):
    if log:
        line = f"{os.getpid()} {a!r} {b!r} {replicate}\\n".encode()
        with open(log, "ab", buffering=0) as file:
            file.write(line)
    time.sleep(pause)
    t = np.arange(days)
    shape = np.sin(t) if wave == "sine" else np.cos(t)
    noise = 1e-3 * rng.normal(size=days)
    return {"line": a + b * t + noise, "curve": a * shape + b + noise}


def skewed(simulated, observed, power=2.0):
    return float(np.mean(np.abs(simulated.mean(axis=0) - observed) ** power))
"""
DAYS = range(6)
A, B = 2.0, 0.5
DATA = "day,line,curve\n" + "".join(
    f"{t},{A + B * t},{A * np.sin(t) + B}\n" for t in DAYS
)
SPEC = """
[ensemble]
model = "model.py:simulate"
replicates = 3
seed = 11
[outputs.line]
dims = ["day"]
[outputs.curve]
dims = ["day"]
[calibrate]
trials = {trials}
{more}
[calibrate.parameters.a]
low = 0.0
high = 5.0
[calibrate.parameters.b]
low = 0.01
high = 4.0
scale = "log"
[calibrate.targets.line]
output = "line"
data = "data.csv"
column = "line"
{rest}
"""
CURVE = """
[calibrate.targets.curve]
output = "curve"
data = "data.csv"
column = "curve"
weight = 2.0
"""
ORDERED = "ordered = true\nin_flight = 4"


def spec(
    folder: Path, trials: int = 12, more: str = "", rest: str = "", name: str = "fit"
) -> None:
    write(folder, f"{name}.toml", SPEC.format(trials=trials, more=more, rest=rest))


@pytest.fixture
def fit(tmp_path: Path) -> Path:
    write(tmp_path, "model.py", MODEL)
    write(tmp_path, "data.csv", DATA)
    return tmp_path


def good(launch: Launch, code: int = 0) -> Launch:
    assert launch.code == code, launch.errors
    assert "Traceback" not in launch.errors
    return launch


def states(file: Path) -> list[str]:
    with h5py.File(file, locking=False) as opened:
        return [TRIAL_STATE[state] for state in opened["trials/state"][:]]


def read(file: Path, path: str) -> np.ndarray:
    with h5py.File(file, locking=False) as opened:
        return np.asarray(opened[path][:])


def load(folder: Path, name: str = "fit") -> optuna.Study:
    backend = optuna.storages.journal.JournalFileBackend(
        str(folder / f"{name}.h5.study")
    )
    storage = optuna.storages.JournalStorage(backend)
    return optuna.load_study(study_name=name, storage=storage)


@pytest.mark.parametrize("ranks", [1, 4])
def test_the_optimum_of_a_known_function_is_found(
    fit: Path, launcher: Launcher, ranks: int
) -> None:
    spec(fit, trials=60)
    good(launcher.ranks("mpich", ranks, "fit.toml"))
    losses = read(fit / "fit.h5", "trials/loss")
    best = int(np.argmin(losses))
    found = [read(fit / "fit.h5", f"trials/parameter/{n}")[best] for n in "ab"]
    assert losses[best] < 0.1
    assert np.allclose(found, [A, B], atol=0.5)
    # each replicate is in the file, and its parameters lie beside it
    rows = read(fit / "fit.h5", "series/line")
    assert np.allclose(rows[best, :, 0], found[0], atol=0.01)
    assert read(fit / "fit.h5", "parameters/a")[best] == found[0]


def test_what_is_in_the_file_is_what_optuna_was_told(
    fit: Path, launcher: Launcher
) -> None:
    spec(fit, rest=CURVE)
    good(launcher.ranks("mpich", 3, "fit.toml"))
    file = fit / "fit.h5"
    losses = {n: read(file, f"trials/target/{n}") for n in ("line", "curve")}
    assert np.allclose(losses["line"] + 2 * losses["curve"], read(file, "trials/loss"))
    numbers = read(file, "trials/number").tolist()
    trials = load(fit).trials
    assert len(trials) == len(numbers)
    told = [trials[number].value for number in numbers]
    assert np.array_equal(told, read(file, "trials/loss"))
    for name in "ab":
        known = [trials[number].params[name] for number in numbers]
        assert np.array_equal(known, read(file, f"trials/parameter/{name}"))
    assert sorted(read(file, "trials/told_order")) == list(range(12))


def test_two_targets_cost_no_more_simulations_than_one(
    fit: Path, launcher: Launcher
) -> None:
    counts = []
    for name, rest in {"one": "", "two": CURVE}.items():
        log = f'[parameters]\nlog = "{fit}/{name}.log"'
        spec(fit, rest=f"{rest}\n{log}", name=name)
        good(launcher.ranks("mpich", 3, f"{name}.toml"))
        counts.append(len((fit / f"{name}.log").read_text().splitlines()))
    assert counts == [12 * 3, 12 * 3]


def test_replicates_of_one_trial_spread_over_idle_ranks(
    fit: Path, launcher: Launcher
) -> None:
    rest = f'[parameters]\npause = 0.2\nlog = "{fit}/log"'
    spec(fit, trials=2, more="in_flight = 1", rest=rest)
    good(launcher.ranks("mpich", 3, "fit.toml"))
    lines = [line.split() for line in (fit / "log").read_text().splitlines()]
    by_trial = {a: {pid for pid, own, *_ in lines if own == a} for _, a, *_ in lines}
    assert [len(pids) for pids in by_trial.values()] == [3, 3]


@pytest.mark.parametrize(
    "more",
    [
        f'{ORDERED}\nsampler = {{ name = "TPE", n_startup_trials = 3 }}',
        f'{ORDERED}\nsampler = "QMC"',
        f'{ORDERED}\nmode = "batched"',
    ],
    ids=["TPE", "QMC", "batched"],
)
def test_a_study_in_order_is_the_same_at_any_number_of_ranks(
    fit: Path, launcher: Launcher, more: str
) -> None:
    spec(fit, trials=12, more=more, rest=CURVE)
    digests = set()
    for environment, ranks in (("mpich", 1), ("mpich", 3), ("openmpi", 4)):
        file = f"{environment}{ranks}.h5"
        good(launcher.ranks(environment, ranks, "fit.toml", "-o", file))
        digests.add(launcher.digest(file))
    assert len(digests) == 1


@pytest.mark.parametrize("sampler", ["TPE", "QMC"])
def test_a_study_that_was_killed_again_and_again_is_the_same(
    fit: Path, launcher: Launcher, sampler: str
) -> None:
    more = f'{ORDERED}\nsampler = "{sampler}"'
    rest = "[parameters]\npause = 0.02"
    spec(fit, trials=16, more=more, rest=rest)
    good(launcher.ranks("mpich", 1, "fit.toml", "-o", "whole.h5"))
    partial, kills = fit / "fit.h5.partial", 0

    def trials_told() -> int:
        return states(partial).count("complete") if partial.exists() else 0

    for wanted in (1, 5, 9, 13):
        launch = launcher.start_ranks("mpich", 3, "fit.toml")
        wait_until(
            lambda wanted=wanted, launch=launch: (
                trials_told() >= wanted or launch.process.poll() is not None
            )
        )
        launch.kill()
        launch.wait(20)
        kills += partial.exists()
    assert kills >= 3
    good(launcher.ranks("mpich", 2, "fit.toml"))
    assert launcher.digest("fit.h5") == launcher.digest("whole.h5")
    names = [trial.state.name for trial in load(fit).trials]
    assert names == ["COMPLETE"] * 16


def test_a_killed_study_keeps_its_trials_and_goes_on_with_those_that_ran(
    fit: Path, launcher: Launcher
) -> None:
    rest = f'[parameters]\npause = 0.1\nlog = "{fit}/log"'
    spec(fit, trials=10, rest=rest)
    launch = launcher.start_ranks("mpich", 4, "fit.toml")
    partial = fit / "fit.h5.partial"
    wait_until(lambda: partial.exists() and states(partial).count("complete") >= 3)
    launch.kill()
    launch.wait(20)
    before = {n: read(partial, f"trials/{n}") for n in ("state", "loss", "stream")}
    kept = before["state"] == COMPLETE
    began = before["stream"] >= 0
    good(launcher.ranks("mpich", 2, "fit.toml"))
    after = {n: read(fit / "fit.h5", f"trials/{n}") for n in ("loss", "stream")}
    assert np.array_equal(before["loss"][kept], after["loss"][kept])
    assert np.array_equal(before["stream"][began], after["stream"][began])
    assert states(fit / "fit.h5") == ["complete"] * 10
    assert {t.state.name for t in load(fit).trials} == {"COMPLETE"}
    runs = len((fit / "log").read_text().splitlines())
    assert runs <= 10 * 3 + 4 + 2  # those that were running, on 4 ranks, and at most
    assert len(load(fit).trials) == 10


def test_survivors_of_a_lost_rank_go_on_with_the_study(
    fit: Path, launcher: Launcher
) -> None:
    rest = "[parameters]\npause = 0.05"
    spec(fit, trials=16, more=ORDERED, rest=rest)
    good(launcher.ranks("mpich", 1, "fit.toml", "-o", "whole.h5"))
    launch = launcher.start_ranks("openmpi", 4, "fit.toml", tolerant=True)
    partial = fit / "fit.h5.partial"
    wait_until(lambda: partial.exists() and states(partial).count("complete") >= 4)
    os.kill(supervisors(launch)[0], signal.SIGKILL)  # the root
    launch.wait(60)
    assert launch.code == 0, launch.errors
    assert "1 of 4 ranks lost" in launch.errors
    assert launcher.digest("fit.h5") == launcher.digest("whole.h5")


def test_failed_and_nan_replicates_fail_their_trial_and_not_the_study(
    fit: Path, launcher: Launcher
) -> None:
    write(
        fit,
        "bad.py",
        """
        import numpy as np
        from model import simulate as sound

        def simulate(rng, replicate, *, a, b):
            made = sound(rng, replicate, a=a, b=b)
            if a > 4 and replicate == 1:
                raise ValueError("too large")
            if a < 1 and replicate == 2:
                made["line"][3] = np.nan
            return made
        """,
    )
    spec(fit, trials=14, more='sampler = "QMC"')
    text = (fit / "fit.toml").read_text().replace("model.py:", "bad.py:")
    (fit / "fit.toml").write_text(text)
    (fit / "drop.toml").write_text(
        text.replace("trials =", 'failed = "drop"\ntrials =')
    )
    good(launcher.ranks("mpich", 2, "fit.toml"), code=3)
    good(launcher.ranks("mpich", 2, "drop.toml"), code=3)
    a = read(fit / "fit.h5", "trials/parameter/a")
    bad = (a > 4) | (a < 1)
    assert bad.any() and not bad.all()
    state = read(fit / "fit.h5", "trials/state")
    assert np.array_equal(state == FAILED_TRIAL, bad)
    assert np.isnan(read(fit / "fit.h5", "trials/loss")[bad]).all()
    names = [trial.state.name for trial in load(fit).trials]
    assert names == ["FAIL" if own else "COMPLETE" for own in bad]
    assert states(fit / "drop.h5") == ["complete"] * 14
    with h5py.File(fit / "fit.h5") as file:
        texts = [t.decode() for t in file["failures/text"][:] if t]
    assert any("too large" in text for text in texts)
    assert any("have no finite number" in text for text in texts)


def test_a_study_of_which_nothing_succeeds_ends(fit: Path, launcher: Launcher) -> None:
    write(fit, "bad.py", "def simulate(*, a, b):\n    raise ValueError('never')\n")
    spec(fit, trials=3)
    text = (fit / "fit.toml").read_text().replace("model.py:", "bad.py:")
    (fit / "fit.toml").write_text(text)
    good(launcher.ranks("mpich", 2, "fit.toml"), code=3)
    assert states(fit / "fit.h5") == ["failed"] * 3


@pytest.mark.parametrize(
    ("stop", "most"),
    [("patience = 4", 39), ("loss_below = 2.0", 39), ("seconds = 1.5", 390)],
    ids=lambda value: value.split()[0] if isinstance(value, str) else None,
)
def test_a_study_stops_when_it_is_enough(
    fit: Path, launcher: Launcher, stop: str, most: int
) -> None:
    rest = "[parameters]\npause = 0.01"
    more = f"in_flight = 2\nstop = {{ {stop} }}"
    spec(fit, trials=most + 1, more=more, rest=rest)
    good(launcher.ranks("mpich", 2, "fit.toml"))
    state = states(fit / "fit.h5")
    done = state.count("complete")
    assert 0 < done <= most
    assert set(state[done:]) == {"pending"}
    losses = read(fit / "fit.h5", "trials/loss")
    order = np.argsort(read(fit / "fit.h5", "trials/told_order")[:done])
    told = losses[:done][order]
    if "patience" in stop:  # the last gain, four without, and what was in flight
        assert np.argmin(told) < done - 4
        assert done <= np.argmin(told) + 1 + 4 + 2
    elif "below" in stop:
        assert told.min() < 2.0
        assert (told[: done - 2] >= 2.0).all()
    with h5py.File(fit / "fit.h5") as file:  # a file that says what it lacks
        assert (file["tasks/status"][done:] == 3).all()
    again = good(launcher.mpiens("fit.toml"))
    assert "nothing to do" in again.errors


def test_points_that_are_enqueued_come_first(fit: Path, launcher: Launcher) -> None:
    points = "enqueue = [{ a = 2.0, b = 0.5 }, { a = 4.5 }]"
    spec(fit, trials=5, more=f"{points}\n{ORDERED}")
    good(launcher.ranks("mpich", 2, "fit.toml"))
    assert read(fit / "fit.h5", "trials/parameter/a")[:2].tolist() == [2.0, 4.5]
    assert read(fit / "fit.h5", "trials/parameter/b")[0] == 0.5
    assert read(fit / "fit.h5", "trials/loss")[0] < 1e-5


def test_more_trials_are_growth(fit: Path, launcher: Launcher) -> None:
    spec(fit, trials=6, more=ORDERED)
    good(launcher.ranks("mpich", 2, "fit.toml"))
    losses = read(fit / "fit.h5", "trials/loss")
    spec(fit, trials=10, more=ORDERED)
    good(launcher.ranks("mpich", 2, "fit.toml"))
    assert np.array_equal(read(fit / "fit.h5", "trials/loss")[:6], losses)
    assert states(fit / "fit.h5") == ["complete"] * 10
    spec(fit, trials=10, more=ORDERED, name="whole")
    good(launcher.mpiens("whole.toml"))
    # one loss after another is the same, though the study was at its end in between
    assert np.array_equal(read(fit / "whole.h5", "trials/loss")[:6], losses)


@pytest.mark.parametrize("left", [0, 0.5])
def test_a_study_that_was_lost_is_made_of_the_file(
    fit: Path, launcher: Launcher, left: float
) -> None:
    spec(fit, trials=6)
    good(launcher.ranks("mpich", 2, "fit.toml"))
    journal = fit / "fit.h5.study"
    whole = journal.read_bytes()
    journal.unlink()
    if left:  # after a power cut, what was not on the disk reads as zeros
        kept = int(left * len(whole))
        journal.write_bytes(whole[:kept] + bytes(len(whole) - kept))
    spec(fit, trials=9)
    good(launcher.ranks("mpich", 2, "fit.toml"))
    numbers = read(fit / "fit.h5", "trials/number").tolist()
    told = [load(fit).trials[number].value for number in numbers]
    assert np.array_equal(told, read(fit / "fit.h5", "trials/loss"))


def test_scenarios_of_a_trial_are_all_scored(fit: Path, launcher: Launcher) -> None:
    rest = """
    [scenarios.sine]
    [scenarios.cosine]
    wave = "cosine"
    [calibrate.targets.curve]
    output = "curve"
    data = "data.csv"
    column = "curve"
    scenario = "sine"
    """
    spec(fit, trials=5, rest=rest, more="enqueue = [{ a = 2.0, b = 0.5 }]")
    good(launcher.ranks("mpich", 3, "fit.toml"))
    with h5py.File(fit / "fit.h5") as file:
        names = [name.decode() for name in file["scenario"][:]]
        assert names[:3] == ["trial=0,sine", "trial=0,cosine", "trial=1,sine"]
        assert file["series/line"].shape == (10, 3, 6)
        assert file["trials/target/curve"][0] < 1e-5
        # with common pairing both scenarios of a trial meet the same noise
        series = file["series/line"]
        assert np.array_equal(series[0], series[1])
        assert not np.array_equal(series[0], series[2])


def test_integers_and_choices_arrive_as_they_were_written(
    fit: Path, launcher: Launcher
) -> None:
    write(
        fit,
        "kinds.py",
        """
        import numpy as np

        def simulate(*, n, share, mode, level, days=6):
            assert type(n) is int and 0.1 <= share <= 0.9
            assert mode in ("open", "closed", True) and type(level) is int
            return {"line": np.full(days, n + share + level)}
        """,
    )
    text = """
    [ensemble]
    model = "kinds.py:simulate"
    replicates = 2
    seed = 1
    [outputs.line]
    dims = ["day"]
    [calibrate]
    trials = 8
    sampler = "Random"
    enqueue = [{ share = 0.25, mode = true, n = 3 }]
    [calibrate.parameters]
    n = { low = 1, high = 9, scale = "integer", step = 2 }
    share = { low = 0.1, high = 0.9, scale = "logit" }
    mode = { choices = ["open", "closed", true] }
    level = { choices = [0, 10] }
    [calibrate.targets.line]
    output = "line"
    data = "data.csv"
    column = "line"
    loss = "model.py:skewed"
    power = 4.0
    """
    write(fit, "fit.toml", text)
    good(launcher.ranks("mpich", 2, "fit.toml"))
    file = fit / "fit.h5"
    assert states(file) == ["complete"] * 8
    assert read(file, "parameters/n")[0] == 3
    assert read(file, "parameters/mode")[0] == b"true"
    assert np.isclose(read(file, "parameters/share")[0], 0.25)
    assert set(read(file, "trials/parameter/n") % 2) == {1}


def test_every_target_is_an_objective_if_asked(fit: Path, launcher: Launcher) -> None:
    more = 'objectives = "targets"\nsampler = { name = "NSGA-II", population_size = 4 }'
    spec(fit, trials=12, more=more, rest=CURVE)
    good(launcher.ranks("mpich", 2, "fit.toml"))
    study = load(fit)
    assert len(study.directions) == 2
    assert study.best_trials
    line = read(fit / "fit.h5", "trials/target/line")
    assert sorted(t.values[0] for t in study.trials) == sorted(line.tolist())


def test_a_changed_study_is_refused_by_all_its_keys(
    fit: Path, launcher: Launcher
) -> None:
    spec(fit, trials=5)
    good(launcher.mpiens("fit.toml"))
    text = (fit / "fit.toml").read_text()
    changed = text.replace("high = 5.0", "high = 6.0").replace(
        "trials = 5", "trials = 4"
    )
    (fit / "fit.toml").write_text(
        changed.replace('column = "line"', 'column = "curve"')
    )
    refused = launcher.mpiens("fit.toml")
    assert refused.code == 2
    for key in ("parameters", "targets", "trials"):
        assert f"[calibrate] {key}" in refused.errors
    (fit / "fit.toml").write_text(text)
    (fit / "data.csv").write_text(DATA.replace("2.0,", "2.5,"))
    refused = launcher.mpiens("fit.toml")
    assert refused.code == 2
    assert "data" in refused.errors


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ('sampler = "TPF"', "did you mean TPE?"),
        ('sampler = { name = "TPE", startup = 3 }', "startup"),
        ('sampler = { name = "TPE", seed = 3 }', "seeded by [ensemble] seed"),
        ("ordered = true", "in_flight: is missing"),
        ("enqueue = [{ a = 9.0, c = 1 }]", "not within"),
        ("trails = 3", "did you mean trials?"),
        ("stop = { patiense = 3 }", "did you mean patience?"),
        ('sampler = { name = "CMA-ES", sigma = 1 }', "sigma"),
    ],
    ids=range(8),
)
def test_faults_of_a_calibration_are_told_before_it_begins(
    fit: Path, launcher: Launcher, more: str, told: str
) -> None:
    spec(fit, more=more)
    for words in (["check", "fit.toml"], ["fit.toml"]):
        refused = launcher.mpiens(*words)
        assert refused.code == 2
        assert told in refused.errors
        assert "Traceback" not in refused.errors


def test_no_trial_is_begun_that_the_jobs_time_will_not_hold(
    fit: Path, launcher: Launcher
) -> None:
    spec(fit, trials=40, more=ORDERED, rest="[parameters]\npause = 0.5")
    end = str(int(time.time() + MARGIN + 12))
    launch = launcher.start_ranks("mpich", 2, "fit.toml", SLURM_JOB_END_TIME=end)
    good(launch.wait(60), code=75)
    state = states(fit / "fit.h5.partial")
    begun = len(state) - state.count("pending")
    assert 4 <= begun < 40  # those that had room, and not all in vain
    assert begun - state.count("complete") <= 4
