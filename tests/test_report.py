"""The page for a colleague, in a real browser: what it says, shows, and lets one do."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gallery
import pytest
from conftest import Launcher, write
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    launcher = Launcher(tmp_path_factory.mktemp("pages"))
    for kind in gallery.SPECS:
        gallery.make(launcher, kind)
        ran = launcher.mpiens("report", f"{kind}.h5")
        assert (ran.code, ran.output) == (0, f"{kind}.html\n"), ran.errors
    return launcher


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as engine:
        own = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield own
        own.close()


class Visit:
    """A page that is open, and what went on meanwhile."""

    def __init__(self, browser: Browser, file: Path, width: int) -> None:
        self.page: Page = browser.new_page(viewport={"width": width, "height": 800})
        self.troubles: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda m: self._hear(m.type, m.text))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())

    def _hear(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.troubles.append(text)

    def measure(self, script: str) -> Any:
        return self.page.evaluate(script)


@pytest.fixture
def visit(browser: Browser, made: Launcher) -> Iterator[Any]:
    visits: list[Visit] = []

    def go(kind: str, width: int = 1200) -> Visit:
        visits.append(Visit(browser, made.folder / f"{kind}.html", width))
        return visits[-1]

    yield go
    for own in visits:
        assert own.troubles == []
        assert len(own.requests) == 1, "the page needs nothing but itself"
        own.page.close()


@pytest.mark.parametrize("kind", gallery.SPECS)
def test_every_kind_of_file_has_a_page_with_its_charts(visit: Any, kind: str) -> None:
    page = visit(kind).page
    expected = {
        "compared": ["Curves", "Differences from the baseline", "Single runs"],
        "cube": ["Over the cube"],
        "points": ["What the parameters do"],
        "search": ["The search"],
        "joined": ["Joined curves"],
    }
    titles = page.locator("h2").all_inner_texts()
    for title in [
        *expected[kind],
        "Completeness",
        "How it was made",
        "Ranks over time",
    ]:
        assert title in titles
    charts = page.locator("figure.chart svg")
    assert charts.count() >= len(expected[kind]) + 1
    for chart in charts.all():
        box = chart.bounding_box()
        assert box is not None
        assert box["width"] > 500
        assert box["height"] > 80
        assert chart.locator("path").count() > 5, "something is drawn"
    told = page.locator("figcaption").last.inner_text()
    assert re.match(r"[12] ranks were busy for [\d.]+% of [\d.]+ s, from", told)


def test_the_answer_comes_first_and_in_words(visit: Any, made: Launcher) -> None:
    page = visit("compared").page
    assert page.locator("h2").first.inner_text() == "The answer"
    sentences = page.locator("ul.answer li").all_inner_texts()
    shown = made.mpiens("show", "compared.h5", "--json").output
    [masks] = [s for s in json.loads(shown)["scenarios"] if s["name"] == "masks"]
    verdict = masks["summaries"]["new_cases"]["peak"]["verdict"]
    share = f"which is {100 * verdict['averted']:.3g}% ["
    [told] = [s for s in sentences if s.startswith("masks lowers new_cases, peak")]
    assert share in told
    assert "against open by" in told
    assert "of 23 pairs of twins, " in told


def test_where_higher_is_better_table_and_page_tell_what_is_gained(
    launcher: Launcher,
) -> None:
    text = gallery.SPECS["compared"].replace('better = "lower"', 'better = "higher"')
    write(launcher.folder, "model.py", gallery.MODEL)
    write(launcher.folder, "up.toml", text)
    shown = launcher.mpiens("up.toml").output
    assert launcher.mpiens("report", "up.h5").code == 0
    page = (launcher.folder / "up.html").read_text()
    document = json.loads(launcher.mpiens("show", "up.h5", "--json").output)
    masks = document["scenarios"][1]["summaries"]["new_cases"]["peak"]["verdict"]
    for told in (shown, page):
        assert f"{-100 * masks['averted']:.3g}% [" in told, "masks gain less than none"
        assert "gained" in told
        assert "averted" not in told
        assert "probability of being later" in told
        assert "probability of being better" in told


def test_tables_are_sorted_by_what_is_clicked(visit: Any) -> None:
    page = visit("compared").page
    table = page.locator("table.sortable").nth(1)
    names = table.locator("tbody td:first-child")
    assert names.all_inner_texts() == ["open", "masks", "closed"]
    mean = table.locator("th button", has_text="mean")
    mean.click()
    assert names.all_inner_texts() == ["closed", "masks", "open"], "by number"
    assert table.locator("th[aria-sort=ascending]").inner_text().startswith("mean")
    mean.focus()
    page.keyboard.press("Enter")
    assert names.all_inner_texts() == ["open", "masks", "closed"]


def test_who_points_at_a_curve_is_told_its_values(visit: Any, made: Launcher) -> None:
    page = visit("compared").page
    chart = page.locator("figure.chart[data-chart]").first
    told = chart.locator("[role=status]")
    assert told.inner_text() == ""
    box = chart.locator(".canvas").bounding_box()
    assert box is not None
    chart.locator(".canvas").hover(position={"x": box["width"] * 0.2, "y": 80})
    assert re.match(r"open, day \d+: 5% [\d.]+, 25% [\d.]+, median", told.inner_text())
    chart.focus()
    for key in ("ArrowLeft",) * 40 + ("ArrowRight",) * 12 + ("ArrowDown",):
        page.keyboard.press(key)
    words = told.inner_text()
    assert words.startswith("masks, day 12: ")
    import h5py

    with h5py.File(made.folder / "compared.h5") as file:
        median = file["/bands/new_cases"][1, 2, 12]
    value = float(re.search(r"median ([\d.]+)", words).group(1))  # type: ignore[union-attr]
    assert value == pytest.approx(median, rel=1e-3)
    rule = chart.locator(".rule").bounding_box()
    assert rule is not None
    assert box["x"] < rule["x"] < box["x"] + box["width"]


def test_failures_are_folded_and_cannot_break_the_page(visit: Any) -> None:
    page = visit("compared").page
    failures = page.locator("section:has(#completeness) details")
    assert failures.count() == 3
    text = failures.first.locator("pre")
    assert not text.is_visible()
    failures.first.locator("summary").click()
    assert text.is_visible()
    assert "no luck <today> & never" in text.inner_text()
    assert "Traceback" in text.inner_text()


def test_a_page_can_be_read_on_a_phone(visit: Any) -> None:
    own = visit("compared", 390)
    overflow = "document.documentElement.scrollWidth - window.innerWidth"
    assert own.measure(overflow) <= 0, "only tables and charts scroll to the side"
    assert own.page.locator(".scroll").first.evaluate("e => e.scrollWidth") > 390


def test_everything_is_within_reach_of_the_keyboard(visit: Any) -> None:
    own = visit("compared")
    reached = set()
    for _ in range(400):
        own.page.keyboard.press("Tab")
        kind = own.measure(
            "document.activeElement.tagName + document.activeElement.className"
        )
        if kind == "BODY":
            break
        reached.add(kind)
    assert {"BUTTON", "SUMMARY", "FIGUREchart", "DIVscroll"} <= reached
    for chart in own.page.locator("figure.chart [role=img]").all():
        assert len(chart.get_attribute("aria-label") or "") > 10


def test_a_page_tells_how_it_can_be_made_again(visit: Any, made: Launcher) -> None:
    text = visit("compared").page.locator("section:has(#provenance)").inner_text()
    assert made.digest("compared.h5") in text
    assert "compared.toml" in text
    for name in ("numpy", "h5py", "mpi4py", "python"):
        assert name in text


def test_printed_it_has_all_but_what_moves(visit: Any) -> None:
    page = visit("compared").page
    page.emulate_media(media="print")
    assert page.locator("figure.chart svg").first.is_visible()
    assert not page.locator(".told").first.is_visible()
    assert len(page.pdf(format="A4")) > 20_000


def test_without_anything_done_there_is_a_page_too(launcher: Launcher) -> None:
    gallery.make(launcher, "joined")
    launcher.mpiens("joined.toml", "--fresh", "--shard", "0/2")
    ran = launcher.mpiens("report", "joined.0-of-2.h5")
    assert ran.code == 0, ran.errors
    ran = launcher.mpiens("report", "none.h5")
    assert ran.code == 2
    assert "Traceback" not in ran.errors
