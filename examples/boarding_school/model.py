"""Influenza in a boarding school: a stochastic compartment model.

Boys are susceptible, then in bed and infectious, then convalescent, then well.  They
mix freely, so each susceptible boy is infected at the rate beta * (in bed) / BOYS.  In
every step the boys who leave a compartment are drawn, each with the probability that
its rate gives for the step (a chain of binomials; C. Breto, D. He, E. L. Ionides and
A. A. King, "Time series analysis via mechanistic models", Annals of Applied Statistics
3, 2009).  A stay has stages that are left one after another, each after an exponential
time: with one stage some boys are up within hours and others lie for a week, with more
stages their stays are more alike.
"""

import numpy as np

BOYS = 763
FIRST = 3  # in bed on day 1, where the data begin
STEPS = 12  # a day


def simulate(rng, *, beta, bed_days, rest_days, stages=1, days=14):
    """Return how many are in bed, and how many convalescent, on days 0 to ``days``.

    ``beta`` is per day.  ``bed_days`` and ``rest_days`` are the mean stays in bed and
    in convalescence, each of as many stages as ``stages`` says.
    """
    rates = np.repeat([stages / bed_days, stages / rest_days], stages)
    leave = -np.expm1(-rates / STEPS)
    ill = np.zeros(2 * stages, dtype=int)  # boys by stage, those in bed first
    ill[0] = FIRST
    susceptible = BOYS - FIRST
    counts = np.zeros((2, days + 1), dtype=int)
    counts[0, 1] = FIRST
    for day in range(2, days + 1):
        for _ in range(STEPS):
            force = beta * ill[:stages].sum() / BOYS
            infected = rng.binomial(susceptible, -np.expm1(-force / STEPS))
            left = rng.binomial(ill, leave)
            susceptible -= infected
            ill += np.append(infected, left[:-1]) - left
        counts[:, day] = ill[:stages].sum(), ill[stages:].sum()
    return {"in_bed": counts[0], "convalescent": counts[1]}
