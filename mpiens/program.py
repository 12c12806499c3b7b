"""An external program as a model: its fields, its folder, and how it ended."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import resource
import secrets
import select
import shlex
import shutil
import signal
import socket
import string
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mpiens.child import adopt_orphans, children, die_with, end_children, has_ended
from mpiens.extract import CAPTURED, extract
from mpiens.fault import Fault, nearest, place
from mpiens.spec import STANDARD_OUTPUT, Spec, to_text

# known once a task begins
_LATE = ("seed", "replicate", "workdir", "shared", "prepared")
FIELDS = ("scenario", "folder", *_LATE)
_COMMAND = place("model", "command")
SAID = 8 << 10  # bytes kept of what a program says on standard error
LOOK_SECONDS = 0.05  # a program may end while what it started still holds its pipe
_TOKEN = secrets.token_hex(4)  # a rank's own: it tells the folders of its runners


class ProgramError(Exception):
    """A task of a program failed: a sentence, and the end of what it said."""

    def __init__(self, text: str, said: str = "", *, stray: bool = False) -> None:
        super().__init__(text)
        self.said = said
        self.stray = stray  # it was killed, by whoever


class Text:
    """A text with fields in braces, such as ``--beta {beta:.3f}``.

    Raises ValueError where it cannot be one.
    """

    def __init__(self, text: str) -> None:
        try:
            self._parts = [*string.Formatter().parse(text)]
        except ValueError as error:
            text = f"{error}; write {{{{ and }}}} for braces that are no field"
            raise ValueError(text) from None
        for _, name, form, conversion in self._parts:
            if name is not None and (not name.isidentifier() or conversion):
                way = "a field is {name} or {name:format}, and {{ and }} are braces"
                raise ValueError(f"{{{name}}} is no field: {way}")
            if form and "{" in form:
                raise ValueError(f"the format of {{{name}}} cannot have fields itself")

    @property
    def names(self) -> list[str]:
        """The fields, in order, each once."""
        return [*dict.fromkeys(name for _, name, _, _ in self._parts if name)]

    def fill(self, values: Mapping[str, Any]) -> str:
        """Return the text with its fields filled.

        Raises ValueError where a format does not go with its value.
        """
        filled = []
        for literal, name, form, _ in self._parts:
            filled.append(literal)
            if name is not None:
                value = values[name]
                try:
                    filled.append(format(value, form) if form else write(value))
                except (TypeError, ValueError) as error:
                    text = f"{{{name}:{form}}} does not go with {value!r}: {error}"
                    raise ValueError(text) from None
        return "".join(filled)


def write(value: Any) -> str:
    """Write a parameter's value for a program: text bare, numbers to the last bit."""
    if isinstance(value, str):
        return value
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return repr(value) if isinstance(value, float) else to_text(value)


class Program:
    """A program as a callable model: one task in a folder of its own.

    The folder is removed when the task has succeeded, and kept when it has failed.
    Raises ProgramError where the task failed.
    """

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._words = [Text(word) for word in spec.model.command]
        self._stdin = None if spec.model.stdin is None else Text(spec.model.stdin)
        files = spec.model.files
        self._files = {n: Text(_template(spec, files[n])) for n in files}
        self._index = {s.name: i for i, s in enumerate(spec.scenarios)}
        reads = spec.model.read.values()
        self._captures = any(read.file == STANDARD_OUTPUT for read in reads)
        adopt_orphans()  # so that nothing of a task outlives it

    def __call__(
        self,
        /,
        *,
        seed: int,
        scenario: str,
        replicate: int,
        shared: Mapping[str, int] | None,
        prepared: Any = None,
        **parameters: Any,
    ) -> dict[str, Any]:
        """Run the program once and return what was read of its files.

        ``shared`` holds descriptors of files in memory, by their names in the folder.
        """
        task = self._spec.number(self._index[scenario], replicate)
        folder = folder_of(task)
        values = parameters | {
            "seed": seed,
            "scenario": scenario,
            "replicate": replicate,
            "workdir": str(folder),
            "folder": self._spec.folder,
            "prepared": prepared,
            "shared": _shared_path(folder, shared or {}),
        }
        began = time.monotonic()
        try:
            words = [word.fill(values) for word in self._words]
            words[0] = find_program(words[0], self._spec.folder)
            self._furnish(folder, values, shared or {})
            code, said = self._run(words, folder)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            text = f"the program cannot be started: {error}{tell_kept(task)}"
            raise ProgramError(text) from None
        if code != 0:
            how = f"{_tell_end(code)} after {time.monotonic() - began:.3g} s"
            text = f"the program {how}: {shlex.join(words)}{tell_kept(task)}"
            if (limit := self._spec.limits.task_memory) is not None:
                text += f"; it may allocate task_memory = {limit} bytes"
            stray = -code in (signal.SIGKILL, signal.SIGTERM)
            raise ProgramError(text, said.decode(errors="replace"), stray=stray)
        try:
            outputs = extract(self._spec, folder)
        except (OSError, ValueError) as error:
            text = f"{error}; the program was {shlex.join(words)}{tell_kept(task)}"
            raise ProgramError(text, said.decode(errors="replace")) from None
        shutil.rmtree(folder, ignore_errors=True)
        return outputs

    def _furnish(
        self, folder: Path, values: Mapping[str, Any], shared: Mapping[str, int]
    ) -> None:
        """Make a task's folder, with all that the program is to find there."""
        shutil.rmtree(folder, ignore_errors=True)  # an earlier attempt's
        folder.mkdir(mode=0o700)
        for name, file in shared.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.symlink_to(f"/proc/{os.getpid()}/fd/{file}")
        for name, text in self._files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.fill(values), encoding="utf-8")
        if self._stdin is not None:
            (folder / "stdin").write_text(self._stdin.fill(values), encoding="utf-8")

    def _run(self, words: list[str], folder: Path) -> tuple[int, bytes]:
        """Run a command to its end; return its exit code and its last words."""
        others = children()
        with ExitStack() as stack:
            stdin: Any = subprocess.DEVNULL
            stdout: Any = None  # the runner's, which nobody reads but for failures
            if self._stdin is not None:
                stdin = stack.enter_context((folder / "stdin").open("rb"))
            if self._captures:
                stdout = stack.enter_context((folder / CAPTURED).open("wb"))
            begin = partial(_begin_child, os.getpid(), self._spec.limits.task_memory)
            # no lock that a thread may hold at the fork is taken in the child: of
            # runners at most one thread beside this one lives, and it only sleeps and
            # looks into /proc
            process = subprocess.Popen(
                words,
                cwd=folder,
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.PIPE,
                preexec_fn=begin,  # noqa: PLW1509
            )
        try:
            return _listen(process, others)
        finally:
            end_children(others)


def _begin_child(parent: int, memory: int | None) -> None:
    """What a program's process does before it becomes the program."""
    die_with(parent)
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


def _listen(process: subprocess.Popen[bytes], others: set[int]) -> tuple[int, bytes]:
    """Wait for a program's end, and pass on what it says on standard error.

    Returns its exit code, or minus its signal, and the last of what it said.
    """
    said = bytearray()
    if process.stderr is None:
        raise RuntimeError("a program's standard error is always read")
    with process.stderr as pipe:
        end = pipe.fileno()
        more = True
        while more and not has_ended(process.pid):
            if select.select([end], [], [], LOOK_SECONDS)[0]:
                more = _pass_on(end, said)
        _, status = os.waitpid(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        end_children(others)  # or what the program left might speak without end
        os.set_blocking(end, False)
        with suppress(BlockingIOError):
            while more:
                more = _pass_on(end, said)
    return process.returncode, bytes(said)


def _pass_on(end: int, said: bytearray) -> bool:
    """Read a part of what a program says; whether there may be more."""
    part = os.read(end, 1 << 16)
    said += part
    del said[:-SAID]
    with suppress(OSError):
        os.write(2, part)
    return bool(part)


def _tell_end(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = f"signal {-code}"
    with suppress(ValueError):  # real-time signals have no name
        name = signal.Signals(-code).name
    return f"was ended by {name}"


def folder_of(task: int) -> Path:
    """Return the folder of a task: the same for every runner of this rank."""
    return Path(tempfile.gettempdir(), f"mpiens-{_TOKEN}-task-{task}")


def tell_kept(task: int) -> str:
    """Say where the folder of a task is kept whose runner was ended, if it is."""
    folder = folder_of(task)
    host = socket.gethostname()
    return f"; its folder is kept: {folder} on {host}" if folder.is_dir() else ""


def forget(task: int) -> None:
    """Remove the folder of a task that was given up."""
    shutil.rmtree(folder_of(task), ignore_errors=True)


def find_program(word: str, folder: str) -> str:
    """Return the path of a command; ValueError, in a sentence, where there is none.

    With a slash it is relative to the folder of the spec, else it is on the PATH.
    """
    beside = Path(folder, word)
    if "/" not in word:
        if (found := shutil.which(word)) is not None:
            return found
        hint = f"; write ./{word} for the one beside the spec" * beside.is_file()
        raise ValueError(f"there is no {word!r} on the PATH{hint}")
    if not beside.is_file():
        raise ValueError(f"there is no program {beside}")
    if not os.access(beside, os.X_OK):
        raise ValueError(f"{beside} cannot be executed; chmod +x may do")
    return str(beside)


# What can be known of a program before it runs


@dataclass(frozen=True)
class Inspection:
    """What a program takes, what tells its code, and all that is wrong with it."""

    parameters: tuple[str, ...]  # its fields, but for those that mpiens fills itself
    code: bytes
    faults: list[Fault]


def inspect(spec: Spec) -> Inspection:
    """Look at the program of a spec, with all that its fields may become."""
    faults: list[Fault] = []
    texts: list[tuple[str, Text]] = []
    sources: list[str] = []
    for where, name, source in _texts(spec):
        try:
            sources.append(source if name is None else _template(spec, source))
            texts.append((where, Text(sources[-1])))
        except ValueError as error:
            faults.append(Fault(where, str(error)))
    fields = tuple(dict.fromkeys(name for _, text in texts for name in text.names))
    code = hashlib.sha256(json.dumps([*spec.model.files, *sources]).encode())
    for where, text in texts:
        faults += _check_fields(spec, where, text)
    if not faults:
        faults += _check_command(spec, [t for w, t in texts if w == _COMMAND], code)
        # with a text that cannot be read it is not known what is used
        faults += _check_use(spec, fields)
    parameters = tuple(name for name in fields if name not in FIELDS)
    return Inspection(parameters, code.digest(), [*dict.fromkeys(faults)])


def _texts(spec: Spec) -> Iterator[tuple[str, str | None, str]]:
    """Yield (place, file to be made or None, text or the name of its template)."""
    for word in spec.model.command:
        yield _COMMAND, None, word
    if spec.model.stdin is not None:
        yield place("model", "stdin"), None, spec.model.stdin
    for name, source in spec.model.files.items():
        yield place("model", "files", name), name, source


def _template(spec: Spec, source: str) -> str:
    """Return the text of a template; ValueError where there is none."""
    try:
        return Path(spec.folder, source).read_text(encoding="utf-8")
    except OSError as error:
        text = f"the template {source!r} cannot be read: {error.strerror}"
        raise ValueError(text) from None
    except UnicodeDecodeError:
        raise ValueError(f"the template {source!r} is not UTF-8") from None


def _known(spec: Spec, scenario: int) -> dict[str, Any]:
    """Return what fields may become in a scenario; what tasks know is stood in for."""
    own = spec.scenarios[scenario]
    late = {"seed": 0, "replicate": 0, **dict.fromkeys(_LATE[2:], "")}
    sampled = _stand_ins(spec)
    return {
        **sampled,
        **own.parameters,
        "scenario": own.name,
        "folder": spec.folder,
        **late,
    }


def _stand_ins(spec: Spec) -> dict[str, Any]:
    """Return a value for every parameter that a calibration's trials are given."""
    domains = spec.calibrate.parameters if spec.calibrate else {}
    return {name: domain.example for name, domain in domains.items()}


def _check_fields(spec: Spec, where: str, text: Text) -> Iterator[Fault]:
    """Yield fields that nothing fills, or not in all scenarios, or not as they say."""
    parameters = {name for s in spec.scenarios for name in s.parameters}
    parameters |= {*spec.calibrated}
    for name in text.names:
        if name not in parameters | {*FIELDS}:
            hint = nearest(name, [*sorted(parameters), *FIELDS])
            yield Fault(where, f"{{{name}}} is no parameter and no field{hint}")
            return
        for scenario in spec.scenarios:
            if name in parameters - {*scenario.parameters, *spec.calibrated}:
                way = "give it in [parameters]"
                lacks = f"{{{name}}} is what scenario {scenario.name!r} lacks"
                yield Fault(where, f"{lacks}; {way}")
                return
    try:
        for index in range(len(spec.scenarios)):
            text.fill(_known(spec, index))
    except ValueError as error:
        yield Fault(where, str(error))


def _check_command(spec: Spec, words: list[Text], code: Any) -> Iterator[Fault]:
    """Yield commands that are not there; those that are make part of the code."""
    if {*words[0].names} & {*_LATE}:
        return
    found: dict[str, None] = {}
    for index in range(len(spec.scenarios)):
        filled = [word.fill(_known(spec, index)) for word in words]
        try:
            path = find_program(filled[0], spec.folder)
        except ValueError as error:
            yield Fault(_COMMAND, str(error))
            return
        inside = (w for w in filled[1:] if Path(w).is_relative_to(spec.folder))
        if Path(path).is_relative_to(spec.folder):
            found[path] = None
        elif script := next(filter(_is_file, inside), None):
            found[script] = None  # which an interpreter runs
    for path in found:
        code.update(Path(path).read_bytes())


def _is_file(word: str) -> bool:
    return Path(word).is_file()


def _check_use(spec: Spec, fields: tuple[str, ...]) -> Iterator[Fault]:
    """Yield what is given and used by nothing."""
    used = ", ".join(f"{{{name}}}" for name in fields) or "none"
    for where, key in spec.given():
        if key not in fields:
            text = f"no field of the program uses it; its fields are {used}"
            yield Fault(where, f"{text}{nearest(key, fields)}")
    if spec.shared is not None and "shared" not in fields:
        text = "is not used: no field {shared} tells the program where the data lies"
        yield Fault(place("shared", "loader"), text)
    if spec.shared is None and "shared" in fields:
        text = "{shared} is not there: no [shared] loader makes it"
        yield Fault(_COMMAND, text)
    if spec.prepare is None and "prepared" in fields:
        yield Fault(_COMMAND, "{prepared} is not there: no [prepare] makes it")


def _shared_path(folder: Path, shared: Mapping[str, int]) -> str:
    """Return what {shared} is: the one file, or the folder of all of them."""
    return str(folder / next(iter(shared), "").partition("/")[0])
