"""The user's simulator: finding it, checking its signature, calling it for one task."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import pickle
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mpiens import generators, program
from mpiens.expression import Expression
from mpiens.fault import Fault, SpecError, nearest, place
from mpiens.program import Program, ProgramError
from mpiens.spec import INJECTED, Scenario, Shared, Spec, to_text
from mpiens.streams import Stream
from mpiens.trial import Given

Function = Callable[..., Any]
Call = Callable[[int, Stream], Any]
"""What runs a task: given its replicate and its stream."""
_REDUCE = ("shared", "scenario", "replicate")  # its numbers are drawn already
KEYWORD = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes, and which code it is; all that ranks need to be told."""

    function: str
    names: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    anything: bool = False  # it takes **keywords
    code: str = ""  # SHA-256 of the sources of model, reduce, loader, and prepare
    aggregate_code: str = ""
    target_code: str = ""


def find(reference: str, folder: str, where: str) -> Function:
    """Return the function that ``file.py:name`` or ``package.module:name`` names.

    Raises SpecError, at the given place of the spec, where there is none.
    """
    source, name = reference.split(":")
    if folder not in sys.path:  # so that a model can import what lies beside it
        sys.path.insert(0, folder)
    try:
        module = _import_file(Path(folder), source)
    except (Exception, SystemExit) as error:
        raise SpecError([Fault(where, _tell(reference, error))]) from error
    function: Any = module
    for part in name.split("."):
        function = getattr(function, part, None)
    if not callable(function):
        known = [n for n, v in vars(module).items() if callable(v)]
        text = f"{reference!r}: {source} has no function {name}{nearest(name, known)}"
        raise SpecError([Fault(where, text)])
    found: Function = function
    return found


def inspect_model(spec: Spec) -> Signature:
    """Import the model and return its signature; SpecError with all its faults."""
    references = {
        place("ensemble", "model"): spec.ensemble.model,
        place("ensemble", "reduce"): spec.ensemble.reduce,
        place("shared", "loader"): spec.shared.loader if spec.shared else None,
        place("prepare", "call"): spec.prepare.call if spec.prepare else None,
    }
    faults: list[Fault] = []
    functions: list[Function | None] = []
    sources = []
    for where, reference in references.items():
        try:
            functions.append(find(reference, spec.folder, where) if reference else None)
            sources.append(read_source(reference, spec.folder) if reference else b"")
        except SpecError as error:
            faults += error.faults
            functions.append(None)
    function, reduce, *_ = functions
    if reduce is not None:
        faults += _check_reduce(reduce, place("ensemble", "reduce"))
    if spec.model.command:
        looked = program.inspect(spec)
        faults += looked.faults
        code = hashlib.sha256(b"".join([*sources, looked.code])).hexdigest()
        names = looked.parameters
        signature = Signature(spec.simulator, names, names, code=code)
    elif function is not None:
        code = hashlib.sha256(b"".join(sources)).hexdigest()
        signature = _read_signature(spec.simulator, function, code)
        faults += _check_signature(spec, signature)
    else:
        raise SpecError(faults)
    try:
        hint_costs(spec, fill_parameters(spec, signature))
    except SpecError as error:
        faults += error.faults
    if faults:
        raise SpecError(faults)
    return signature


def fill_parameters(spec: Spec, signature: Signature) -> dict[str, tuple[Any, ...]]:
    """Return every parameter over the scenarios, the signature's defaults included.

    Those that a calibration's trials are given are None.
    """
    names = [n for n in signature.names if n not in INJECTED]
    names += [n for n in spec.calibrated if n not in names]
    for scenario in spec.scenarios:
        names += [n for n in scenario.parameters if n not in names]
    return {
        name: tuple(
            scenario.parameters.get(name, signature.defaults.get(name))
            if name not in spec.calibrated
            else None
            for scenario in spec.scenarios
        )
        for name in names
    }


def hint_costs(
    spec: Spec, parameters: Mapping[str, tuple[Any, ...]]
) -> list[float] | None:
    """Return what a task of each scenario costs by the user's hint, or None.

    Raises SpecError where the hint has no value for some scenario.
    """
    if spec.limits.cost is None:
        return None
    expression = Expression(spec.limits.cost)
    where = place("limits", "cost")
    if unknown := sorted(expression.names - parameters.keys()):
        text = f"{unknown[0]!r} is no parameter{nearest(unknown[0], parameters)}"
        raise SpecError([Fault(where, text)])
    try:
        return [
            expression.value({name: values[i] for name, values in parameters.items()})
            for i in range(len(spec.scenarios))
        ]
    except ValueError as error:
        raise SpecError([Fault(where, str(error))]) from error


def load(shared: Shared | None, folder: str) -> Any:
    """Call the loader of the shared data; SpecError where it fails."""
    if shared is None:
        return None
    where = place("shared", "loader")
    function = find(shared.loader, folder, where)
    try:
        return function(**shared.kwargs)
    except (Exception, SystemExit) as error:
        fault = Fault(where, _tell(shared.loader, error))
        raise SpecError([fault]) from error


class Model:
    """The model of a spec, ready to be called for one task after another.

    ``shared`` makes the shared data; it is called once the modules are imported that
    may define its classes.
    """

    def __init__(self, spec: Spec, shared: Callable[[], Any]) -> None:
        if spec.model.command:
            self._function: Function = Program(spec)
        else:
            self._function = find(spec.simulator, spec.folder, "[ensemble] model")
        self._takes = _injected(self._function)
        self._reduce: Function | None = None
        self._reduce_takes: frozenset[str] = frozenset()
        if spec.ensemble.reduce is not None:
            where = "[ensemble] reduce"
            self._reduce = find(spec.ensemble.reduce, spec.folder, where)
            self._reduce_takes = _injected(self._reduce) & {*_REDUCE}
        if spec.shared is not None and not spec.model.command:
            find(spec.shared.loader, spec.folder, "[shared] loader")
        self._spec = spec
        self._shared = shared()

    def offer(self, scenario: Scenario, stream: Stream) -> dict[str, Callable[[], Any]]:
        """Return what a step's function gets where it names it; seed what is global."""
        generators.seed(stream.seed)
        return {
            "rng": stream.rng,
            "seed": lambda: stream.seed,
            "shared": lambda: self._shared,
            "scenario": lambda: scenario.name,
        }

    def bind(self, index: int, given: bytes = b"") -> Call:
        """Return what runs the tasks of a scenario: a function of replicate and stream.

        It returns what the model returned, reduced; what is global it leaves unseeded.
        What its scenario's step has prepared comes pickled: every task gets its own;
        so does what a trial of a calibration is given.
        """
        scenario = self._spec.scenarios[index]
        parameters, prepared = scenario.parameters, given
        if self._spec.calibrate is not None:
            trial: Given = pickle.loads(given)
            parameters, prepared = trial.fill(scenario), b""
        makers: dict[str, Call] = {
            "rng": lambda _, stream: stream.rng(),
            "seed": lambda _, stream: stream.seed,
            "replicate": lambda replicate, _: replicate,
            "prepared": lambda _, __: pickle.loads(prepared) if prepared else None,
        }
        constant = {"shared": self._shared, "scenario": scenario.name}
        fixed = {n: v for n, v in constant.items() if n in self._takes}
        varying = [(n, makers[n]) for n in sorted(self._takes - fixed.keys())]
        reduce_fixed = {n: v for n, v in constant.items() if n in self._reduce_takes}
        rest = sorted(self._reduce_takes - reduce_fixed.keys())
        reduce_varying = [(n, makers[n]) for n in rest]
        function = partial(self._function, **parameters, **fixed)
        reduce = self._reduce and partial(self._reduce, **reduce_fixed)

        def call(replicate: int, stream: Stream) -> Any:
            extras = {name: make(replicate, stream) for name, make in varying}
            result = function(**extras)
            if reduce is None:
                return result
            extras = {name: make(replicate, stream) for name, make in reduce_varying}
            return reduce(result, **extras)

        if reduce is None and [*self._takes - fixed.keys()] == ["rng"]:
            return lambda _, stream: function(rng=stream.rng())  # the same, but sooner
        return call

    def run(self, task: int, stream: Stream, given: bytes = b"") -> Any:
        """Run one task under its stream and return what the model returned, reduced."""
        index, replicate = self._spec.locate(task)
        generators.seed(stream.seed)
        return self.bind(index, given)(replicate, stream)


def format_failure(error: BaseException) -> str:
    """Return the traceback of a model's fault without the frames of mpiens."""
    if isinstance(error, ProgramError):  # which says it all itself
        return f"{error}\n"
    trace = traceback.TracebackException.from_exception(error)
    own = str(Path(__file__).parent)
    while trace.stack and trace.stack[0].filename.startswith(own):
        trace.stack.pop(0)
    return "".join(trace.format())


def _import_file(folder: Path, source: str) -> Any:
    """Import a module by name, or a file under its stem as a script beside it would."""
    if not source.endswith(".py"):
        return importlib.import_module(source)
    path = (folder / source).resolve()
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    description = importlib.util.spec_from_file_location(path.stem, path)
    if description is None or description.loader is None or not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    module = importlib.util.module_from_spec(description)
    sys.modules[path.stem] = module  # so that what it defines can be unpickled
    try:
        description.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module


def _tell(reference: str, error: BaseException) -> str:
    """Return one sentence on a user's exception: type, text, where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = str(Path(__file__).parent)
    theirs = [f for f in frames if not f.filename.startswith((own, "<frozen"))]
    at = f" (at {theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""
    text = " ".join(str(error).split())
    return f"{reference!r} raised {type(error).__name__}: {text}{at}"


def read_source(reference: str, folder: str) -> bytes:
    """Return the text of the file that a reference names, to tell when it changes."""
    source = reference.split(":", maxsplit=1)[0]
    if source.endswith(".py"):
        return (Path(folder) / source).read_bytes()
    file = getattr(sys.modules[source], "__file__", None)
    return Path(file).read_bytes() if file else source.encode()


def _injected(function: Function) -> frozenset[str]:
    """Return which of all that mpiens itself passes a function names."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return frozenset()
    return frozenset(p.name for p in parameters if p.kind in KEYWORD) & {*INJECTED}


def _read_signature(reference: str, function: Function, code: str) -> Signature:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some compiled functions have none to show
        return Signature(reference, anything=True, code=code)
    named = [p for p in parameters if p.kind in KEYWORD]
    return Signature(
        function=reference,
        names=tuple(p.name for p in named),
        required=tuple(
            p.name
            for p in parameters
            if p.default is p.empty
            and p.kind in (*KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
        ),
        defaults={
            p.name: _plain(p.default)
            for p in named
            if p.default is not p.empty and p.name not in INJECTED
        },
        anything=any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters),
        code=code,
    )


def _check_reduce(reduce: Function, where: str) -> Iterator[Fault]:
    """Yield a fault where reduce cannot be called as a runner calls it."""
    try:
        signature = inspect.signature(reduce)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(None, **dict.fromkeys(_injected(reduce) & {*_REDUCE}))
    except TypeError as error:
        names = ", ".join(_REDUCE)
        text = f"takes the model's result, and by name no more than {names} ({error})"
        yield Fault(where, text)


def _plain(value: Any) -> Any:
    """Return a default as it can be stored: a number as it is, all else as text."""
    if isinstance(value, np.generic):
        value = value.item()
    # an object's address differs from process to process, and says nothing
    return json.loads(re.sub(r" at 0x[0-9a-f]+", "", to_text(value)))


def _check_signature(spec: Spec, signature: Signature) -> Iterator[Fault]:
    """Yield parameters that the model does not take, or that it lacks."""
    name = signature.function.rpartition(":")[2]
    takes = [n for n in signature.names if n not in INJECTED]
    taken = ", ".join(takes) or "none"
    if "prepared" in signature.required and spec.prepare is None:
        text = f"{name}() needs prepared, and there is no [prepare] to make it"
        yield Fault(place("ensemble", "model"), text)
    for where, key in spec.given():
        if key not in takes and not signature.anything:
            hint = nearest(key, takes)
            text = f"{name}() takes no such parameter; it takes {taken}{hint}"
            yield Fault(where, text)
    for key in signature.required:
        known = {*INJECTED, *spec.calibrated}
        lacking = [s.name for s in spec.scenarios if key not in s.parameters]
        if key not in known and lacking:
            text = (
                f"{name}() needs {key}, which scenario {lacking[0]!r} lacks; "
                f"give it in [parameters]"
            )
            yield Fault(place("parameters"), text)
