"""Invasion percolation on a random grid, and the power law of its density.

A fluid enters a porous medium at the middle of a grid of random resistances and always
invades the weakest cell at its rim, until it reaches the border (D. Wilkinson and
J. F. Willemsen, "Invasion percolation: a new form of percolation theory", J. Phys. A
16, 1983).  Of cells that are equally weak any may be next, so the fewer kinds of
resistance there are (``depth``), the rounder is what is filled.
"""

import numpy as np

NEIGHBOURS = ((-1, 0), (1, 0), (0, -1), (0, 1))


def simulate(rng, *, size, depth):
    filled = invade(rng, size, depth)
    middle = size // 2
    rows, columns = np.nonzero(filled)
    reach = np.maximum(abs(rows - middle), abs(columns - middle))
    within = np.cumsum(np.bincount(reach, minlength=middle + 1))
    radii = np.arange(1, middle + 1)
    # as far as the fluid has come in every direction: further out there are but fingers
    sides = (middle - rows.min(), rows.max() - middle)
    sides += (middle - columns.min(), columns.max() - middle)
    full = min(sides)
    slope, _ = np.polyfit(np.log(2 * radii + 1), np.log(within[1:]), 1)
    return {
        "filled": int(filled.sum()),
        "dimension": slope,
        "densities": within[1 : full + 1] / (2 * radii[:full] + 1) ** 2,
    }


def invade(rng, size, depth):
    """Return which cells are filled when the border is reached."""
    resistance = rng.integers(1, depth + 1, size=(size, size))
    filled = np.zeros((size, size), dtype=bool)
    seen = np.zeros((size, size), dtype=bool)
    rim = {0: [(size // 2, size // 2)]}  # cells by their resistance
    seen[size // 2, size // 2] = True
    while True:
        weakest = min(rim)
        cells = rim[weakest]
        lot = rng.integers(len(cells))
        cells[lot], cells[-1] = cells[-1], cells[lot]
        row, column = cells.pop()
        if not cells:
            del rim[weakest]
        filled[row, column] = True
        if row in (0, size - 1) or column in (0, size - 1):
            return filled
        for down, right in NEIGHBOURS:
            at = row + down, column + right
            if not seen[at]:
                seen[at] = True
                rim.setdefault(int(resistance[at]), []).append(at)


def fit(outputs):
    """Fit density = k * radius ** x to the densities of all replicates, pooled."""
    densities = [row for row in outputs["densities"] if len(row)]
    if not densities:
        return {"density_x": np.nan, "density_k": np.nan}
    radii = np.concatenate([np.arange(1, len(row) + 1) for row in densities])
    if len(np.unique(radii)) < 2:
        return {"density_x": np.nan, "density_k": np.nan}
    x, log_k = np.polyfit(np.log(radii), np.log(np.concatenate(densities)), 1)
    return {"density_x": x, "density_k": np.exp(log_k)}
