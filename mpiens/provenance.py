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
from importlib import metadata
from pathlib import Path

from mpiens import __version__

PACKAGES = ("numpy", "h5py", "mpi4py")


def opening(spec: Path, folder: str, code: str) -> dict[str, str]:
    """Return the attributes that a file is begun with."""
    return {
        "Conventions": "CF-1.11",
        "title": f"mpiens ensemble of {spec.name}",
        "source": f"mpiens {__version__}",
        "spec_file": spec.name,
        "folder": folder,
        "model_code": code,
        "code_revision": _revision(folder),
        "command": shlex.join(sys.argv),
        "versions": json.dumps(_versions()),
        "created": _now(),
    }


def closing(seconds: float, ranks: int) -> dict[str, str | float | int]:
    """Return the attributes that a file is completed with."""
    return {
        "completed": _now(),
        "seconds": seconds,
        "ranks": ranks,
        "host": socket.gethostname(),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": platform.machine()}
    found["mpiens"] = __version__  # be it installed, or run as it lies
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _revision(folder: str) -> str:
    """Return the git revision of the model's folder, or nothing where it has none."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        git = ["git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=40"]
        answer = subprocess.run(
            git, capture_output=True, text=True, timeout=10, check=False
        )
        return answer.stdout.strip()
    return ""
