"""The floors: who may import whom, and what may not load MPI or heavy libraries."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import pytest
from conftest import Launcher, write

import mpiens

# From the ground up; a module imports only what stands before it.
FLOORS = {
    "ground": [
        *("fault", "expression", "cube", "design", "calibrate"),
        *("alignment", "pieces", "joining", "windows", "curves"),
        *("spec", "points", "bands", "intervals", "difference", "depth"),
        *("precision", "indices", "pool"),
        *("checks", "reader", "streams", "row", "observed", "loss"),
        *(
            "outcome",
            "durations",
            "trial",
            "shard",
            "request",
            "layout",
            "growth",
            "wording",
            "canvas",
            "starter",
            "inquiry",
        ),
        *("deadline", "trouble", "progress", "grid", "compilation"),
        *("allocation", "provenance"),
    ],
    "seams": [
        *(
            "bell",
            "farewell",
            "mpi",
            "child",
            "heartbeat",
            "extract",
            "memfile",
            "loan",
            "program",
            "generators",
        ),
        *("model", "scoring", "steps", "executor", "runner", "study"),
    ],
    "tools": [
        *("worker", "workqueue", "window", "lock", "journal", "shelf"),
        *("contents", "foundation", "store", "pilot", "ledger"),
    ],
    "stories": [
        *(
            "summary",
            "central",
            "sensitivity",
            "replication",
            "aggregation",
            "assembly",
            "calibration",
            "confirm",
            "fit",
            "trials",
            "plan",
            "foreground",
            "twice",
            "table",
            "sentences",
            "frame",
            "view",
            "fans",
            "charts",
            "traces",
            "picture",
            "utilisation",
            "report",
            "watch",
            "root",
            "merge",
            "ensemble",
            "launch",
            "notebook",
        ),
    ],
    "roof": ["bench", "arguments", "__main__"],
}
ORDER = [module for floor in FLOORS.values() for module in floor]
FOLDER = Path(mpiens.__file__).parent
FILES = sorted(FOLDER.rglob("*.py"))
HEAVY = ("pydantic", "rich", "scipy", "pandas", "pyarrow", "xarray", "optuna", "SALib")


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Walk all of a module, functions too, but for what only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if not is_type_checking(child):
            yield child
            yield from runtime_nodes(child)


def imports(nodes: Iterator[ast.AST]) -> set[str]:
    """The dotted names that are imported; of ``from a import b`` it is ``a.b``."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what is imported"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own(names: set[str]) -> set[str]:
    """The modules of mpiens among imported names."""
    parts = [name.split(".") for name in names]
    stems = {file.stem for file in FILES}
    return {p[1] for p in parts if p[0] == "mpiens" and len(p) > 1 and p[1] in stems}


def below(file: Path) -> set[str]:
    """What a module may import; the package hands on what is public when asked."""
    public = {"fault", "joining", "notebook"}
    return public if file.stem == "__init__" else set(ORDER[: ORDER.index(file.stem)])


def packages(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_every_module_stands_on_a_floor() -> None:
    modules = {file.stem for file in FILES} - {"__init__"}
    assert modules <= set(ORDER)
    assert len(ORDER) == len(set(ORDER))
    assert {file.parent for file in FILES} == {FOLDER}  # else stems would not do


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_module_imports_only_from_below(file: Path) -> None:
    used = own(imports(runtime_nodes(parse(file))))
    assert used <= below(file)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_only_type_checkers_import_is_the_communicator(file: Path) -> None:
    hidden = [node for node in ast.walk(parse(file)) if is_type_checking(node)]
    named = imports(inner for node in hidden for inner in ast.walk(node))
    assert own(named) <= below(file) | {"mpi"}


def test_one_file_imports_mpi4py() -> None:
    users = [f.stem for f in FILES if "mpi4py" in packages(imports(ast.walk(parse(f))))]
    assert users == ["mpi"]


@pytest.mark.parametrize("module", FLOORS["ground"])
def test_the_ground_knows_neither_mpi_nor_hdf5(module: str) -> None:
    for file in FILES:
        if file.stem == module:
            used = packages(imports(ast.walk(parse(file))))
            assert not used & {"mpi4py", "h5py"}


def ask(launcher: Launcher, act: str) -> set[str]:
    """Do something in a fresh interpreter and return the packages it has loaded."""
    code = f"""
import json, sys
{act}
print(json.dumps(sorted(name for name in sys.modules if "." not in name)))
"""
    launch = launcher.run([sys.executable, "-c", code], limit=30)
    assert launch.code == 0, launch.errors
    return set(json.loads(launch.output.splitlines()[-1]))


def test_importing_mpiens_starts_nothing(launcher: Launcher) -> None:
    loaded = ask(launcher, "import mpiens")
    assert "mpiens" in loaded
    assert not loaded & {"mpi4py", "h5py", "numpy", *HEAVY}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["check", "sweep.toml"], 0),
        (["try", "sweep.toml", "masks,beta=0.4", "3"], 0),
        (["show", "missing.h5"], 2),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
@pytest.mark.usefixtures("folder")
def test_commands_that_need_no_mpi_load_none(
    launcher: Launcher, words: list[str], code: int
) -> None:
    loaded = ask(
        launcher,
        f"from mpiens.__main__ import main\nassert main({words!r}) == {code}",
    )
    assert "numpy" in loaded
    assert "mpi4py" not in loaded


def test_a_rank_pays_for_no_heavy_library(launcher: Launcher) -> None:
    loaded = ask(launcher, "import mpiens.mpi\nimport mpiens.ensemble")
    assert "mpi4py" in loaded
    assert not loaded & set(HEAVY)
    assert "h5py" not in loaded  # all but the root can do without


def test_only_the_root_of_a_run_loads_hdf5(tmp_path: Path) -> None:
    body = "import sys, time\n\ndef simulate():\n    time.sleep(0.02)\n"
    write(tmp_path, "model.py", body + '    return {"x": "h5py" in sys.modules}\n')
    spec = '[ensemble]\nmodel = "model.py:simulate"\nreplicates = 40\nseed = 1\n'
    write(tmp_path, "run.toml", spec)
    launch = Launcher(tmp_path).mpiens("-n", "3", "run.toml")
    assert launch.code == 0, launch.errors
    with h5py.File(tmp_path / "run.h5") as file:
        ranks, loaded = file["/tasks/rank"][0], file["/series/x"][0]
    assert {*ranks.tolist()} == {0, 1, 2}
    assert loaded.tolist() == (ranks == 0).tolist()
