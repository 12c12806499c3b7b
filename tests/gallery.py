"""One small result file of every kind that there is to look at."""

from __future__ import annotations

from pathlib import Path

from conftest import Launcher, write

MODEL = """
import time
from pathlib import Path
import numpy as np

GRID = np.linspace(0, 10, 41)

def simulate(rng, replicate, *, beta=0.3, mask=0.0, kind="a"):
    if replicate == 7:
        raise ValueError("no luck <today> & never")
    day = np.arange(30)
    peak = 100 * beta * (1 - mask) * rng.uniform(0.8, 1.2)
    curve = peak * np.exp(-((day - 12 - 3 * rng.normal()) ** 2) / 30)
    if replicate == 11 and mask > 0:
        curve = curve + 40.0  # unlike all others
    return {"new_cases": curve, "deaths": curve.sum() / 50}

def sample(rng, *, low, high):
    energies = GRID[(GRID >= low) & (GRID <= high)]
    noise = 0.1 * rng.normal(size=len(energies))
    return {"log_g": 3 * np.sin(energies / 2) + noise + rng.normal(0, 9),
            "energies": energies}
"""
HEAD = """
[ensemble]
model = "model.py:simulate"
replicates = REPLICATES
seed = 20261127
"""
OUTPUTS = """
[outputs.new_cases]
dims = ["day"]
units = "people per day"
summaries = ["peak", "peak_time"]
[outputs.deaths]
units = "people"
"""
SPECS = {
    "compared": HEAD.replace("REPLICATES", "24")
    + "[scenarios.open]\n[scenarios.masks]\nmask = 0.4\n[scenarios.closed]\nmask = 0.7"
    + OUTPUTS
    + '[bands]\nbaseline = "open"\nbetter = "lower"\ncentral = [0.5]\n',
    "cube": HEAD.replace("REPLICATES", "3")
    + "[scenarios.a]\n[scenarios.b]\nkind = 'b'\n"
    + "[sweep]\nbeta = [0.2, 0.3, 0.4, 0.5]\nmask = [0.0, 0.25, 0.5]\n"
    + OUTPUTS,
    "points": HEAD.replace("REPLICATES", "2")
    + '[design]\nmethod = "saltelli"\nsamples = 16\n'
    + 'ranges.beta = { low = 0.1, high = 1.0, scale = "log" }\n'
    + "ranges.mask = { low = 0.0, high = 0.5 }\n"
    + 'ranges.kind = { choices = ["a", "b"] }\n'
    + OUTPUTS,
    "search": HEAD.replace("REPLICATES", "4")
    + OUTPUTS
    + """
[calibrate]
trials = 16
[calibrate.parameters.beta]
low = 0.05
high = 2.0
scale = "log"
[calibrate.parameters.mask]
low = 0.0
high = 0.9
[calibrate.targets.cases]
output = "new_cases"
data = "data.csv"
column = "cases"
""",
    "joined": """
[ensemble]
model = "model.py:sample"
replicates = 8
seed = 7
pairing = "independent"
[windows]
parameter = "energy"
low = 0.0
high = 10.0
bins = 4
overlap = 0.5
[outputs.log_g]
dims = ["*"]
length = 41
units = "nat"
[outputs.energies]
dims = ["*"]
length = 41
[join.log_g]
x = "energies"
""",
}
CODES = {"compared": 3, "joined": 0}  # others of few replicates: none of them fails


def make(launcher: Launcher, kind: str) -> Path:
    """Run the ensemble of a kind, and return its file."""
    write(launcher.folder, "model.py", MODEL)
    cases = "\n".join(
        f"{day},{30 * 2.7 ** -((day - 12) ** 2 / 30)}" for day in range(30)
    )
    write(launcher.folder, "data.csv", f"day,cases\n{cases}\n")
    write(launcher.folder, f"{kind}.toml", SPECS[kind])
    ran = launcher.mpiens("-n", "2", f"{kind}.toml")
    assert ran.code == CODES.get(kind, 0), ran.errors
    return launcher.folder / f"{kind}.h5"
