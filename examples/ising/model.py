"""The density of states of the Ising model, by Wang-Landau sampling in a window.

Spins of +1 and -1 on a square lattice with periodic boundaries have the energy -(sum of
products of neighbours), from -2 N to 2 N in steps of 4.  A random walk that accepts a
flip from E to E' with probability min(1, g(E) / g(E')) visits all energies alike if g
is the number of states of each, so that g is learnt: wherever the walk is, log g is
raised a little (F. Wang and D. P. Landau, Phys. Rev. Lett. 86, 2050, 2001).

How little is first halved, whenever all energies have been seen, and is 1/t later on, t
being steps per energy; so the error goes on falling (R. E. Belardinelli and V. D.
Pereyra, Phys. Rev. E 75, 046701, 2007).  A flip that would leave the window is
rejected, and the energy that the walk stays at is counted again (B. J. Schulz, K.
Binder, M. Mueller and D. P. Landau, Phys. Rev. E 67, 067102, 2003).

A log g that changes under the walk is a little too high at one end of the window.  That
is hidden in the scatter of one walk, but not in that of the mean of many.  So a third
of the steps is for learning; then log g stays, and the logarithm of how often the walk
comes to each energy is added to it.
"""

import numpy as np
from numba import njit

PATIENCE = 100  # times as many steps as energies, between two looks at what was seen


def prepare(rng, *, low, high, size):
    """Return spins (size, size) whose energy is in the window.

    From the order that is nearest, ferromagnetic or that of a chessboard, random flips
    lead towards disorder, where most states are; and no further than the window.
    """
    spins = np.ones((size, size), dtype=np.int8)
    if low + high > 0:
        spins[np.indices(spins.shape).sum(axis=0) % 2 == 1] = -1
    if not melt(rng, spins, low, high):
        raise ValueError(f"no state of {size} x {size} spins was found in the window")
    return spins


def simulate(rng, prepared, *, low, high, size, steps):
    """Return the energies in the window, and log g of each but for a constant."""
    energies = levels(size, low, high)
    first, last = int(energies[0]), int(energies[-1])
    log_g = np.zeros((last - first) // 4 + 1)
    seen = np.zeros(len(log_g), dtype=np.int64)
    at = (energies - first) // 4
    spins = prepared.copy()
    learnt = learn(rng, spins, first, log_g, seen, at, steps // 3)
    seen[:] = 0
    visit(rng, spins, first, log_g, seen, steps - steps // 3)
    if not learnt or not seen[at].all():
        raise ValueError(f"{steps} steps are too few: some energies are rarely seen")
    log_g = log_g[at] + np.log(seen[at])
    return {"energies": energies, "log_g": log_g - log_g.mean()}


def levels(size, low, high):
    """Return the energies from ``low`` to ``high`` that exist: all but two."""
    most = 2 * size**2
    found = np.arange(-most, most + 1, 4)
    found = np.delete(found, [1, -2])
    return found[(found >= low) & (found <= high)]


@njit(cache=True)
def measure(spins):
    """Return the energy."""
    size = len(spins)
    energy = 0
    for i in range(size):
        for j in range(size):
            energy -= spins[i, j] * (spins[i - 1, j] + spins[i, j - 1])
    return energy


@njit(cache=True, inline="always")
def propose(rng, spins):
    """Return a random spin's row, column, and how a flip of it changes the energy."""
    size = len(spins)
    place = rng.random() * size
    i = int(place)
    j = int((place - i) * size)
    down = i + 1 if i + 1 < size else 0
    right = j + 1 if j + 1 < size else 0
    around = spins[i - 1, j] + spins[down, j] + spins[i, j - 1] + spins[i, right]
    return i, j, 2 * spins[i, j] * around


@njit(cache=True)
def melt(rng, spins, low, high):
    """Flip spins until the energy is in the window; return whether it came there."""
    energy = measure(spins)
    rising = energy < low
    for _ in range(10_000 * spins.size):
        if low <= energy <= high:
            return True
        i, j, change = propose(rng, spins)
        if (energy + change <= high) if rising else (energy + change >= low):
            spins[i, j] = -spins[i, j]
            energy += change
    return False


@njit(cache=True, inline="always")
def move(rng, spins, here, log_g):
    """Flip a spin, or none; return where in log_g the walk is then."""
    i, j, change = propose(rng, spins)
    there = here + change // 4
    if 0 <= there < len(log_g):
        rise = log_g[here] - log_g[there]
        if rise >= 0 or rng.random() < np.exp(rise):
            spins[i, j] = -spins[i, j]
            return there
    return here


@njit(cache=True)
def learn(rng, spins, first, log_g, seen, at, steps):
    """Learn log_g, of energies from ``first`` in steps of 4; return if 1/t was reached.

    ``at`` tells where in log_g the energies are that exist.
    """
    here = (measure(spins) - first) // 4
    count = len(at)
    gain = 1.0
    late = False
    for step in range(1, steps + 1):
        here = move(rng, spins, here, log_g)
        log_g[here] += gain
        if late:
            gain = count / step
        else:
            seen[here] += 1
            if step % (PATIENCE * count) == 0 and np.all(seen[at] > 0):
                seen[:] = 0
                gain /= 2
                late = gain <= count / step
    return late


@njit(cache=True)
def visit(rng, spins, first, log_g, seen, steps):
    """Count how often the walk comes to each energy, under a log_g that stays."""
    here = (measure(spins) - first) // 4
    for _ in range(steps):
        here = move(rng, spins, here, log_g)
        seen[here] += 1
