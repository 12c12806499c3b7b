"""What [calibrate] says: what is varied, what is fitted, how, and until when."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from mpiens.design import check_choices, check_ends
from mpiens.fault import Fault, nearest, place

SAMPLER = "TPE"
_STRICT = {"extra": "forbid", "strict": True}
_Scalar = bool | int | float | str


@dataclass(frozen=True)
class Domain:
    """Where a calibrated parameter may lie: between two ends, or among choices."""

    __pydantic_config__ = _STRICT
    low: int | float | None = None
    """Lower end."""
    high: int | float | None = None
    """Upper end."""
    scale: Literal["linear", "log", "logit", "integer"] = "linear"
    """What the sampler spreads it on; `integer` for whole numbers."""
    step: int | float | None = None
    """Only multiples of this, from `low` on."""
    choices: tuple[_Scalar, ...] | None = None
    """Or values to choose from."""

    def faults(self, section: str) -> Iterator[Fault]:
        """Yield what is wrong with it; ``section`` is what it stands in."""
        whole = 'scale = "integer"' if self.scale == "integer" else None
        if self.choices is None:
            yield from check_ends(section, self.low, self.high, self.scale, whole)
            yield from self._check_step(section)
            return
        keys = ("low", "high", "step")
        given = [key for key in keys if getattr(self, key) is not None]
        given += ["scale"] * (self.scale != "linear")
        yield from check_choices(section, self.choices, given)

    @property
    def ends(self) -> tuple[float, float]:
        """Both ends."""
        if self.low is None or self.high is None:
            raise ValueError("choices have no ends")
        return self.low, self.high

    def holds(self, value: Any) -> bool:
        """Whether a value lies in it."""
        if self.choices is not None:
            return any(_is_same(value, choice) for choice in self.choices)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or (self.scale == "integer" and value != int(value)):
            return False
        return bool(self.ends[0] <= value <= self.ends[1])

    def inwards(self, value: Any) -> Any:
        """Return a value as the sampler knows it: a share as its logit."""
        return math.log(value / (1 - value)) if self.scale == "logit" else value

    def outwards(self, value: Any) -> Any:
        """Return a value of the sampler's as the model is given it."""
        if self.scale != "logit":
            return value
        low, high = self.ends
        return min(max(1 / (1 + math.exp(-value)), low), high)

    @property
    def example(self) -> Any:
        """A value that stands in where none is known yet."""
        if self.choices is not None:
            return self.choices[0]
        low, high = self.ends
        if self.scale == "integer":
            return int(low)
        if self.scale == "log":
            return math.sqrt(low) * math.sqrt(high)
        return (low + high) / 2

    def describe(self) -> str:
        """Return it as one reads it aloud."""
        if self.choices is not None:
            return ", ".join(str(choice) for choice in self.choices)
        scale = f", {self.scale}" if self.scale != "linear" else ""
        step = f", step {self.step}" if self.step is not None else ""
        return f"{self.low} to {self.high}{scale}{step}"

    def _check_step(self, section: str) -> Iterator[Fault]:
        where = place(section, "step")
        if self.step is None:
            return
        if self.scale in ("log", "logit"):
            text = f'goes with no scale = "{self.scale}"; drop either'
            yield Fault(where, text)
        elif not self.step > 0:
            yield Fault(where, f"{self.step} should be above 0")
        elif self.scale == "integer" and self.step != int(self.step):
            yield Fault(where, f'{self.step} is no integer, and scale = "integer" is')


@dataclass(frozen=True)
class Target:
    """An observed series, and how far the model's output is from it."""

    __pydantic_config__ = _STRICT
    output: str
    """Which output is held against the data."""
    data: str
    """A CSV file beside the spec."""
    column: str
    """Its column; an empty cell is a missing value."""
    index: str | None = None
    """The column that tells where along the output each value lies; by default named as
    its first dimension.
    """
    loss: str = "mse"
    """`"mse"`, `"annealed_mse"`, minus a log-likelihood (`"poisson"`,
    `"negative_binomial"`, `"gaussian"`, `"beta_binomial"`), or `"file.py:function"`.
    """
    weight: Annotated[float, Ge(0)] = 1.0
    """Of its loss in the sum."""
    scenario: str | None = None
    """The scenario that it is about; without one every scenario is scored, and losses
    add up.
    """
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of the section, which the loss is given."""

    @property
    def own_loss(self) -> bool:
        """Whether the loss is a function of the user's."""
        return ":" in self.loss


@dataclass(frozen=True)
class Sampler:
    """What proposes parameters: one of Optuna's, by name, and its options."""

    __pydantic_config__ = _STRICT
    name: str = SAMPLER
    """One of Optuna's: `"TPE"`, `"CMA-ES"`, `"QMC"`, `"NSGA-II"`, `"Random"`, `"GP"`.
    """
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of the table, which it is given."""


@dataclass(frozen=True)
class Stop:
    """When no further trial is asked for, though there may be some left."""

    __pydantic_config__ = _STRICT
    seconds: Annotated[float, Gt(0)] | None = None
    """After so many seconds of a run."""
    patience: Annotated[int, Ge(1)] | None = None
    """After so many trials without a gain."""
    loss_below: float | None = None
    """Once a loss is below."""


@dataclass(frozen=True)
class Confirm:
    """The ensemble that is run of the best parameters, once all trials are over."""

    __pydantic_config__ = _STRICT
    replicates: Annotated[int, Ge(1)]
    """Of each set of parameters."""
    top: Annotated[int, Ge(1)] = 1
    """How many of the best trials."""
    posterior: bool = False
    """`true`: draws of all trials instead, weighted by exp(-loss)."""


@dataclass(frozen=True)
class Calibrate:
    """A calibration: trials of parameters, each scored against every target."""

    __pydantic_config__ = _STRICT
    trials: Annotated[int, Ge(1)]
    """How many, at most."""
    mode: Literal["parallel", "batched"] = "parallel"
    """`"batched"`: `in_flight` trials are asked for when all before them have been
    told.
    """
    in_flight: Annotated[int, Ge(1)] | None = None
    """How many trials may be open; by default what keeps all ranks busy."""
    ordered: bool = False
    """`true`: the study is the same at any number of ranks and after any crash; needs
    `in_flight`.
    """
    storage: str | None = None
    """A database or journal that jobs share: a URL, or a path; by default a journal
    beside the result.
    """
    study: str | None = None
    """Its name there; by default that of the spec."""
    objectives: Literal["sum", "targets"] = "sum"
    """`"targets"`: every target is an objective of its own."""
    failed: Literal["fail", "drop"] = "fail"
    """`"drop"`: replicates that fail are left out; else they fail their trial."""
    sampler: Sampler = field(default_factory=Sampler)
    """By name, or a table of `name` and options."""
    stop: Stop = field(default_factory=Stop)
    """When no further trial is asked for: `[calibrate.stop]`."""
    enqueue: tuple[Mapping[str, Any], ...] = ()
    """Points that are tried first."""
    parameters: Mapping[str, Domain] = field(default_factory=dict)
    """What is varied: `[calibrate.parameters.NAME]`."""
    targets: Mapping[str, Target] = field(default_factory=dict)
    """Against which data: `[calibrate.targets.NAME]`."""
    confirm: Confirm | None = None
    """An ensemble of the best parameters, afterwards: `[calibrate.confirm]`."""

    def faults(self) -> Iterator[Fault]:
        """Yield what is wrong with it, as far as it knows itself."""
        where = "calibrate"
        if not self.parameters:
            text = "is missing; write [calibrate.parameters.NAME] with low and high"
            yield Fault(place(where, "parameters"), text)
        if not self.targets:
            text = "is missing; write [calibrate.targets.NAME] with output and data"
            yield Fault(place(where, "targets"), text)
        for name, domain in self.parameters.items():
            yield from domain.faults(f"calibrate.parameters.{name}")
        if self.ordered and self.in_flight is None:
            text = "is missing, and ordered = true needs it: what keeps all ranks busy "
            text += "would differ with their number; give in_flight = 8, say"
            yield Fault(place(where, "in_flight"), text)
        if self.ordered and self.storage is not None:
            text = "is shared by jobs, whose order is nobody's; drop it, or ordered"
            yield Fault(place(where, "storage"), text)
        if self.objectives == "targets":
            for key in ("patience", "loss_below"):
                if getattr(self.stop, key) is not None:
                    text = 'needs one loss, and objectives = "targets" has several'
                    yield Fault(place("calibrate.stop", key), text)
        yield from self._check_enqueued()

    def find_inner(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return parameters as the sampler knows them."""
        return {n: self.parameters[n].inwards(v) for n, v in parameters.items()}

    def total(self, losses: Mapping[str, float]) -> float:
        """Return the weighted sum of the targets' losses."""
        return math.fsum(self.targets[n].weight * v for n, v in losses.items())

    def document(self) -> dict[str, Any]:
        """Return the section as the user writes it."""
        parts = _given(self)
        parts["sampler"] = {"name": self.sampler.name, **self.sampler.options}
        parts["stop"] = _given(self.stop)
        parts["enqueue"] = [dict(one) for one in self.enqueue]
        parts["parameters"] = {n: _given(own) for n, own in self.parameters.items()}
        parts["targets"] = {
            name: {k: v for k, v in _given(own).items() if k != "options"}
            | dict(own.options)
            for name, own in self.targets.items()
        }
        parts["confirm"] = _given(self.confirm) if self.confirm else {}
        return {key: part for key, part in parts.items() if part not in ({}, [])}

    def describe(self) -> Iterator[str]:
        """Yield what ``mpiens check`` says of it, a line for each thing to know."""
        order = "in order" if self.ordered else "in the order of arrival"
        flight = f"{self.in_flight} in flight" if self.in_flight else "all ranks busy"
        how = f"{self.mode}, {flight}, told {order}"
        yield f"calibration: {self.trials:,} trials, {how}"
        yield f"sampler: {self.sampler.name}"
        for name, domain in self.parameters.items():
            yield f"parameter {name}: {domain.describe()}"
        for name, target in self.targets.items():
            what = f"{target.output} against {target.column} of {target.data}"
            yield f"target {name}: {what}, {target.loss}, weight {target.weight:g}"

    def _check_enqueued(self) -> Iterator[Fault]:
        where = place("calibrate", "enqueue")
        for number, one in enumerate(self.enqueue):
            for name, value in one.items():
                domain = self.parameters.get(name)
                if domain is None:
                    hint = nearest(name, self.parameters)
                    text = f"{name!r} of entry {number} is not calibrated{hint}"
                    yield Fault(where, text)
                elif not any(domain.faults("")) and not domain.holds(value):
                    text = f"{name} = {value!r} of entry {number} is not within "
                    yield Fault(where, f"{text}{domain.describe()}")


def _is_same(one: Any, other: Any) -> bool:
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _given(section: Any) -> dict[str, Any]:
    return {
        f.name: list(value) if isinstance(value, tuple) else value
        for f in dataclasses.fields(section)
        if (value := getattr(section, f.name)) is not None
    }
