"""The generators that belong to nobody: Python's own and numpy's old one.

A model may draw from them, knowingly or by a library, so that they are seeded before
every task.  That takes as long as some tasks do; whether one was drawn from can be told
by comparing what two looks have seen.
"""

from __future__ import annotations

import ctypes
import pickle
import random
from typing import Any

import numpy as np

_STATE = 4 * (624 + 1)  # bytes of the Mersenne Twister's words and its place in them


def seed(number: int) -> None:
    """Let both begin anew, as a task's seed says."""
    random.seed(number)
    np.random.seed(number)


def look() -> Any:
    """Return the state of both, to be compared with that of another look."""
    legacy: Any = np.random  # its stubs do not know all of it
    bits = legacy.get_bit_generator()
    if type(bits) is np.random.MT19937:  # to ask it takes five times as long
        return random.getstate(), ctypes.string_at(bits.ctypes.state_address, _STATE)
    return random.getstate(), pickle.dumps(np.random.get_state(legacy=False))
