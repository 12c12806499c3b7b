"""What the README shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

from conftest import Launcher

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str, start: str) -> str:
    """The code block in a language that begins with the given text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return next(text for text in blocks if text.startswith(start))


def test_the_model_and_the_spec_run_as_they_are_shown(launcher: Launcher) -> None:
    (launcher.folder / "model.py").write_text(block("python", "import numpy"))
    (launcher.folder / "sweep.toml").write_text(block("toml", "[ensemble]"))
    for words in re.findall(r"^\| `mpiens (try|check) (\S+)`", README, re.MULTILINE):
        assert launcher.mpiens(*words).code == 0
    ran = launcher.mpiens("-n", "2", "sweep.toml")
    assert ran.code == 0, ran.errors
    assert "masks" in ran.output
    [replay] = re.findall(r"`mpiens (replay [^`]*)`", README)
    assert "bit-identical" in launcher.mpiens(*replay.split()).output

    import xarray

    code = block("python", "import xarray").replace('"sweep.h5"', "file")
    scope = {"file": str(launcher.folder / "sweep.h5")}
    exec(code, scope)
    band = eval(code.strip().splitlines()[-1], scope)
    assert isinstance(band, xarray.DataArray)
    assert band.sizes == {"day": 60}
    scope["tree"].close()


def test_every_section_of_a_spec_is_told() -> None:
    from mpiens.reader import _Decoder

    for section in _Decoder.SECTIONS:
        assert f"[{section}" in README


def test_every_fault_names_a_test_that_is_there() -> None:
    page = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.endswith(("| test |", "--- |"))]
    for row in rows:
        assert re.search(r"\| `[\w/]+\.py::test_\w+` \|$", row), row
    for file, name in re.findall(r"`([\w/]+\.py)::(test_\w+)`", page):
        source = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert f"\ndef {name}(" in source, f"{file}::{name}"
