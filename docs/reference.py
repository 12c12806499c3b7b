"""Write spec.md from the dataclasses of a spec, and file.md from the layout of a file.

    python docs/reference.py

A test holds that both are what this writes.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import annotated_types
import numpy as np

from mpiens import calibrate, curves, design, layout, row, spec, windows
from mpiens.reader import decode

FOLDER = Path(__file__).parent
SECTIONS: dict[str, tuple[type[Any], tuple[str, ...]]] = {
    "[ensemble]": (spec.Ensemble, ()),
    "[model]": (spec.Model, ()),
    "[model.read.NAME]": (spec.Read, ()),
    "[design]": (design.Design, ("labels", "points")),
    "[design.ranges.NAME]": (design.Range, ()),
    "[windows]": (windows.Windows, ()),
    "[shared]": (spec.Shared, ()),
    "[prepare]": (spec.Prepare, ()),
    "[outputs.NAME]": (spec.Output, ()),
    "[outputs.NAME.takeoff]": (spec.Takeoff, ()),
    "[aggregate]": (spec.Aggregate, ("pools",)),
    "[aggregate.NAME]": (spec.Pool, ()),
    "[join.OUTPUT]": (curves.Join, ()),
    "[bands]": (spec.Bands, ()),
    "[precision]": (spec.Precision, ()),
    "[limits]": (spec.Limits, ()),
    "[calibrate]": (calibrate.Calibrate, ()),
    "[calibrate.parameters.NAME]": (calibrate.Domain, ()),
    "[calibrate.targets.NAME]": (calibrate.Target, ("options",)),
    "[calibrate.sampler]": (calibrate.Sampler, ("options",)),
    "[calibrate.stop]": (calibrate.Stop, ()),
    "[calibrate.confirm]": (calibrate.Confirm, ()),
}
PLAIN = """\
## [parameters]

What every scenario gets: any name that the model takes, with a value of any type.

## [scenarios.NAME]

What one scenario gets beside `[parameters]`. `[scenarios] file = "scenarios.csv"` (or \
`.json`) takes them from a file, in which `scenario` is the name and an empty cell is \
not given. A spec without scenarios has one, `default`.

## [sweep]

Axes: names with lists of values of any type, crossed with each other and with the \
scenarios. `zip = [["a", "b"]]` walks axes together, `exclude = [{ a = 1, b = 2 }]` \
leaves points out.
"""
NEEDED = "*needed*"
TOLD = {
    "/replicate": "number of a replicate",
    "/failure": "line of the table of failures",
    "/along": "place along the output's dimension",
    "/PARAMETER": "value of a parameter",
    "/tasks/status": "pending, done, failed, or unused",
    "/tasks/seconds": "what a task took",
    "/tasks/ended": "when a task ended",
    "/tasks/attempts": "how often a task was tried",
    "/failures/task": "which: scenario * replicates + replicate",
    "/failures/text": "parameters, seed, last lines of output, traceback",
    "/bands/OUTPUT": "quantiles over the replicates",
    "/differences/OUTPUT": "quantiles of the differences from the baseline",
    "/summary/OUTPUT/peak": "one number of each replicate",
    "/comparison/OUTPUT/peak": "its difference from the baseline's",
    "/takeoff/OUTPUT/series": "quantiles of those that took off",
    "/series/OUTPUT": "every replicate",
    ".bands": "quantiles over the replicates",
    ".mean": "mean over the replicates",
    ".std": "standard deviation over the replicates",
}
WORDS = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    type(None): "",
    Any: "anything",
}
BOUNDS = {
    annotated_types.Ge: ("ge", "at least"),
    annotated_types.Gt: ("gt", "above"),
    annotated_types.Le: ("le", "at most"),
    annotated_types.Lt: ("lt", "below"),
}


def write_spec() -> str:
    """Return the reference of a spec's keys."""
    text = (
        "# The spec, key by key\n\nA spec is a TOML file (or JSON with the same keys)."
    )
    text += " Unknown keys are refused with the nearest known one; all faults are told"
    text += " at once by `mpiens check`. Paths are relative to the spec.\n"
    for name, (section, hidden) in SECTIONS.items():
        text += f"\n## {name}\n\n{_first(section)}\n\n"
        text += "| key | is | default | says |\n| --- | --- | --- | --- |\n"
        told = read_docs(section)
        hints = typing.get_type_hints(section, include_extras=True)
        for field in dataclasses.fields(section):
            if field.name in hidden:
                continue
            kind, default = describe(hints[field.name]), _default(field)
            if default == NEEDED and type(None) in typing.get_args(hints[field.name]):
                default = ""
            text += f"| `{field.name}` | {kind} | {default} | {told[field.name]} |\n"
        if name == "[model.read.NAME]":
            text += f"\n{PLAIN}"
    return text


def write_file() -> str:
    """Return the reference of a result file's datasets."""
    text = (
        "# The result file, dataset by dataset\n\n"
        "One HDF5 file that is netCDF4 too: every dimension has its coordinate, values "
        "have `units` and `long_name`. OUTPUT, SUMMARY and PARAMETER stand for your "
        "names; `along` is the dimension of an output.\n"
    )
    groups: dict[str, list[layout.Dataset]] = {}
    for dataset in _make_layout().datasets():
        _, group, *_ = dataset.path.split("/")
        key = f"/{group}" if dataset.path.count("/") > 1 else "/"
        groups.setdefault(key, []).append(dataset)
    for group, datasets in groups.items():
        text += f"\n## {group}\n\n| dataset | dimensions | type | is |\n"
        text += "| --- | --- | --- | --- |\n"
        for own in datasets:
            kind = np.dtype(own.dtype)
            name = "text" if kind.kind in "OS" else kind.name
            told = own.attributes.get("long_name") or tell_dataset(own.path)
            dims = ", ".join(own.dims)
            path = own.path.replace("/peak", "/SUMMARY")
            text += f"| `{path}` | {dims} | {name} | {told} |\n"
    text += "\n## /joined/OUTPUT\n\nOf `[join.OUTPUT]`, once all pieces are there.\n\n"
    text += "| dataset | is |\n| --- | --- |\n"
    for name, member in layout.JOINED.items():
        text += f"| `{name}` | {member.long_name} |\n"
    text += "\n## /trials\n\nOf a calibration, by trial in the order of asking.\n\n"
    text += "| dataset | is |\n| --- | --- |\n"
    for name, column in layout.TRIAL_COLUMNS.items():
        told = column.attributes.get("long_name") or column.attributes.get("units")
        told = told or column.attributes.get("flag_meanings", "")
        text += f"| `{name}` | {told} |\n"
    text += "| `target/NAME`, `parameter/NAME` | loss of a target; what was tried |\n"
    return text


def tell_dataset(path: str) -> str:
    """Return what a dataset is that does not say so itself."""
    for end, text in TOLD.items():
        if path.endswith(end):
            return text
    raise KeyError(f"{path} is told nowhere")


def read_docs(section: type[Any]) -> dict[str, str]:
    """Return what stands below each field of a dataclass."""
    [tree] = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    found: dict[str, str] = {}
    name = ""
    for node in typing.cast(ast.ClassDef, tree).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        elif (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and name
        ):
            found[name], name = " ".join(str(node.value.value).split()), ""
        else:
            name = ""
    return found


def describe(hint: Any) -> str:
    """Return a type as people say it."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        bounds = [
            f"{word} {_number(getattr(bound, key))}"
            for bound in parts[1:]
            for kind, (key, word) in BOUNDS.items()
            if isinstance(bound, kind)
        ]
        return ", ".join([describe(parts[0]), *bounds])
    if origin is Literal:
        return " or ".join(f'`"{part}"`' for part in parts)
    if origin in (typing.Union, types.UnionType):
        words = dict.fromkeys(describe(part) for part in parts)
        words.pop("", None)
        if "number" in words:  # integers are numbers too
            words.pop("integer", None)
        return " or ".join(words)
    if origin is tuple:
        whole = [part for part in parts if part is not Ellipsis]
        return "list of " + " and ".join(dict.fromkeys(map(describe, whole)))
    if origin is not None and issubclass(origin, Mapping):
        return f"table of {describe(parts[1])}"
    if dataclasses.is_dataclass(hint):
        return "table"
    return WORDS.get(hint, str(hint))


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "" if field.default_factory is not dataclasses.MISSING else NEEDED
    value = field.default
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{_plain(value)}`"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _plain(value: Any) -> str:
    return str([*value]) if isinstance(value, tuple) else f"{value:g}"


def _first(section: type[Any]) -> str:
    """Return the first sentence of a class."""
    return (inspect.getdoc(section) or "").split("\n\n")[0].replace("\n", " ")


def _make_layout() -> layout.Layout:
    """Return a file that has nearly everything."""
    text = """
    [ensemble]
    model = "model.py:simulate"
    replicates = 2
    seed = 1
    [scenarios.a]
    [scenarios.b]
    [design]
    method = "saltelli"
    samples = 2
    ranges.PARAMETER = { low = 0.0, high = 1.0 }
    [outputs.OUTPUT]
    dims = ["along"]
    summaries = ["peak"]
    takeoff = { summary = "peak", above = 1.0 }
    [bands]
    baseline = "a"
    central = [0.5]
    """
    made = decode(textwrap.dedent(text)).require()
    described = row.settle(made, {"OUTPUT": ((3,), "<f8")})
    values = tuple(s.parameters["PARAMETER"] for s in made.scenarios)
    return layout.Layout(made, {"PARAMETER": values}, described)


def list_pages() -> Iterator[tuple[Path, str]]:
    """Yield the pages that are written here."""
    yield FOLDER / "spec.md", write_spec()
    yield FOLDER / "file.md", write_file()


if __name__ == "__main__":
    for path, text in list_pages():
        path.write_text(text, encoding="utf-8")
