"""Draw joined densities of states against the exact ones, with energy and heat."""

import argparse
from pathlib import Path

import h5py
import matplotlib as mpl
import numpy as np
from exact import heat, log_density

import mpiens

mpl.use("agg")
import matplotlib.pyplot as plt

TEMPERATURES = np.linspace(1.0, 5.0, 161)


def read(path):
    """Return the size, the curve as it was joined, and curves of resamples.

    The file has the curve and its errors.  What is made of the curve, such as the
    heat capacity, has its error from the same of every resample of replicates; so
    the pieces are joined again.
    """
    with h5py.File(path) as file:
        size = int(file["parameters/size"][0])
        curve = {name: file[f"joined/log_g/{name}"][:] for name in ("x", "y", "error")}
        lengths = file["series/log_g.length"][:, 0]
        xs, ys = (
            [row[:, :n] for row, n in zip(file[name][:], lengths, strict=True)]
            for name in ("series/energies", "series/log_g")
        )
    xs = [replicates[0] for replicates in xs]  # alike in all of them
    anchor = (curve["x"][0], np.log(2))
    return size, curve, mpiens.join(xs, ys, anchor=anchor).draws


def compare(size, curve, draws):
    """Return what is drawn of one lattice, and tell in a few lines how good it is."""
    energies, exact = log_density(size)
    np.testing.assert_array_equal(curve["x"], energies)
    away, error = curve["y"] - exact, curve["error"]
    print(f"{size} x {size}")
    print(f"  energies        {len(energies)}, log g from {exact.min():.3f}", end=" ")
    print(f"to {exact.max():.3f}")
    print(f"  largest error   {abs(away).max():.4f}")
    print(f"  standard error  {error[1]:.4f} to {error.max():.4f}")
    print(f"  within 95 %     {np.mean(abs(away) <= 1.96 * error):.0%} of energies")
    level = np.logaddexp.reduce(curve["y"]) - size**2 * np.log(2)
    scatter = np.logaddexp.reduce(draws, axis=1).std()
    print(f"  all states      2^{size**2} times {np.exp(level):.4f} ± {scatter:.4f}")
    found = {}
    curves = [heat(energies, c, TEMPERATURES) for c in (curve["y"], draws, exact)]
    for name, *parts in zip(("energy", "heat capacity"), *curves, strict=True):
        value, resampled, true = (part / size**2 for part in parts)
        scatter = resampled.std(axis=0)
        found[name] = value, scatter, true
        within = np.mean(abs(value - true) <= 1.96 * scatter)
        text = f"{abs(value - true).max():.1e}, within 95 % {within:.0%}"
        print(f"  {name:15s} largest error {text} of temperatures")
    return energies, exact, found


def draw(columns, lattices):
    for axes, (size, curve, (energies, exact, found)) in zip(
        columns, lattices, strict=True
    ):
        top, residual, *rest = axes
        site = energies / size**2
        top.set_title(f"{size} x {size}")
        top.plot(site, exact, color="black", linewidth=1, label="exact")
        top.plot(site, curve["y"], ".", markersize=4, label="joined")
        top.set_ylabel("log g")
        top.legend()
        residual.axhline(0, color="black", linewidth=1)
        band = 1.96 * curve["error"]
        residual.fill_between(site, -band, band, alpha=0.25, label="1.96 errors")
        residual.plot(site, curve["y"] - exact, ".", markersize=4)
        residual.set_ylabel("joined - exact")
        residual.set_xlabel("energy per spin")
        residual.legend()
        for (name, (value, scatter, true)), axis in zip(
            found.items(), rest, strict=True
        ):
            axis.plot(TEMPERATURES, true, color="black", linewidth=1, label="exact")
            some = slice(None, None, 5)
            axis.errorbar(
                TEMPERATURES[some],
                value[some],
                1.96 * scatter[some],
                fmt=".",
                markersize=4,
                label="joined, 1.96 errors",
            )
            axis.set_ylabel(f"{name} per spin")
            axis.legend()
        rest[-1].set_xlabel("temperature")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="results of the specs")
    parser.add_argument("-o", "--output", type=Path, default=Path("ising.png"))
    given = parser.parse_args()
    lattices = []
    for path in given.files:
        size, curve, draws = read(path)
        lattices.append((size, curve, compare(size, curve, draws)))
    figure, axes = plt.subplots(
        4, len(lattices), figsize=(5 * len(lattices), 12), squeeze=False
    )
    draw(axes.T, lattices)
    figure.tight_layout()
    figure.savefig(given.output, dpi=100)


if __name__ == "__main__":
    main()
