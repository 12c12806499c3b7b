"""Covasim, the published agent-based COVID-19 simulator, as a model of an ensemble."""

import covasim as cv  # takes seconds: here, it does so once per runner
import numpy as np
from numpy.typing import NDArray

OUTPUTS = ("new_infections", "cum_infections", "cum_deaths")


def simulate(
    seed: int,
    *,
    agents: int,
    days: int,
    introduced: int,
    beta_change: float = 1.0,
    daily_tests: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """Run one simulation and return its daily counts.

    agents       size of the population
    introduced   agents infected on day 0
    beta_change  factor on transmission from day 0 on; 1 changes nothing
    daily_tests  tests per day; who tests positive isolates; 0 is no testing
    """
    interventions = []
    if beta_change != 1.0:
        interventions.append(cv.change_beta(days=0, changes=beta_change))
    if daily_tests > 0:
        interventions.append(cv.test_num(daily_tests=daily_tests))

    sim = cv.Sim(
        pop_size=agents,
        pop_infected=introduced,
        n_days=days,
        rand_seed=seed,
        interventions=interventions,
        verbose=0,
    )
    sim.run()
    return {name: np.array(sim.results[name].values, float) for name in OUTPUTS}
