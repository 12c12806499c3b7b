"""For notebooks and scripts: run an ensemble, and open its file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpiens.deadline import Deadline
from mpiens.fault import Fault, SpecError
from mpiens.request import Request
from mpiens.trouble import COMPLETE, SOME_FAILED


def open_file(file: str | os.PathLike[str]) -> Any:
    """Return a result file as an xarray.DataTree, with its coordinates.

    Groups are those of the file, such as ``tree["bands"]["infected"]`` with dimensions
    (scenario, level, day); the root has the coordinates, and the attributes say where
    it all comes from.  Arrays are read when they are used, so close the tree in the
    end.  Raises SpecError where there is no xarray, or no such file.
    """
    try:
        import xarray  # noqa: PLC0415  (heavy, and only who opens a file wants it)
    except ImportError as error:
        text = f'this needs xarray: pip install "mpiens[xarray]" ({error})'
        raise SpecError([Fault("", text)]) from error
    if not Path(file).exists():
        raise SpecError([Fault("", "there is no such file")], str(file))
    return xarray.open_datatree(file, engine="h5netcdf")


def run(
    spec: str | os.PathLike[str] | Mapping[str, Any],
    output: str | os.PathLike[str] | None = None,
    *,
    comm: Any = None,
    fresh: bool = False,
) -> Path:
    """Run an ensemble to its end, or go on with it, and return its file.

    ``spec`` is a TOML or JSON file, or the same keys as a mapping, whose paths are
    relative to the current folder; a mapping needs ``output``, and is written beside
    it, as what ``mpiens`` takes to go on.  ``comm`` is a communicator of mpi4py, all of
    whose ranks call this; without one this process runs all tasks, each in a process
    of its own kind, as ``mpiens`` does.

    Raises SpecError where the input is wrong, and RuntimeError where tasks are left
    to be run: the same call goes on.  Failed tasks are in the file.
    """
    from mpiens import ensemble, mpi  # noqa: PLC0415

    own = mpi.adopt(comm)
    if isinstance(spec, Mapping):
        if output is None:
            text = 'a spec that is no file needs one for its result: output="sweep.h5"'
            raise SpecError([Fault("", text)])
        path = Path(Path(output).stem + ".json")
        if own.rank == 0:
            path.write_text(json.dumps(spec, default=str, indent=1), encoding="utf-8")
    else:
        path = Path(spec)
    request = Request(path, None if output is None else Path(output), fresh=fresh)
    code = ensemble.run(own, request, Deadline())
    if code not in (COMPLETE, SOME_FAILED):
        raise RuntimeError(f"{request.file} is not complete: call this again to go on")
    return request.file
