"""Where a result comes from: versions, code, command line, times."""

from __future__ import annotations

import contextlib
import datetime
import json
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from mpiens import __version__

Answer = TypeVar("Answer")
PACKAGES = ("numpy", "h5py", "mpi4py")


def opening(spec: Path, folder: str, code: str, revision: str) -> dict[str, str]:
    """Return the attributes that a file is begun with."""
    return {
        "Conventions": "CF-1.11",
        "title": f"mpiens ensemble of {spec.name}",
        "source": f"mpiens {__version__}",
        "spec_file": spec.name,
        "folder": folder,
        "model_code": code,
        "code_revision": revision,
        "command": shlex.join([_name_program(sys.argv[0]), *sys.argv[1:]]),
        "versions": json.dumps(_versions()),
        "created": _now(),
    }


def closing(
    seconds: float, ranks: int, dealt: float | None = None
) -> dict[str, str | float | int]:
    """Return the attributes that a file is completed with.

    Tasks were ``dealt`` and their rows written in so many of the ``seconds``.
    """
    more = {} if dealt is None else {"seconds_dealing": dealt}
    return {
        "completed": _now(),
        "seconds": seconds,
        "ranks": ranks,
        **more,
        "host": socket.gethostname(),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": platform.machine()}
    found["mpiens"] = __version__  # be it installed, or run as it lies
    for name in PACKAGES:
        module = sys.modules.get(name)  # those that run are loaded, and tell it sooner
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = getattr(module, "__version__", "") or metadata.version(name)
    return found


def describe() -> Iterator[str]:
    """Yield the versions that matter for a report of a bug, a line each."""
    yield f"mpiens {__version__}"
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    yield f"Python {platform.python_version()}, {system}"
    for name in (*PACKAGES, "scipy", "pydantic"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            yield f"{name} {metadata.version(name)}"


def _name_program(path: str) -> str:
    """Return what is typed to start us; a script of somebody else's is that."""
    return "mpiens" if Path(path).name in ("mpiens", "__main__.py") else path


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def find_revision(folder: str, meanwhile: Callable[[], Answer]) -> tuple[Answer, str]:
    """Return what ``meanwhile`` does, and the git revision of the model's folder.

    Git takes a while, and it is empty where there is none or the folder has none.
    """
    with contextlib.ExitStack() as stack:
        git = ["git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=40"]
        asked: subprocess.Popen[str] | None = None
        with contextlib.suppress(OSError):
            null, pipe = subprocess.DEVNULL, subprocess.PIPE
            asked = subprocess.Popen(
                git, stdin=null, stdout=pipe, stderr=null, text=True
            )
            stack.enter_context(asked)
            stack.callback(asked.kill)
        answer = meanwhile()
        revision = ""
        if asked is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                revision = asked.communicate(timeout=10)[0].strip()
        return answer, revision
