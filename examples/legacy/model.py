"""A simulator as they were written once: global state, a cache, and prints.

It draws from the global ``random``, keeps what it has seen in a module-level list, and
says what it does on standard output.  Its author ran it once per process, so nobody
noticed that ``DEAD`` is never emptied.
"""

import random

DEAD = []  # left behind for whoever comes next in this process
CACHE = {}


def weights(agents):
    """Return how many contacts each agent has; made once, as it is slow."""
    if agents not in CACHE:
        print(f"making {agents} agents ...")
        CACHE[agents] = [1 + random.random() for _ in range(agents)]
    return CACHE[agents]


def run_epidemic(beta, agents, days):
    """Run it and return how many are infected each day, and how many died in all."""
    contacts = weights(agents)
    ill = {0, 1, 2}
    curve = []
    for day in range(days):
        caught = set()
        for agent in sorted(ill):
            for _ in range(round(3 * contacts[agent])):
                if random.random() < beta:
                    caught.add(random.randrange(agents))
        for agent in sorted(ill):
            if random.random() < 0.02 and agent not in DEAD:
                DEAD.append(agent)
        ill = (ill | caught) - set(DEAD)
        ill = {agent for agent in ill if random.random() < 0.8}
        curve.append(len(ill))
        if day % 20 == 0:
            print(f"day {day}: {len(ill)} ill")
    return {"infected": curve, "dead": len(DEAD)}


def simulate(*, beta, agents=200, days=60):
    return run_epidemic(beta, agents, days)
