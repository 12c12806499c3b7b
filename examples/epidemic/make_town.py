"""Makes the synthetic town: who is where, in every hour of a typical month.

    python make_town.py

writes `town.h5` beside this file, or leaves it alone if it is already there. The
same recipe always makes the same town: an epidemic varies, the town does not.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import h5py
import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]

RECIPE = "mpiens town 1"  # change it with anything below that changes the town
SEED = 20260529
AGENTS = 100_000
DAYS = 28
HOME = -1


class Kind(NamedTuple):
    """One kind of place outside the home."""

    rooms: int
    area: float  # median floor area of a room, in square metres


# Those that an order can close in the evening come last, so that in a table sorted
# by place they are the end of every hour.
KINDS = {
    "classroom": Kind(rooms=800, area=60.0),
    "office": Kind(rooms=4_000, area=90.0),
    "shop": Kind(rooms=300, area=250.0),
    "restaurant": Kind(rooms=250, area=60.0),
    "leisure": Kind(rooms=200, area=130.0),
}
FIRST_CLOSABLE = KINDS["classroom"].rooms + KINDS["office"].rooms


class People(NamedTuple):
    """What an agent keeps all month, one array element each."""

    works: NDArray[np.bool_]
    learns: NDArray[np.bool_]
    base: Ints  # classroom or office; HOME without either
    starts: Ints  # hour at which school or work begins
    outgoing: NDArray[np.float64]  # chance of an evening out; some go often
    haunts: dict[str, Ints]  # (two, agents): the shops, restaurants... one goes to


def make_town(path: Path) -> None:
    """Write the town to `path`, unless the same town is already there.

    It appears under its name only when whole, so that any number of processes may
    make it at once.
    """
    if is_made(path):
        return
    rng = np.random.default_rng(SEED)
    households = draw_households(rng)
    areas = draw_areas(rng)
    hours = list(month(rng, draw_people(rng)))

    partial = path.with_name(f"{path.name}.{uuid4().hex}.partial")
    with h5py.File(partial, "w") as file:
        file["household"] = households
        file["area"] = areas
        file["area"].attrs["units"] = "m2"
        file["agent"] = np.concatenate([agents for agents, _ in hours])
        file["place"] = np.concatenate([places for _, places in hours])
        file["start"] = np.cumsum([0, *(len(agents) for agents, _ in hours)])
        file.attrs["first_closable"] = FIRST_CLOSABLE
        file.attrs["recipe"] = RECIPE
    partial.replace(path)


def is_made(path: Path) -> bool:
    """Tell whether `path` holds the town of this recipe."""
    if not path.exists():
        return False
    with h5py.File(path) as file:
        return file.attrs.get("recipe") == RECIPE


def draw_households(rng: np.random.Generator) -> Ints:
    """Household of every agent; members are neighbours in the numbering."""
    sizes = rng.choice([1, 2, 3, 4, 5], AGENTS, p=[0.30, 0.32, 0.17, 0.15, 0.06])
    return np.repeat(np.arange(AGENTS, dtype=np.int32), sizes)[:AGENTS]


def draw_areas(rng: np.random.Generator) -> NDArray[np.float32]:
    """Floor area of every place, in square metres."""
    medians = np.repeat(
        [k.area for k in KINDS.values()], [k.rooms for k in KINDS.values()]
    )
    return (medians * rng.lognormal(0.0, 0.3, medians.size)).astype(np.float32)


def draw_people(rng: np.random.Generator) -> People:
    """Give every agent a role, a classroom or office, and a taste for going out."""
    role = rng.choice(["learns", "works", "neither"], AGENTS, p=[0.2, 0.45, 0.35])
    learns, works = role == "learns", role == "works"
    base = np.full(AGENTS, HOME, np.int32)
    base[learns] = rooms_of("classroom", rng, learns.sum())
    base[works] = rooms_of("office", rng, works.sum())
    starts = np.where(learns, 8, rng.choice([6, 7, 8, 9, 10, 13], AGENTS))
    return People(
        works=works,
        learns=learns,
        base=base,
        starts=starts.astype(np.int32),
        outgoing=rng.beta(1.2, 2.4, AGENTS),
        haunts={
            kind: rooms_of(kind, rng, (2, AGENTS))
            for kind in ("shop", "restaurant", "leisure")
        },
    )


def rooms_of(kind: str, rng: np.random.Generator, size: int | tuple[int, ...]) -> Ints:
    """Draw places of one kind."""
    names = list(KINDS)
    first = sum(KINDS[name].rooms for name in names[: names.index(kind)])
    return rng.integers(first, first + KINDS[kind].rooms, size, dtype=np.int32)


def month(rng: np.random.Generator, people: People) -> Iterator[tuple[Ints, Ints]]:
    """Yield the visits of every hour, as (agents, places) in the order of places."""
    for day in range(DAYS):
        plan = plan_day(rng, people, weekend=day % 7 >= 5)
        for place in plan:
            visitors = np.flatnonzero(place != HOME)
            # 16 bits hold every place, and numpy sorts those in linear time.
            order = np.argsort(place[visitors].astype(np.int16), kind="stable")
            agents = visitors[order].astype(np.int32)
            yield agents, place[agents]


def plan_day(rng: np.random.Generator, people: People, *, weekend: bool) -> Ints:
    """Place of every agent in every hour of one day; what comes later wins."""
    plan = np.full((24, AGENTS), HOME, np.int32)

    def stay(who: NDArray[np.bool_], place: Ints, start: Ints, hours: Ints) -> None:
        for hour in range(24):
            here = who & (start <= hour) & (hour < start + hours)
            plan[hour, here] = place[here]

    def someone(chance: float | NDArray[np.float64]) -> NDArray[np.bool_]:
        return rng.random(AGENTS) < chance

    def haunt(kind: str) -> Ints:
        first, second = people.haunts[kind]
        return np.where(someone(0.7), first, second)

    def between(low: int, high: int) -> Ints:
        return rng.integers(low, high, AGENTS, dtype=np.int32, endpoint=True)

    at_work = someone(0.12 if weekend else 0.80) & people.works
    at_school = someone(0.0 if weekend else 0.96) & people.learns
    stay(at_work, people.base, people.starts, between(7, 9))
    stay(at_work & someone(0.25), haunt("restaurant"), people.starts + 4, between(1, 1))
    stay(at_school, people.base, people.starts, between(6, 7))

    busy = at_work | at_school
    stay(~busy & someone(0.5), haunt("shop"), between(9, 16), between(1, 2))
    stay(someone(0.35), haunt("shop"), between(17, 20), between(1, 1))
    more = 1.4 if weekend else 1.0
    stay(
        someone(0.5 * more * people.outgoing),
        haunt("restaurant"),
        between(18, 20),
        between(1, 2),
    )
    stay(
        someone(0.7 * more * people.outgoing),
        haunt("leisure"),
        between(18, 21),
        between(2, 3),
    )
    return plan


if __name__ == "__main__":
    make_town(Path(__file__).with_name("town.h5"))
