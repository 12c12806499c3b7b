"""How long tasks take: by what they have taken, by a hint, or by an earlier run."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpiens.outcome import Tasks
from mpiens.spec import Spec, Step

RECENT = 20  # tasks, at least, of which the mean tells what the next ones take

Seconds = NDArray[np.float64]


class Durations:
    """What the tasks of each scenario take, and the steps of each kind.

    ``costs`` are hints of what a task costs, by scenario and in any unit.
    """

    def __init__(self, spec: Spec, costs: Seconds | None) -> None:
        self._scenarios = len(spec.scenarios)
        self._replicates = spec.replicates
        self._tasks = spec.tasks
        self._costs = costs
        self._spent = np.zeros((self._scenarios + len(Step), 2))  # seconds, tasks
        self._means: dict[bool, Seconds] = {}  # by wariness, until more is known

    def enter(self, tasks: Tasks, seconds: Seconds) -> None:
        """Enter what tasks have taken; what is older than they are weighs no more."""
        groups, which = np.unique(self._group(tasks), return_inverse=True)
        count = np.bincount(which).astype(float)
        new = np.stack([np.bincount(which, weights=seconds), count], axis=1)
        before = self._spent[groups]
        most = np.maximum(count, RECENT) / np.maximum(before[:, 1], 1)
        self._spent[groups] = before * np.minimum(most, 1.0)[:, None] + new
        self._means.clear()

    def expect(self, tasks: Tasks, *, wary: bool = False) -> Seconds:
        """Return the seconds that tasks take by what their scenarios have taken.

        A scenario of which nothing is known takes what the hint of its cost makes of
        the others, or else as long as they do in the mean; where one is to be ``wary``,
        as the longest of them.  NaN where nothing is known at all.
        """
        if wary not in self._means:
            self._means[wary] = self._find_means(wary)
        return self._means[wary][self._group(tasks)]

    def _find_means(self, wary: bool) -> Seconds:
        with np.errstate(invalid="ignore", divide="ignore"):
            means = np.asarray(self._spent[:, 0] / self._spent[:, 1])
        known = means[: self._scenarios]  # steps are like no task
        if (measured := np.isfinite(known)).any() and not measured.all():
            others = known[measured]
            guess = np.full(len(known), others.max() if wary else others.mean())
            if self._costs is not None and (hinted := self._costs[measured]).all():
                guess = self._costs * np.mean(others / hinted)
            known[~measured] = guess[~measured]
        return means

    def _group(self, numbers: Tasks) -> Tasks:
        """Return what takes a like time: tasks of a scenario, or steps of a kind."""
        groups = numbers // self._replicates
        if (steps := numbers >= self._tasks).any():
            kinds = (numbers - self._tasks) // self._scenarios
            groups = np.where(steps, self._scenarios + kinds, groups)
        return groups
