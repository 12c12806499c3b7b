"""The Ising model: joined densities of states against exact ones.

The example runs as in its README, with fewer steps.  Its exact method is held against
all states one by one, against a transfer matrix, and against the partition function.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import Launcher
from test_small_examples import EXAMPLES, SEED, import_file

import mpiens

HERE = EXAMPLES / "ising"
T9 = 2.262  # of Student's t with nine degrees of freedom: 95 % are within
STEPS = {"windows": 1_000_000, "windows16": 4_000_000}  # of the 4 and 30 millions


exact = import_file(HERE / "exact.py")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The model, beside a cache of its own: numba cannot use that of another name."""
    pytest.importorskip("numba")
    folder = tmp_path_factory.mktemp("model")
    return import_file(Path(shutil.copy(HERE / "model.py", folder)))


# The exact densities of states


def test_all_states_of_four_by_four() -> None:
    bits = np.arange(2**16)[:, None] >> np.arange(16) & 1
    spins = (2 * bits - 1).reshape(-1, 4, 4)
    bonds = spins * (np.roll(spins, 1, axis=1) + np.roll(spins, 1, axis=2))
    numbers = np.bincount((32 - bonds.sum(axis=(1, 2))) // 4, minlength=17)
    assert exact.count_states(4) == numbers.tolist()


@pytest.mark.parametrize("size", [6, 8, 16])
def test_all_states_are_counted(size: int) -> None:
    numbers, spins = exact.count_states(size), size**2
    assert sum(numbers) == 2**spins
    assert numbers == numbers[::-1]  # of a chessboard's sublattices one is flipped
    # all alike; one other, or one row or two neighbours other, and so on
    assert numbers[:4] == [2, 0, 2 * spins, 4 * spins]
    energies, log_g = exact.log_density(size)
    assert len(energies) == spins - 1
    assert log_g[0] == pytest.approx(np.log(2), abs=1e-12)


def test_a_transfer_matrix_counts_the_same() -> None:
    size = 8
    rows = np.arange(2**size)
    bits = rows[:, None] >> np.arange(size) & 1
    within = (bits != np.roll(bits, 1, axis=1)).sum(axis=1)  # bonds that are broken
    length = 2 * size**2 + size + 1
    total = np.zeros(length, dtype=np.uint64)
    for start in np.unique([min(orbit(row, size)) for row in rows]):
        # numbers of states by row and broken bonds, added row by row and spin by spin
        states = np.zeros((2**size, length), dtype=np.uint64)
        states[start, within[start]] = 1
        for _ in range(size):
            for spin in range(size):
                flipped = states[rows ^ 1 << spin]
                states[:, 1:] += flipped[:, :-1]
            for row in rows:
                states[row] = np.roll(states[row], within[row])
        # the first row has been counted twice: what is within it comes off again
        closed = np.roll(states[start], -within[start])
        total += closed * np.uint64(len(set(orbit(start, size))))
    assert total[: 2 * size**2 + 1 : 2].tolist() == exact.count_states(size)
    assert not total[1::2].any()


def orbit(row: int, size: int) -> list[int]:
    """The rows that are this one shifted, or with all spins flipped."""
    mask = 2**size - 1
    shifts = [(row << k | row >> size - k) & mask for k in range(size)]
    return [int(each ^ flip) for each in shifts for flip in (0, mask)]


def log_partition(size: int, temperature: float) -> float:
    """Kaufman's partition function, evaluated as it stands, with no expansion."""
    coupling = 1 / temperature
    cosines = np.cos(np.pi * np.arange(2 * size) / size)
    gamma = np.arccosh(np.cosh(2 * coupling) / np.tanh(2 * coupling) - cosines)
    gamma[0] = 2 * coupling + np.log(np.tanh(coupling))
    half = size * gamma / 2
    products = [
        f(half[k::2]) for k in (0, 1) for f in (lambda a: 2 * np.cosh(a), two_sinh)
    ]
    total = sum(np.prod(factors) for factors in products)
    prefactor = size**2 / 2 * np.log(2 * np.sinh(2 * coupling))
    return float(prefactor + np.log(total / 2))


def two_sinh(angle: np.ndarray) -> Any:
    return 2 * np.sinh(angle)


@pytest.mark.parametrize("size", [8, 16])
def test_energy_and_heat_are_derivatives_of_the_partition_function(size: int) -> None:
    energies, log_g = exact.log_density(size)
    temperatures = np.array([1.5, 2.0, 2.27, 2.6, 3.5])
    energy, heat = exact.heat(energies, log_g, temperatures)
    step = 1e-3
    for temperature, e, c in zip(temperatures, energy, heat, strict=True):
        below, at, above = (
            log_partition(size, 1 / (1 / temperature + shift))
            for shift in (-step, 0, step)
        )
        assert at == pytest.approx(np.logaddexp.reduce(log_g - energies / temperature))
        assert e == pytest.approx(-(above - below) / (2 * step), rel=1e-4)
        second = (above - 2 * at + below) / step**2
        assert c == pytest.approx(second / temperature**2, rel=1e-3)


# The model


@pytest.mark.parametrize(
    ("low", "high"), [(-128, -128), (-128, -96), (-40, 8), (60, 90), (128, 128)]
)
def test_a_start_is_in_its_window(model: ModuleType, low: int, high: int) -> None:
    spins = model.prepare(np.random.default_rng(1), low=low, high=high, size=8)
    bonds = spins.astype(int) * (np.roll(spins, 1, axis=0) + np.roll(spins, 1, axis=1))
    assert low <= -bonds.sum() <= high
    assert -bonds.sum() == model.measure(spins)


def test_a_window_without_states_is_told(model: ModuleType) -> None:
    with pytest.raises(ValueError, match="no state of 8 x 8 spins"):
        model.prepare(np.random.default_rng(1), low=-127, high=-121, size=8)


def test_too_few_steps_are_told(model: ModuleType) -> None:
    window: dict[str, Any] = {"low": -128, "high": 0, "size": 8}
    rng = np.random.default_rng(1)
    start = model.prepare(rng, **window)
    with pytest.raises(ValueError, match="3000 steps are too few"):
        model.simulate(rng, start, **window, steps=3000)


def test_a_walk_is_its_streams(model: ModuleType) -> None:
    window: dict[str, Any] = {"low": -64, "high": 0, "size": 8}
    start = model.prepare(np.random.default_rng(1), **window)
    before = start.copy()
    one, two, other = (
        model.simulate(np.random.default_rng(s), start, **window, steps=100_000)
        for s in (5, 5, 6)
    )
    assert one["energies"].tolist() == list(range(-64, 1, 4))
    np.testing.assert_array_equal(one["log_g"], two["log_g"])
    assert (one["log_g"] != other["log_g"]).any()
    np.testing.assert_array_equal(start, before)


def test_walks_have_no_error_in_common(model: ModuleType) -> None:
    """What all walks of a window have in common is far less than what each has."""
    window: dict[str, Any] = {"low": -96, "high": 32, "size": 8}
    start = model.prepare(np.random.default_rng(1), **window)
    found = [
        model.simulate(np.random.default_rng([2, r]), start, **window, steps=300_000)
        for r in range(100)
    ]
    away = np.array([one["log_g"] for one in found]) - true_piece(found[0]["energies"])
    away -= away.mean(axis=1, keepdims=True)
    scaled = away.mean(axis=0) / away.std(axis=0, ddof=1)
    assert np.abs(scaled).max() < 0.35  # 0.1 by chance


def true_piece(energies: np.ndarray, size: int = 8) -> Any:
    whole, log_g = exact.log_density(size)
    return log_g[np.searchsorted(whole, energies)]


def test_the_errors_cover(model: ModuleType) -> None:
    """Of 20 ensembles, the share of energies where the exact curve is within t."""
    covered = []
    for ensemble in range(20):
        xs, ys = [], []
        for window, (low, high) in enumerate(
            [(-128, -32), (-96, 32), (-32, 96), (32, 128)]
        ):
            ends: dict[str, Any] = {"low": low, "high": high, "size": 8}
            start = model.prepare(np.random.default_rng([ensemble, window]), **ends)
            found = [
                model.simulate(
                    np.random.default_rng([ensemble, window, replicate]),
                    start,
                    **ends,
                    steps=300_000,
                )
                for replicate in range(10)
            ]
            xs.append(found[0]["energies"])
            ys.append([one["log_g"] for one in found])
        joined = mpiens.join(xs, ys, anchor=(-128, np.log(2)), bootstrap=0)
        away = joined.y - true_piece(joined.x)
        covered.append(np.mean(np.abs(away[1:]) <= T9 * joined.error[1:]))
    assert np.mean(covered) > 0.85


# The specs


@pytest.fixture(scope="module")
def ising(tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    """The README's lines, on four ranks."""
    for name in ("numba", "matplotlib"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("ising")
    clean = shutil.ignore_patterns("*.h5", "*.partial", "__pycache__")
    shutil.copytree(HERE, folder / "examples" / "ising", ignore=clean)
    for name, steps in STEPS.items():
        spec = folder / "examples" / "ising" / f"{name}.toml"
        text = spec.read_text(encoding="utf-8")
        text, count = re.subn(r"(?m)^steps = .*$", f"steps = {steps}", text)
        assert count == 1
        spec.write_text(text, encoding="utf-8")
    launcher = Launcher(folder)
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^(mpiens|python) (.*)$", readme, re.MULTILINE)
    assert [name for name, _ in lines] == ["mpiens", "mpiens", "python"]
    for name, words in lines:
        command = [sys.executable, *(["-m", "mpiens"] if name == "mpiens" else [])]
        launch = launcher.run([*command, *words.split()], 300)
        assert launch.code == 0, launch.errors
    return launcher


@pytest.mark.parametrize("size", [8, 16])
def test_joined_is_exact_within_the_errors(ising: Launcher, size: int) -> None:
    with h5py.File(ising.folder / f"ising{size}.h5") as file:
        group = file["joined/log_g"]
        x, y, error, bootstrap = (
            group[name][:] for name in ("x", "y", "error", "bootstrap_error")
        )
        scaled = group["residuals/scaled"][:]
    energies, log_g = exact.log_density(size)
    np.testing.assert_array_equal(x, energies)
    assert y[0] == pytest.approx(np.log(2), abs=1e-12)
    assert error[0] == pytest.approx(0, abs=1e-9)
    assert 0.005 < error[1:].min() < error.max() < 0.2
    np.testing.assert_allclose(bootstrap[1:], error[1:], rtol=0.25)
    away = (y - log_g)[1:] / error[1:]
    assert np.mean(np.abs(away) <= T9) > 0.85
    assert np.abs(away).max() < 4
    assert np.nanmax(scaled) < 4


@pytest.mark.parametrize("size", [8, 16])
def test_energy_and_heat_are_exact_within_the_errors(
    ising: Launcher, size: int
) -> None:
    energies, log_g = exact.log_density(size)
    temperatures = np.linspace(1, 5, 21)
    with h5py.File(ising.folder / f"ising{size}.h5") as file:
        curve = file["joined/log_g/y"][:]
        lengths = file["series/log_g.length"][:, 0]
        rows = file["series/energies"][:], file["series/log_g"][:]
    xs = [row[0, :n] for row, n in zip(rows[0], lengths, strict=True)]
    ys = [row[:, :n] for row, n in zip(rows[1], lengths, strict=True)]
    joined = mpiens.join(xs, ys, anchor=(energies[0], np.log(2)))
    np.testing.assert_allclose(joined.y, curve, rtol=1e-12)
    true = exact.heat(energies, log_g, temperatures)
    values = exact.heat(energies, curve, temperatures)
    draws = exact.heat(energies, joined.draws, temperatures)
    for value, resampled, right in zip(values, draws, true, strict=True):
        away = (value - right) / resampled.std(axis=0)
        assert np.mean(np.abs(away) <= T9) > 0.7
        assert np.abs(away).max() < 4
    assert np.abs(values[1] - true[1]).max() < 0.04 * true[1].max()


def test_the_plot_is_drawn_and_tells_the_errors(ising: Launcher) -> None:
    picture = (ising.folder / "ising.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000
    output = ising.started[2].output
    shares = re.findall(r"within 95 % +(\d+)% of energies", output)
    assert len(shares) == 2
    assert output.index("8 x 8") < output.index("16 x 16")
    for size in (8, 16):
        assert f"all states      2^{size**2} times " in output


def test_tasks_are_what_a_plain_loop_gives(ising: Launcher, model: ModuleType) -> None:
    with h5py.File(ising.folder / "ising8.h5") as file:
        names = file["scenario"].asstr()[:].tolist()
        ends = file["windows/low"][:], file["windows/high"][:]
        rows = file["series/energies"][:], file["series/log_g"][:]
    assert names == [f"window={k}" for k in range(4)]
    assert ends[0].tolist() == [-128, -96, -32, 32]
    assert ends[1].tolist() == [-32, 32, 96, 128]
    for window, name in enumerate(names):
        own = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
        given = {"low": ends[0][window], "high": ends[1][window], "size": 8}
        start = model.prepare(stream(own, 0, 1), **given)
        for replicate in (0, 9):
            rng = stream(own, replicate)
            found = model.simulate(rng, start, **given, steps=STEPS["windows"])
            for row, output in zip(rows, ("energies", "log_g"), strict=True):
                values = row[window, replicate]
                assert np.isnan(values[len(found[output]) :]).all()
                np.testing.assert_array_equal(
                    values[: len(found[output])], found[output]
                )


def stream(*key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(SEED, spawn_key=key))


def test_the_digest_is_the_same_on_one_rank(ising: Launcher) -> None:
    spec = "examples/ising/windows.toml"
    alone = ising.mpiens(spec, "-o", "alone.h5", limit=120)
    assert alone.code == 0, alone.errors
    assert ising.digest("alone.h5") == ising.digest("ising8.h5")
