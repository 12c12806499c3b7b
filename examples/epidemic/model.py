"""An epidemic in a town: agents infect each other where their days bring them together.

`load` reads the town once per node; `simulate` plays one epidemic in it.
"""

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from make_town import make_town
from numpy.typing import NDArray

SUSCEPTIBLE, EXPOSED, INFECTIOUS, RECOVERED = np.arange(4, dtype=np.uint8)
NEVER = np.iinfo(np.int32).max

LATENT_DAYS = 3.0  # mean, from infection to being infectious
INFECTIOUS_DAYS = 5.0  # mean
DISPERSION = 0.4  # of infectiousness between people; small means few spread most


@dataclass(frozen=True)
class Town:
    """Where everyone is, hour by hour, for a month of 28 days that repeats.

    Visits are sorted by hour, then by place. Who is in none is at home.
    """

    household: NDArray[np.int32]  # (agents,)
    area: NDArray[np.float32]  # (places,), in square metres
    first_closable: int  # from this place on, an order can close them
    agent: NDArray[np.int32]  # (visits,)
    place: NDArray[np.int32]  # (visits,)
    start: NDArray[np.int64]  # (hours + 1,): first visit of every hour


@dataclass(frozen=True)
class People:
    """The course of the infection in every agent; days count from 0."""

    state: NDArray[np.uint8]
    infectious_on: NDArray[np.int32]
    recovered_on: NDArray[np.int32]
    infectiousness: NDArray[np.float64]  # relative, with mean 1


def load(path: str) -> Town:
    """Read the town from `path`, relative to this file; make it if it is not there."""
    file_path = Path(__file__).parent / path
    make_town(file_path)
    with h5py.File(file_path) as file:
        arrays = {name: file[name][:] for name in file}
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
) -> dict[str, NDArray[np.float64]]:
    """Play one epidemic and count it at the end of every day.

    beta          hazard per hour from one infectious person in one square metre
    home_beta     hazard per night from one infectious member of the household
    mask          fraction of transmission outside the home that masks prevent
    closing_hour  from this hour on, shops, restaurants and leisure are closed
    introduced    agents who carry the infection into the town before day 0
    """
    people = healthy(shared.household.size)
    infect(people, rng.choice(shared.household.size, introduced, replace=False), 0, rng)
    hazard = beta * (1.0 - mask) / shared.area

    new, prevalence = np.zeros(days), np.zeros(days)
    for day in range(days):
        progress(people, day)
        for hour in range(24):
            caught = infected_outside(
                shared, people, day, hour, hazard, hour >= closing_hour, rng
            )
            infect(people, caught, day, rng)
            new[day] += caught.size
        caught = infected_at_home(shared, people, home_beta, rng)
        infect(people, caught, day, rng)
        new[day] += caught.size
        prevalence[day] = np.count_nonzero(people.state == INFECTIOUS)
    return {
        "new_infections": new,
        "prevalence": prevalence,
        "cumulative": introduced + np.cumsum(new),
    }


def healthy(agents: int) -> People:
    """A town before the infection comes."""
    return People(
        state=np.full(agents, SUSCEPTIBLE),
        infectious_on=np.full(agents, NEVER, np.int32),
        recovered_on=np.full(agents, NEVER, np.int32),
        infectiousness=np.zeros(agents),
    )


def infect(
    people: People, who: NDArray[np.intp], day: int, rng: np.random.Generator
) -> None:
    """Infect `who` and draw the course that their infection will take."""
    latent = 1 + rng.poisson(LATENT_DAYS - 1, who.size)
    infectious = 1 + rng.poisson(INFECTIOUS_DAYS - 1, who.size)
    people.state[who] = EXPOSED
    people.infectious_on[who] = day + latent
    people.recovered_on[who] = day + latent + infectious
    people.infectiousness[who] = rng.gamma(DISPERSION, 1 / DISPERSION, who.size)


def progress(people: People, day: int) -> None:
    """Move on the infections for which a new state begins on this day."""
    people.state[people.infectious_on == day] = INFECTIOUS
    people.state[people.recovered_on == day] = RECOVERED


def infected_outside(
    town: Town,
    people: People,
    day: int,
    hour: int,
    hazard: NDArray[np.float64],
    closed: bool,
    rng: np.random.Generator,
) -> NDArray[np.intp]:
    """Draw who is infected in this hour in the places of the town.

    `hazard` is that of each place, for one infectious visitor and one hour.
    """
    hours = town.start.size - 1
    hour_of_month = (24 * day + hour) % hours
    first, last = town.start[hour_of_month : hour_of_month + 2]
    if closed:  # visits are sorted by place: cut off those that can be closed
        last = first + np.searchsorted(town.place[first:last], town.first_closable)
    agents, places = town.agent[first:last], town.place[first:last]

    # Both halves of a meeting come from one look at each visitor's state.
    states = people.state.take(agents)
    sources = np.flatnonzero(states == INFECTIOUS)
    if sources.size == 0:
        return sources
    shed = np.bincount(
        places[sources], people.infectiousness[agents[sources]], hazard.size
    )
    chance = -np.expm1(-hazard * shed)
    risks = np.where(states == SUSCEPTIBLE, chance.take(places), 0.0)
    exposed = np.flatnonzero(risks)
    return agents[exposed[rng.random(exposed.size) < risks[exposed]]]


def infected_at_home(
    town: Town, people: People, hazard: float, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Draw who is infected in this night by the household, for `hazard` per night."""
    sources = np.flatnonzero(people.state == INFECTIOUS)
    shed = np.bincount(
        town.household[sources],
        people.infectiousness[sources],
        town.household[-1] + 1,
    )
    pressure = np.where(people.state == SUSCEPTIBLE, shed[town.household], 0.0)
    exposed = np.flatnonzero(pressure)
    chance = -np.expm1(-hazard * pressure[exposed])
    return exposed[rng.random(exposed.size) < chance]
