"""What the README shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import Launcher

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MARKDOWN = sorted(
    path
    for folder in (".", "docs", "examples")
    for path in (ROOT / folder).glob("*.md")
)


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


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_is_broken(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target
