"""What a result file holds by its own account: layout, attributes, and where data lies.

Every dataset of fixed size is contiguous, so that it can be read and written at its
offset without HDF5.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from mpiens.fault import Fault, SpecError
from mpiens.layout import Joint, Layout, Series
from mpiens.reader import decode
from mpiens.row import Output, Row
from mpiens.shard import Shard

if TYPE_CHECKING:
    from mpiens.mpi import Comm

FORMAT = 2


@dataclass(frozen=True)
class Place:
    """Where the data of one dataset lies in the file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def extent(self) -> tuple[int, int]:
        """Where it begins, and how many bytes it has."""
        count = int(np.prod(self.shape, dtype=np.int64))
        return self.offset, count * self.dtype.itemsize


@dataclass(frozen=True)
class Contents:
    """What a file holds."""

    layout: Layout
    attributes: dict[str, Any]
    places: dict[str, Place]  # of datasets of fixed size, by path


def read_contents(path: Path) -> Contents:
    """Ask a file what it holds; SpecError where it is no result file of ours."""
    places: dict[str, Place] = {}

    def note(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and (place := find_place(item)):
            places[item.name] = place

    with open_file(path) as file:
        attributes: dict[str, Any] = dict(file.attrs)
        if attributes.get("mpiens_format") != FORMAT:
            text = "is no result file of this version of mpiens"
            raise SpecError([Fault("", text)], str(path))
        file.visititems(note)
        return Contents(_read_layout(file), attributes, places)


def find_place(item: h5py.Dataset) -> Place | None:
    """Return where a dataset lies, if its size is fixed."""
    offset = item.id.get_offset()
    if offset is None or item.dtype.kind == "O":
        return None
    return Place(int(offset), item.shape, item.dtype)


def describe(layout: Layout) -> dict[str, Any]:
    """Return the attributes from which the layout of a file is read."""
    told = {
        "mpiens_format": FORMAT,
        "spec": layout.spec.to_json(),
        "outputs": _write_outputs(layout.row.outputs),
        "parameter_names": json.dumps(list(layout.parameters)),
        **describe_extension(layout),
    }
    return told | ({"shard": str(layout.shard)} if layout.shard else {})


def describe_extension(layout: Layout) -> dict[str, Any]:
    """Return those that tell of what is not laid down at once."""
    return {
        "aggregates": _write_outputs(layout.aggregates),
        "joined": json.dumps([dataclasses.asdict(joint) for joint in layout.joints]),
    }


def open_file(path: Path, mode: str = "r", comm: Comm | None = None) -> h5py.File:
    """Open the file with HDF5, by all ranks of a communicator where one is given.

    Raises SpecError where it is no HDF5 file.
    """
    try:
        if comm is not None:
            return h5py.File(path, mode, driver="mpio", comm=comm.raw)
        return h5py.File(path, mode, locking=False)
    except FileNotFoundError:
        raise SpecError([Fault("", "there is no such file")], str(path)) from None
    except OSError as error:
        if error.errno:
            text = f"cannot be opened: {os.strerror(error.errno)}"
        else:
            text = "is no HDF5 file, or a damaged one; move it away or use --fresh"
        raise SpecError([Fault("", text)], str(path)) from None


def _read_layout(file: h5py.File) -> Layout:
    """Return the layout of a file: its spec, parameters and outputs."""
    folder = file.attrs.get("folder", "")
    reading = decode(file.attrs["spec"], f"{folder}/spec.json", is_json=True)
    spec = reading.require()
    outputs = _read_outputs(file.attrs["outputs"])
    aggregates = _read_outputs(file.attrs.get("aggregates", "[]"))
    parameters = {}
    for name, item in file.get("parameters", {}).items():
        text = h5py.check_string_dtype(item.dtype) is not None
        values = item.asstr()[:] if text else item[:]
        parameters[name] = tuple(json.loads(v) if text else v.item() for v in values)
    order = json.loads(file.attrs["parameter_names"])
    told = file.attrs.get("shard")
    shard = Shard.parse(told) if told else None
    own = {n: parameters[n] for n in order}
    observed = {
        name: Series(item.attrs["output"], item[...], item.attrs.get("scenario"))
        for name, item in file.get("observed", {}).items()
    }
    joints = tuple(Joint(**own) for own in json.loads(file.attrs.get("joined", "[]")))
    return Layout(spec, own, Row(outputs), shard, aggregates, joints, observed)


def _write_outputs(outputs: tuple[Output, ...]) -> str:
    return json.dumps([dataclasses.asdict(output) for output in outputs])


def _read_outputs(text: str) -> tuple[Output, ...]:
    found = []
    for fields in json.loads(text):
        lists = {k: tuple(v) for k, v in fields.items() if isinstance(v, list)}
        found.append(Output(**(fields | lists)))
    return tuple(found)
