"""Pictures: every kind of file makes its own, in every form, and the same each time."""

from __future__ import annotations

import itertools
import re
import shutil
import struct
from pathlib import Path

import gallery
import pytest
from conftest import Launcher, write

from mpiens.canvas import COLOURS, colour, stroke


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    launcher = Launcher(tmp_path_factory.mktemp("gallery"))
    for kind in gallery.SPECS:
        gallery.make(launcher, kind)
    return launcher


def plot(launcher: Launcher, *words: str) -> str:
    """Draw something as SVG, and return its text."""
    ran = launcher.mpiens("plot", *words, "-o", "picture.svg")
    assert (ran.code, ran.output) == (0, "picture.svg\n"), ran.errors
    return (launcher.folder / "picture.svg").read_text()


def texts(svg: str) -> list[str]:
    """What is written in a picture."""
    found = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    return [text.replace("&gt;", ">").replace("\u2212", "-") for text in found]


def test_fans_have_bands_medians_and_outlying_replicates(drawn: Launcher) -> None:
    written = texts(plot(drawn, "compared.h5"))
    for text in ("open", "masks", "closed", "day", "median", "95% sure of a quantile"):
        assert text in written
    for text in ("5% to 95%", "25% to 75%", "replicates", "outlying, with numbers"):
        assert text in written
    assert "11" in written, "the one that is unlike the others"
    told = " ".join(written)
    assert (
        "23 replicates, too few to say how far 5% and 95% are off; 59 would do" in told
    )
    whole = " ".join(written)
    assert "new cases" in whole
    assert "(people per day)" in whole


def test_scenarios_may_lie_over_each_other(drawn: Launcher) -> None:
    svg = plot(drawn, "compared.h5", "--over", "--log")
    written = texts(svg)
    assert written.count("day") == 1
    assert {"open", "masks", "closed"} <= {*written}
    alone = plot(drawn, "compared.h5", "--scenario", "masks")
    assert "open" not in texts(alone)


@pytest.mark.parametrize(
    ("file", "kind", "expected"),
    [
        ("compared", "differences", ["masks - open", "closed - open"]),
        ("compared", "summaries", ["new cases, peak time (day)", "deaths, final"]),
        ("cube", "cube", ["beta", "mask", "a", "b"]),
        ("points", "points", ["beta", "mask", "kind", "mean deaths, final (people)"]),
        ("search", "search", ["trials told", "best so far", "observed", "the best"]),
        ("joined", "joined", ["energy", "1.96 errors", "overlap"]),
    ],
)
def test_each_kind_of_file_has_a_picture_of_its_own(
    drawn: Launcher, file: str, kind: str, expected: list[str]
) -> None:
    written = texts(plot(drawn, f"{file}.h5", "--kind", kind))
    whole = " ".join(written)  # long labels are in several lines
    for text in expected:
        assert text in whole
    if file == kind:
        assert texts(plot(drawn, f"{file}.h5")) == written, "it is the default"


@pytest.mark.parametrize("kind", ["fans", "summaries"])
def test_of_many_scenarios_the_first_are_drawn_and_that_is_told(
    drawn: Launcher, kind: str
) -> None:
    written = texts(plot(drawn, "cube.h5", "--kind", kind))
    assert "the first 12 of 24 scenarios; --scenario names others" in written
    few = ["--scenario", "b,beta=0.2,mask=0.25", "--kind", kind]
    assert "scenarios" not in " ".join(texts(plot(drawn, "cube.h5", *few)))


def test_pictures_have_the_width_of_a_column_or_a_page(drawn: Launcher) -> None:
    for size, inches in (("column", 3.5), ("page", 7.2)):
        words = ["compared.h5", "--size", size, "--output", "new_cases"]
        ran = drawn.mpiens("plot", *words, "-o", f"{size}.png")
        assert ran.code == 0, ran.errors
        head = (drawn.folder / f"{size}.png").read_bytes()[:24]
        assert struct.unpack(">I", head[16:20])[0] == round(200 * inches)


@pytest.mark.parametrize("form", ["png", "svg", "pdf"])
def test_the_same_file_makes_the_same_bytes(drawn: Launcher, form: str) -> None:
    found = set()
    for name in ("one", "two"):
        ran = drawn.mpiens("plot", "compared.h5", "-o", f"{name}.{form}")
        assert ran.code == 0, ran.errors
        found.add((drawn.folder / f"{name}.{form}").read_bytes())
    assert len(found) == 1


def test_a_style_sheet_has_the_last_word(drawn: Launcher) -> None:
    write(drawn.folder, "own.mplstyle", "axes.facecolor: 123456\n")
    assert "#123456" in plot(drawn, "compared.h5", "--style", "own.mplstyle")
    ran = drawn.mpiens("plot", "compared.h5", "--style", "none.mplstyle")
    assert ran.code == 2
    assert "none.mplstyle is no style sheet of matplotlib" in ran.errors


def test_a_file_that_is_not_complete_is_drawn_too(drawn: Launcher) -> None:
    write(drawn.folder, "half.toml", gallery.SPECS["compared"])
    ran = drawn.mpiens("half.toml", "--shard", "0/2")
    assert ran.code == 0, ran.errors
    written = texts(plot(drawn, "half.0-of-2.h5"))
    assert "95% sure of a quantile" in written
    ran = drawn.mpiens("plot", "half.0-of-2.h5", "--kind", "differences")
    assert ran.code == 2
    assert "differences is not in this file, which makes fans, summaries" in ran.errors


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-o", "picture.gif"], "let its name end in .png, .svg or .pdf"),
        (["--output", "new_case"], "--output: the file has no 'new_case'"),
        (["--scenario", "mask"], "--scenario: the file has no 'mask'"),
        (["--kind", "cube"], "cube is not in this file, which makes fans, differences"),
    ],
)
def test_what_cannot_be_drawn_is_told(
    drawn: Launcher, words: list[str], told: str
) -> None:
    ran = drawn.mpiens("plot", "compared.h5", *words)
    assert ran.code == 2
    assert told in ran.errors
    assert "Traceback" not in ran.errors


def test_lines_are_told_apart_in_grey_too() -> None:
    def lightness(own: str) -> float:
        parts = [int(own[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    for one, other in itertools.combinations(range(len(COLOURS)), 2):
        apart = abs(lightness(colour(one)) - lightness(colour(other)))
        assert apart > 0.03 or stroke(one) != stroke(other)


def test_without_matplotlib_the_way_to_it_is_told(
    drawn: Launcher, tmp_path: Path
) -> None:
    hidden = tmp_path / "matplotlib"
    hidden.mkdir()
    write(hidden, "__init__.py", 'raise ImportError("hidden")')
    shutil.copy(drawn.folder / "compared.h5", tmp_path)
    command = ["-m", "mpiens", "plot", str(tmp_path / "compared.h5"), "-o", "a.png"]
    python = drawn.started[0].process.args[0]
    ran = drawn.run([python, *command], PYTHONPATH=str(tmp_path))
    assert ran.code == 2
    assert 'pip install "mpiens[plot]"' in ran.errors
