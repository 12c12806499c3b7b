"""The generators that belong to nobody: Python's own and numpy's old one.

A model may draw from them, knowingly or by a library, so that they are seeded before
every task.  That takes as long as some tasks do; whether one was drawn from can be told
by comparing what two looks have seen.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np


def seed(number: int) -> None:
    """Let both begin anew, as a task's seed says."""
    random.seed(number)
    np.random.seed(number)


def look() -> Any:
    """Return the state of both, to be compared with that of another look."""
    return random.getstate(), _freeze(np.random.get_state(legacy=False))


def _freeze(state: Any) -> Any:
    """Return what can be compared: numpy's arrays cannot."""
    if isinstance(state, dict):
        return [(key, _freeze(value)) for key, value in state.items()]
    return state.tobytes() if isinstance(state, np.ndarray) else state
