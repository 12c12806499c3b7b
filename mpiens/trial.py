"""What a trial of a calibration is given, and the streams that come of that."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mpiens import streams
from mpiens.outcome import Inputs
from mpiens.spec import Scenario, Spec, name_trial
from mpiens.streams import Stream


@dataclass(frozen=True, slots=True)
class Given:
    """What is known of a trial once it was asked for.

    ``stream`` is the number from which its random streams come: the same wherever the
    trial is run again, in this file or in another one.
    """

    stream: int
    parameters: Mapping[str, Any]

    def fill(self, scenario: Scenario) -> dict[str, Any]:
        """Return the parameters of one of the trial's scenarios."""
        return {**scenario.parameters, **self.parameters}

    def key(self, spec: Spec, task: int) -> tuple[int, ...]:
        """Return the spawn key of a task of the trial.

        With common pairing all scenarios of the trial meet the same streams.
        """
        index, replicate = spec.locate(task)
        base = None if spec.common else spec.scenarios[index].base
        name = name_trial(self.stream, base)
        return streams.spawn_key(name, replicate, common=False)


def make_example(spec: Spec) -> Given:
    """Return what a trial might be given: the first point enqueued, else an example."""
    if spec.calibrate is None:
        raise RuntimeError("there is no [calibrate]")
    domains = spec.calibrate.parameters
    examples = {name: domain.example for name, domain in domains.items()}
    enqueued = spec.calibrate.enqueue[0] if spec.calibrate.enqueue else {}
    return Given(0, {**examples, **enqueued})


def make_streams(
    spec: Spec, numbers: list[int], inputs: Inputs
) -> Iterator[Stream | None]:
    """Yield the streams of a calibration's tasks; scoring has none."""
    known: dict[int, Given] = {}
    keys: list[tuple[int, ...]] = []
    for number in numbers:
        step, index = spec.step_of(number)
        if step is not None:
            continue
        if index not in known:
            known[index] = pickle.loads(inputs[index])
        keys.append(known[index].key(spec, number))
    made = streams.make(spec.ensemble.seed, keys)
    for number in numbers:
        yield next(made) if spec.step_of(number)[0] is None else None
