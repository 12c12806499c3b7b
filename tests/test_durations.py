"""What tasks are expected to take, against means taken by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mpiens.durations import RECENT, Durations
from mpiens.reader import decode
from mpiens.spec import Spec

SPEC = """
[ensemble]
model = "model.py:simulate"
replicates = 100
seed = 1
[sweep]
beta = [0.1, 0.2, 0.4]
"""


@pytest.fixture(scope="module")
def spec() -> Spec:
    return decode(SPEC, "spec.toml").require()


def enter(durations: Durations, tasks: list[int], seconds: list[float]) -> None:
    durations.enter(np.array(tasks, dtype=np.int64), np.array(seconds))


def expect(durations: Durations, *tasks: int, wary: bool = False) -> list[float]:
    found = durations.expect(np.array(tasks, dtype=np.int64), wary=wary)
    return [float(x) for x in found]


def test_before_anything_is_known_nothing_is_expected(spec: Spec) -> None:
    assert np.isnan(expect(Durations(spec, None), 0, 299)).all()


def test_a_scenario_takes_its_mean_and_an_unknown_one_that_of_the_others(
    spec: Spec,
) -> None:
    durations = Durations(spec, None)
    enter(durations, [0, 5, 100], [1.0, 3.0, 8.0])
    assert expect(durations, 99, 199, 299) == [2.0, 8.0, 5.0]
    assert expect(durations, 99, 199, 299, wary=True) == [2.0, 8.0, 8.0]


def test_a_hint_scales_with_what_the_others_have_taken(spec: Spec) -> None:
    durations = Durations(spec, np.array([1.0, 2.0, 10.0]))
    enter(durations, [0, 100], [3.0, 6.0])
    assert expect(durations, 1, 101, 201) == [3.0, 6.0, 30.0]


def test_what_is_learnt_is_asked_for_anew(spec: Spec) -> None:
    durations = Durations(spec, None)
    enter(durations, [0], [1.0])
    assert expect(durations, 0) == [1.0]
    enter(durations, [1], [2.0])
    assert expect(durations, 0) == [1.5]


def test_old_times_weigh_no_more_than_the_last_few(spec: Spec) -> None:
    durations = Durations(spec, None)
    enter(durations, [*range(100)], [1.0] * 100)
    enter(durations, [*range(RECENT)], [5.0] * RECENT)
    assert expect(durations, 0) == [3.0]


def test_steps_are_no_measure_of_tasks(spec: Spec) -> None:
    durations = Durations(spec, None)
    enter(durations, [spec.tasks], [50.0])
    assert np.isnan(expect(durations, 0))
    assert expect(durations, spec.tasks + 2) == [50.0]
    enter(durations, [0], [1.0])
    assert expect(durations, 100, spec.tasks) == [1.0, 50.0]
