"""The docs: what they type is run, what they generate is current, what they link is."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import gallery
import pytest
from conftest import Launcher

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"# (\S+\.\w+)$", re.MULTILINE)


def write_script(page: Path) -> str:
    """What a reader of a page does: puts blocks into files, and types commands.

    A block that begins with a comment of a file's name goes into that file.
    """
    parts = ["set -euo pipefail"]
    for kind, block in FENCE.findall(page.read_text(encoding="utf-8")):
        name = NAMED.match(block)
        if kind == "sh":
            parts.append(block)
        elif name:
            parts.append(f"cat > {name[1]} <<'END_OF_FILE'\n{block}END_OF_FILE")
    return "\n".join(parts)


def run_page(page: str, folder: Path, limit: float, extra: str = "") -> str:
    """Do all that a page says, in a folder; what it printed."""
    script = write_script(DOCS / page) + extra
    with subprocess.Popen(
        ["bash", "-c", script],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={
            **{"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
            **{"HOME": str(folder), "LANG": "C.UTF-8"},
        },
    ) as process:
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            subprocess.run(["kill", "-9", "--", f"-{process.pid}"], check=False)
            raise
    assert process.returncode == 0, output
    return output


def test_the_tutorial_is_done_in_a_fresh_environment(tmp_path: Path) -> None:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard"],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    ).stdout.split()
    for name in listed:
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    begun = time.monotonic()
    output = run_page("tutorial.md", tmp_path, 300)
    took = time.monotonic() - begun
    assert "infected, peak (people): against the baseline, 95% sure" in output
    assert "800 of 800 tasks done, 0 failed: complete" in output
    for name in ("fans.png", "differences.pdf", "sweep.html"):
        assert (tmp_path / "flu" / name).stat().st_size > 10_000
    print(f"the tutorial took {took:.0f} s")


@pytest.mark.parametrize("page", ["simulator.md", "shared.md", "designs.md"])
def test_what_a_page_types_works(page: str, tmp_path: Path) -> None:
    output = run_page(page, tmp_path, 120)
    assert "Traceback" not in output


def test_the_page_on_windows_works(tmp_path: Path) -> None:
    output = run_page("windows.md", tmp_path, 120, "\npython look.py\n")
    assert "joined log_g: 201 points, energy from -2 to 0" in output


def test_the_page_on_calibration_works(tmp_path: Path) -> None:
    for name in ("model.py", "observed.csv"):
        shutil.copy(ROOT / "examples" / "boarding_school" / name, tmp_path)
    output = run_page("calibration.md", tmp_path, 240)
    assert "best trials" in output
    assert "200 trials of 200 at most: 200 complete, 0 failed" in output
    assert (tmp_path / "fit.confirm.html").exists()


def test_other_languages_read_the_file(launcher: Launcher) -> None:
    file = gallery.make(launcher, "compared")
    text = (DOCS / "python.md").read_text()
    assert "mpiens.run(SPEC" in text
    shutil.copy(file, launcher.folder / "sweep.h5")
    page = launcher.folder / "page.md"
    page.write_text(
        text.replace("infected", "new_cases").replace('days": 60', 'mask": 0')
    )
    script = write_script(page)
    script += "\npython open.py\npython run.py\npython plain.py\nRscript look.R\n"
    ran = launcher.run(
        ["bash", "-c", script],
        PATH=f"{Path(sys.executable).parent}:/usr/bin:/bin",
    )
    assert ran.code == 0, ran.errors
    lines = ran.output.splitlines()
    assert "own.h5" in lines
    assert "(3, 5, 30) ['open' 'masks' 'closed']" in lines
    assert "('scenario', 'level', 'day')" in lines
    assert "[1] 30  5  3" in lines, "in R"
    import h5py

    with h5py.File(file) as opened:
        median = opened["/bands/new_cases"][1, 2].max()
    told = [line.split()[1] for line in lines if line.startswith("[1] ")][-1]
    assert float(told) == pytest.approx(median, rel=1e-5)


def load_reference() -> ModuleType:
    found = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_pages_that_are_generated_are_current() -> None:
    for path, text in load_reference().list_pages():
        assert path.read_text(encoding="utf-8") == text, "run python docs/reference.py"


def test_every_key_of_a_spec_is_told() -> None:
    text = (DOCS / "spec.md").read_text()
    for section in ("ensemble", "design", "outputs.NAME", "precision", "calibrate"):
        assert f"## [{section}]" in text
    assert re.search(r"\| {3}\|", text) is None
    assert " |  |\n" not in text, "a key without a word"


def test_the_pages_are_built_without_a_warning(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", str(DOCS), str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert built.returncode == 0, built.stderr
    listed = {page.stem for page in DOCS.glob("*.md")}
    assert listed <= {page.stem for page in tmp_path.glob("*.html")}


def list_links(page: Path) -> Iterator[str]:
    text = re.sub(FENCE, "", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http:", "https:", "#")):
            yield target


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {word.replace(" ", "-") for word in words}


FOLDERS = ("docs", "examples", "benchmarks")
PAGES = sorted(page for name in FOLDERS for page in (ROOT / name).rglob("*.md"))
PAGES += sorted(ROOT.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in list_links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_a_block_is_what_it_is_called(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        textwrap.dedent(
            """
            ```python
            # a.py
            print("in a file")
            ```

            ```sh
            python3 a.py
            ```

            ```python
            no_file_at_all(
            ```
            """
        )
    )
    script = write_script(page)
    assert "cat > a.py" in script
    assert "no_file_at_all" not in script
