"""An epidemic in a town: people infect each other where their days bring them together.

`load` reads the town, once per node; `simulate` plays one epidemic in it.
"""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from make_town import make_town
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]

LATENT_DAYS = 3.0  # mean, from infection to being infectious
INFECTIOUS_DAYS = 5.0  # mean
DISPERSION = 0.4  # of infectiousness; below 1, a few people cause most infections


@dataclass(frozen=True)
class Town:
    """Where everyone is, hour by hour, for a month of 28 days that repeats.

    Visits are sorted by hour, then by place. Who is on no visit is at home.
    """

    household: Ints  # (agents,)
    area: NDArray[np.float32]  # (places,), in square metres
    first_closable: int  # places from this one on can be closed by order
    agent: Ints  # (visits,)
    place: Ints  # (visits,)
    start: NDArray[np.int64]  # (hours + 1,): the first visit of every hour


@dataclass(frozen=True)
class People:
    """What chance holds for every agent, drawn before the epidemic begins."""

    resistance: Floats  # the dose that infects
    latent: Floats  # days
    infectious: Floats  # days
    infectiousness: Floats  # relative, with mean 1


def load(path: str) -> Town:
    """Read the town from `path`, beside this file; make it if it is not there."""
    file_path = Path(__file__).parent / path
    make_town(file_path)
    with h5py.File(file_path) as file:
        arrays = {name: dataset[:] for name, dataset in file.items()}
        return Town(first_closable=int(file.attrs["first_closable"]), **arrays)


def simulate(
    rng: np.random.Generator,
    shared: Town,
    *,
    days: int,
    beta: float,
    home_beta: float,
    mask: float = 0.0,
    closing_hour: int = 24,
    introduced: int = 15,
) -> dict[str, Floats]:
    """Play one epidemic and count it day by day.

    beta          hazard of sharing one square metre with one case for one hour
    home_beta     hazard of a night at home with one case
    mask          share of the hazard outside the home that masks take away
    closing_hour  hour from which shops, restaurants and leisure are closed
    introduced    agents who are infected on day 0 by people from elsewhere
    """
    agents = shared.household.size
    people = draw_people(rng, agents)
    infected_on = np.full(agents, np.inf)
    infected_on[rng.choice(agents, introduced, replace=False)] = 0
    hazard = beta * (1.0 - mask) / shared.area

    dose = np.zeros(agents)
    new, prevalence = np.zeros(days), np.zeros(days)
    for day in range(days):
        infectious = is_infectious(people, infected_on, day)
        shedding = np.where(infectious, people.infectiousness, 0.0)
        for hour in range(24):
            visitors, places = visits(shared, day, hour, closing_hour)
            add_contacts(dose, visitors, places, hazard, shedding)
        dose += home_beta * shed_at_home(shared, shedding)

        # Nobody infects others on the day of infection: once a day is often enough.
        caught = np.isinf(infected_on) & (dose > people.resistance)
        infected_on[caught] = day
        new[day] = np.count_nonzero(caught)
        prevalence[day] = np.count_nonzero(infectious)
    return {
        "new_infections": new,
        "prevalence": prevalence,
        "cumulative": introduced + np.cumsum(new),
    }


def draw_people(rng: np.random.Generator, agents: int) -> People:
    """Draw everyone's share of chance.

    An agent is infected when the summed hazard of all its contacts, its dose, passes
    an exponential resistance. This is the same as a draw with probability
    1 - exp(-hazard) at every contact (Sellke 1983), but takes one draw per agent; and
    in scenarios under the same stream everyone keeps the same luck, so that their
    difference shows the measure and not the noise.
    """
    return People(
        resistance=rng.standard_exponential(agents),
        latent=1.0 + rng.poisson(LATENT_DAYS - 1.0, agents),
        infectious=1.0 + rng.poisson(INFECTIOUS_DAYS - 1.0, agents),
        infectiousness=rng.gamma(DISPERSION, 1.0 / DISPERSION, agents),
    )


def is_infectious(people: People, infected_on: Floats, day: int) -> NDArray[np.bool_]:
    """Tell who is infectious on this day; `infected_on` is inf without infection."""
    begin = infected_on + people.latent
    return (begin <= day) & (day < begin + people.infectious)


def visits(town: Town, day: int, hour: int, closing_hour: int) -> tuple[Ints, Ints]:
    """Return who is where in one hour, as (visitors, places)."""
    hour_of_month = (24 * day + hour) % (town.start.size - 1)
    first, last = town.start[hour_of_month : hour_of_month + 2]
    if hour >= closing_hour:  # an hour's visits end with those that can be closed
        last = first + np.searchsorted(town.place[first:last], town.first_closable)
    return town.agent[first:last], town.place[first:last]


def add_contacts(
    dose: Floats, visitors: Ints, places: Ints, hazard: Floats, shedding: Floats
) -> None:
    """Add to each visitor's dose what is shed in the same place in one hour.

    `hazard` is that of every place, for one infectious visitor.
    """
    # In most hours most places have no case: only the others cost anything.
    cases = np.flatnonzero((shedding > 0).take(visitors))
    shed = np.bincount(places[cases], shedding[visitors[cases]], hazard.size)
    met = np.flatnonzero((shed > 0).take(places))
    np.add.at(dose, visitors.take(met), (hazard * shed).take(places.take(met)))


def shed_at_home(town: Town, shedding: Floats) -> Floats:
    """Sum for every agent what the household sheds in one night."""
    return np.bincount(town.household, shedding).take(town.household)
