"""A spec and a model to start from, with what each line is for."""

from __future__ import annotations

from pathlib import Path

from mpiens.fault import Fault, SpecError

MODEL = '''\
"""A model: an epidemic in a town, day by day. Put your own simulator here."""

import numpy as np


def simulate(rng, *, beta, days, agents=10_000, mask=0.0):
    """Parameters arrive by name; rng is the random generator of this run alone."""
    susceptible, infected = agents - 10, 10
    curve = np.zeros(days)
    for day in range(days):
        chance = 1 - np.exp(-beta * (1 - mask) * infected / agents)
        new, recovered = rng.binomial(susceptible, chance), rng.binomial(infected, 0.2)
        susceptible, infected = susceptible - new, infected + new - recovered
        curve[day] = infected
    return {"infected": curve}  # outputs by name: numbers or arrays
'''

SPEC = """\
# What is run, and what is asked. mpiens check SPEC tells all that is wrong with it.

[ensemble]
model = "MODEL:simulate"     # a function in a file beside this one
replicates = 100             # runs of each scenario, each with its own luck
seed = 1                     # the same seed gives the same answer, to the last bit
pairing = "common"           # replicate k of every scenario meets the same luck

[parameters]                 # for every scenario
beta = 0.4
days = 120

[scenarios.baseline]         # named scenarios, each with what is different in it
[scenarios.masks]
mask = 0.3

# [sweep]                    # cross the scenarios with every value of these
# beta = [0.3, 0.4, 0.5]

# [shared]                   # data that all runs read, in memory once per node
# loader = "MODEL:load"      # a function that returns them; simulate asks for `shared`

[outputs.infected]
dims = ["day"]               # what the axes of the array are called
units = "people"
summaries = ["peak", "peak_time"]

[bands]
levels = [0.05, 0.25, 0.5, 0.75, 0.95]   # quantiles over the replicates
baseline = "baseline"        # compare the others with this one
better = "lower"             # which way is better

# [limits]                   # what a run may take; more is a failed run, not a lost job
# task_seconds = 60
"""


def write_starter(spec: Path) -> list[Path]:
    """Write a spec, and a model beside it; SpecError where either is there already."""
    if spec.suffix != ".toml":
        text = f"{spec} should end in .toml, such as {spec.stem}.toml"
        raise SpecError([Fault("", text)])
    model = spec.with_name("model.py")
    faults = [
        Fault("", f"{path} is there already; name another file, or move it away")
        for path in (spec, model)
        if path.exists()
    ]
    if faults:
        raise SpecError(faults)
    model.write_text(MODEL, encoding="utf-8")
    spec.write_text(SPEC.replace("MODEL", model.name), encoding="utf-8")
    return [spec, model]
