"""The study: Optuna's side of a calibration, and the only module that knows Optuna.

It is imported on the root alone, and within functions.  Whatever a storage or a sampler
raises becomes a StudyError, an OSError: what is finished is kept, and the same command
goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import json
import os
import re
import socket
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpiens.calibrate import Calibrate, Domain
from mpiens.fault import Fault, SpecError, nearest, place
from mpiens.spec import Spec
from mpiens.streams import hash_name

SUFFIX = ".study"
OPEN_TRIES = 4  # jobs that begin at the same moment make the tables of one database
_MARK = "mpiens"  # the user attribute that says whose a trial is: file and stream
_QUEUED = "mpiens_enqueued"  # that of a point which the spec enqueues: its place there
_SAMPLERS = {"CMA-ES": "CmaEs", "NSGA-II": "NSGAII", "NSGA-III": "NSGAIII"}
_NEEDS = {"CmaEs": "cmaes", "GP": "torch", "QMC": "scipy"}  # asked for late by Optuna
_OWN_POINTS = ("Grid", "BruteForce", "PartialFixed", "Base")


class StudyError(OSError):
    """The study's storage, or its sampler, has failed."""

    def __init__(self, where: str, error: BaseException) -> None:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        super().__init__(f"{type(error).__name__}: {_hide(lines[0])}")
        self.filename = where


@dataclass(frozen=True, slots=True)
class Asked:
    """A trial that was asked for: Optuna's number, its stream, and its parameters."""

    number: int
    stream: int
    parameters: Mapping[str, Any]


class Study:
    """The study that a result file's trials belong to.

    By default that is a journal of Optuna's beside the file.  With a ``storage`` in the
    spec it may be shared with the files of other jobs; then a trial's stream is its
    number in the study, so that no two jobs meet the same one.  ``owner`` marks the
    trials of this file among others.
    """

    def __init__(self, spec: Spec, file: Path, name: str, owner: str) -> None:
        if spec.calibrate is None:
            raise RuntimeError("there is no [calibrate]")
        self._calibrate: Calibrate = spec.calibrate
        self._seed = spec.ensemble.seed
        self._path = place_of(file)
        self._folder = spec.folder
        self._owner = owner
        self._stream: int | None = None  # of the trial that is being asked for
        self._cut_short: list[Any] = []  # trials whose asking was
        self.where = f"the study {_hide(self._calibrate.storage or str(self._path))}"
        with self._guard():
            self._domains = _distributions(self._calibrate)
            self._open(self._calibrate.study or name)

    @property
    def shared(self) -> bool:
        """Whether other files' trials may be in it."""
        return self._calibrate.storage is not None

    def adopt(self, known: Collection[int]) -> None:
        """Find this file's trials that it does not know: asking was cut short there.

        The next ones asked for are these.
        """
        with self._guard():
            self._cut_short = [
                trial
                for trial in self._trials()
                if trial.state.name == "RUNNING"
                and trial.number not in known
                and (self._is_own(trial) or not self.shared)
            ]

    def is_full(self) -> bool:
        """Whether the study, with all its jobs, has as many trials as are wanted."""
        if self._cut_short:
            return False
        with self._guard():
            asked = [t for t in self._trials() if t.state.name != "WAITING"]
            return len(asked) >= self._calibrate.trials

    def ask(self, stream: int) -> Asked:
        """Ask for a trial; in a shared study its stream is the trial's number.

        The sampler is made anew, seeded by (seed, stream): what it proposes follows
        from the study's history and that alone.
        """
        self._stream = None if self.shared else stream
        with self._guard():
            if self._cut_short:
                number = self._finish_asking(self._cut_short.pop(0))
            else:
                number = self._study.ask(self._domains).number
            frozen = self._trials()[number]
        return Asked(frozen.number, self._stream_of(frozen), self._read(frozen))

    def tell(self, number: int, losses: Mapping[str, float] | None) -> None:
        """Tell the losses of a trial's targets, or that it failed and has none.

        What was told already stays.
        """
        with self._guard():
            self._end(number, losses)

    def renew(
        self,
        asked: Asked,
        losses: Mapping[str, float] | None,
        *,
        scored: bool,
        ended: bool,
    ) -> int:
        """Return the number under which a trial of the file stands in the study.

        That is its own where the study has it as the file does: of one that is scored
        it may know the end already, and of one that has ended it is told.  Else it is
        added: a study that was lost is made of the file, and a trial that somebody else
        called failed while it ran is begun again, under its old stream.
        """
        with self._guard():
            trials = self._trials()
            if asked.number < len(trials):
                known = trials[asked.number]
                same = known.params == self._inner(asked.parameters)
                running = known.state.name == "RUNNING"
                if same and running and ended:
                    self._end(asked.number, losses)
                if same and (running or scored):
                    return asked.number
            return self._add(asked, losses, ended)

    def _finish_asking(self, begun: Any) -> int:
        """Ask to the end for a trial of which asking was cut short.

        Parameters that it has already are sampled again, in vain, so that the others
        are what they would have been.
        """
        trial = self._optuna.Trial(self._study, begun._trial_id)
        known = begun.params.keys() - begun.system_attrs.get("fixed_params", {}).keys()
        sampler = self._study.sampler
        for name, domain in self._domains.items():
            if name in known - trial.relative_params.keys() and not domain.single():
                sampler.sample_independent(self._study, begun, name, domain)
            trial._suggest(name, domain)
        return int(trial.number)

    def _end(self, number: int, losses: Mapping[str, float] | None) -> None:
        state = self._optuna.trial.TrialState.FAIL if losses is None else None
        values = None if losses is None else self._values(losses)
        self._study.tell(number, values, state=state, skip_if_finished=True)

    def _values(self, losses: Mapping[str, float]) -> list[float]:
        """Return what the sampler is to minimise."""
        if self._calibrate.objectives == "sum":
            return [self._calibrate.total(losses)]
        targets = self._calibrate.targets
        return [targets[name].weight * losses[name] for name in targets]

    def _add(
        self, asked: Asked, losses: Mapping[str, float] | None, ended: bool
    ) -> int:
        """Add a trial to the study that is in the file; return its number."""
        states = self._optuna.trial.TrialState
        state = states.RUNNING
        if ended:
            state = states.FAIL if losses is None else states.COMPLETE
        mark = {"file": self._owner, "stream": asked.stream, "again": asked.number}
        added = self._optuna.trial.create_trial(
            state=state,
            values=self._values(losses) if ended and losses is not None else None,
            params=self._inner(asked.parameters),
            distributions=self._domains,
            user_attrs={_MARK: mark},
        )
        self._study.add_trial(added)
        mine = [t for t in self._trials() if t.user_attrs.get(_MARK) == mark]
        return int(mine[-1].number)

    def _open(self, name: str) -> None:
        import optuna  # noqa: PLC0415  (heavy, and the root's alone)

        self._optuna = optuna
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        for left in reversed(range(OPEN_TRIES)):
            try:
                self._study, created = self._create(name)
                break
            except Exception:
                if not left or not self.shared:
                    raise
                time.sleep(0.5)
        self._study.sampler = _make_seeded(self._calibrate, self._seed, self._begin)
        if created or not self.shared:
            self._enqueue()

    def _create(self, name: str) -> tuple[Any, bool]:
        """Return the study, and whether it is new."""
        storage = self._make_storage()
        several = self._calibrate.objectives == "targets"
        directions: list[Any] = ["minimize"] * (
            len(self._calibrate.targets) if several else 1
        )
        try:
            made = self._optuna.create_study(
                storage=storage, study_name=name, directions=directions
            )
        except self._optuna.exceptions.DuplicatedStudyError:
            loaded = self._optuna.load_study(storage=storage, study_name=name)
            return loaded, False
        return made, True

    def _make_storage(self) -> Any:
        storages = self._optuna.storages
        wanted = self._calibrate.storage
        if wanted is not None and "://" in wanted:
            url = _with_driver(os.path.expandvars(wanted))
            kwargs: dict[str, Any] = {"pool_pre_ping": True}
            if url.startswith("postgresql"):
                kwargs["connect_args"] = {"connect_timeout": 10}
            return storages.RDBStorage(url, engine_kwargs=kwargs)
        path = self._path if wanted is None else Path(self._folder) / wanted
        if wanted is None:  # the result file's lock is ours, and so is the journal
            path.with_name(path.name + ".lock").unlink(missing_ok=True)
            _cut_broken_lines(path)
            return storages.JournalStorage(_make_journal(path))
        backend = storages.journal.JournalFileBackend(str(path))
        return storages.JournalStorage(backend)

    def _enqueue(self) -> None:
        """Enqueue the points that the spec names, but for those that are in already."""
        queued = {t.user_attrs.get(_QUEUED) for t in self._trials()}
        for index, point in enumerate(self._calibrate.enqueue):
            if index not in queued:
                self._study.enqueue_trial(
                    self._inner(point), user_attrs={_QUEUED: index}
                )

    def _begin(self, study: Any, trial: Any) -> int:
        """Mark a trial that is about to be sampled as this file's; return its stream.

        That comes before all else, so that a trial whose asking is cut short is found.
        """
        mark = trial.user_attrs.get(_MARK)
        if mark is None:
            stream = trial.number if self._stream is None else self._stream
            mark = {"file": self._owner, "stream": stream}
            study._storage.set_trial_user_attr(trial._trial_id, _MARK, mark)
        self._stream = int(mark["stream"])
        return self._stream

    def _trials(self) -> list[Any]:
        trials: list[Any] = self._study.get_trials(deepcopy=False)
        return trials

    def _is_own(self, trial: Any) -> bool:
        mark = trial.user_attrs.get(_MARK)
        return mark is not None and mark["file"] == self._owner

    def _stream_of(self, trial: Any) -> int:
        return int(trial.user_attrs[_MARK]["stream"])

    def _inner(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        inner = self._calibrate.find_inner(parameters)
        return {_inner_name(self._calibrate, n): v for n, v in inner.items()}

    def _read(self, trial: Any) -> dict[str, Any]:
        return {
            name: domain.outwards(trial.params[_inner_name(self._calibrate, name)])
            for name, domain in self._calibrate.parameters.items()
        }

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Turn whatever a storage or a sampler raises into StudyError."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is experimental, and the like
            try:
                yield
            except StudyError:
                raise
            except Exception as error:
                raise StudyError(self.where, error) from error


def place_of(file: Path) -> Path:
    """Return where the journal of a result file's study lies."""
    return file.with_name(file.name + SUFFIX)


def make_owner(file: Path) -> str:
    """Return what marks a new file's trials: folders of nodes may be called alike."""
    told = f"{socket.gethostname()}:{file.absolute()}"
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def clear(file: Path) -> None:
    """Throw away the journal beside a result file."""
    place_of(file).unlink(missing_ok=True)


def find_faults(spec: Spec) -> Iterator[Fault]:
    """Yield what Optuna finds wrong with a calibration before it begins."""
    if spec.calibrate is None:
        return
    where = place("calibrate", "sampler")
    try:
        import optuna  # noqa: PLC0415  (heavy, and the root's alone)
    except ImportError as error:
        way = 'install it by pip install "mpiens[calibrate]"'
        yield Fault(place("calibrate"), f"needs optuna; {way} ({error})")
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if not any(spec.calibrate.faults()):  # which have been told
                _distributions(spec.calibrate)
            kind = _find_sampler(spec.calibrate.sampler.name, optuna)
            _make_sampler(kind, spec.calibrate.sampler.options, 0)
        except SpecError as error:
            yield from error.faults
        except Exception as error:  # each sampler has faults of its own
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            yield Fault(where, f"{spec.calibrate.sampler.name!r} is refused: {first}")
    name = spec.calibrate.sampler.name
    needed = _NEEDS.get(_shorten(name))
    if needed is not None and importlib.util.find_spec(needed) is None:
        text = f"{name!r} needs {needed}; install it by pip install {needed}"
        yield Fault(where, text)
    if "seed" in spec.calibrate.sampler.options:
        text = f"{name!r} is seeded by [ensemble] seed; leave its own seed out"
        yield Fault(where, text)


def derive_seed(seed: int, stream: int) -> int:
    """Return the seed of the sampler that proposes the trial of a stream."""
    key = (hash_name("ask"), stream)
    words = np.random.SeedSequence(seed, spawn_key=key).generate_state(1)
    return int(words[0])


def _distributions(calibrate: Calibrate) -> dict[str, Any]:
    """Return the domains of the parameters, by their names in the study."""
    own = calibrate.parameters
    return {_inner_name(calibrate, n): _distribution(own[n]) for n in own}


def _distribution(domain: Domain) -> Any:
    from optuna import distributions  # noqa: PLC0415

    if domain.choices is not None:
        return distributions.CategoricalDistribution(domain.choices)
    low, high = domain.ends
    if domain.scale == "integer":
        step = int(domain.step or 1)
        return distributions.IntDistribution(int(low), int(high), step=step)
    return distributions.FloatDistribution(
        domain.inwards(low),
        domain.inwards(high),
        log=domain.scale == "log",
        step=domain.step,
    )


def _inner_name(calibrate: Calibrate, name: str) -> str:
    """Return a parameter's name in the study, which says that it has its logit."""
    return f"logit({name})" if calibrate.parameters[name].scale == "logit" else name


def _find_sampler(name: str, optuna: Any) -> Any:
    """Return Optuna's class of a sampler's name; SpecError where there is none."""
    known = {
        n.removesuffix("Sampler"): kind
        for n, kind in vars(optuna.samplers).items()
        if n.endswith("Sampler") and not n.startswith(_OWN_POINTS)
    }
    short = _shorten(name)
    if short not in known:
        hint = nearest(name, [*known, *_SAMPLERS])
        text = f"{name!r} is no sampler of Optuna's that proposes points{hint}"
        raise SpecError([Fault(place("calibrate", "sampler"), text)])
    return known[short]


def _shorten(name: str) -> str:
    """Return a sampler's name as the one of Optuna's class begins."""
    return _SAMPLERS.get(name, name.removesuffix("Sampler"))


def _make_sampler(kind: Any, options: Mapping[str, Any], seed: int) -> Any:
    takes = inspect.signature(kind).parameters
    own = {"seed": seed} if "seed" in takes else {}
    return kind(**options, **own)


def _make_seeded(
    calibrate: Calibrate, seed: int, begin: Callable[[Any, Any], int]
) -> Any:
    """Return a sampler that is the wanted one, made anew and seeded at each ask.

    So a proposal follows from the study's history, the seed and the stream, and from no
    memory of a process.  Of a QMC sampler the sequence is one for the whole study, and
    the stream is the place in it.
    """
    import optuna  # noqa: PLC0415

    kind = _find_sampler(calibrate.sampler.name, optuna)
    options = calibrate.sampler.options
    constant = issubclass(kind, optuna.samplers.QMCSampler)

    class Seeded(optuna.samplers.BaseSampler):
        """The wanted sampler, made anew at each ask."""

        def __init__(self) -> None:
            self._inner = _make_sampler(kind, options, 0)

        def before_trial(self, study: Any, trial: Any) -> None:
            stream = begin(study, trial)
            own = derive_seed(seed, 0 if constant else stream)
            self._inner = _make_sampler(kind, options, own)
            if constant:
                self._inner._find_sample_id = lambda *_: stream
            self._inner.before_trial(study, trial)

        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            return self._inner.infer_relative_search_space(study, trial)

        def sample_relative(self, study: Any, trial: Any, space: Any) -> Any:
            return self._inner.sample_relative(study, trial, space)

        def sample_independent(self, study: Any, trial: Any, *rest: Any) -> Any:
            return self._inner.sample_independent(study, trial, *rest)

        def after_trial(self, study: Any, trial: Any, *rest: Any) -> None:
            self._inner.after_trial(study, trial, *rest)

    return Seeded()


def _with_driver(url: str) -> str:
    """Name the driver of PostgreSQL that is installed: SQLAlchemy's versions differ."""
    if not url.startswith("postgresql://"):
        return url
    for driver in ("psycopg", "psycopg2"):
        with contextlib.suppress(ImportError):
            __import__(driver)
            return url.replace("postgresql://", f"postgresql+{driver}://", 1)
    return url


def _hide(text: str) -> str:
    """Take passwords out of the URLs in a text."""
    return re.sub(r"(://[^:/@\s]*):[^@\s]*@", r"\1:***@", text)


def _make_journal(path: Path) -> Any:
    """Return a journal of one writer, which waits for no disk.

    What a power cut takes of it is made again of the result file.
    """
    from optuna.storages import journal  # noqa: PLC0415

    class Journal(journal.JournalFileBackend):
        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            lines = [json.dumps(log, separators=(",", ":")) + "\n" for log in logs]
            with path.open("a", encoding="utf-8") as file:
                file.writelines(lines)

    return Journal(str(path))


def _cut_broken_lines(path: Path) -> None:
    """Cut off all that is not whole lines, after a kill or a power cut."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        whole = 0
        for line in file:
            try:
                json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            whole += len(line)
        file.truncate(whole)
