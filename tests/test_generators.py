"""Whether one can tell that the generators of nobody have been drawn from."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from mpiens import generators

DRAWS: dict[str, Callable[[], object]] = {
    "python": random.random,
    "numpy": np.random.random,
    "a pair of which one is kept": np.random.randn,
    "as many words as there are": lambda: np.random.bytes(4 * 624),
    "a seed of its own": lambda: np.random.seed(2),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=[*DRAWS])
@pytest.mark.parametrize("kind", [np.random.MT19937, np.random.PCG64])
def test_two_looks_tell_whether_anything_was_drawn(
    draw: Callable[[], object], kind: type
) -> None:
    before = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(kind(1))
        random.seed(1)
        first = generators.look()
        assert generators.look() == first
        if kind is np.random.PCG64 and draw is DRAWS["a seed of its own"]:
            return  # numpy seeds no other kind
        draw()
        assert generators.look() != first
    finally:
        np.random.set_bit_generator(before)


def test_what_was_seeded_looks_alike() -> None:
    generators.seed(7)
    first = generators.look()
    np.random.random(), random.random()
    generators.seed(7)
    assert generators.look() == first
