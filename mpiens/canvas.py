"""What pictures are drawn on: sizes of a column and a page, colours, and style.

Colours are those of Okabe and Ito, which people with any colour vision tell apart; in
grey lines differ by how dark they are or by their strokes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpiens.fault import Fault, SpecError

WIDTHS = {"column": 3.5, "page": 7.2}  # inches: 89 and 183 mm
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STROKES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1)))
FORMS = ("png", "svg", "pdf")
_LETTERS = 26
_PANEL = 1.7  # inches
_RESOLUTION = 200  # dots per inch of a PNG
_STYLE: Mapping[str, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "svg.hashsalt": "mpiens",  # the same picture has the same bytes
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}


@dataclass(frozen=True)
class Canvas:
    """Something to draw on: matplotlib's Figure, and the width in inches."""

    figure: Any
    width: float

    @property
    def columns(self) -> int:
        """How many panels fit beside each other."""
        return max(1, int(self.width // _PANEL))

    def lay_out(
        self, rows: int, columns: int, *, height: float = 1.9, share: bool | str = False
    ) -> tuple[Any, Any]:
        """Return a figure and its axes (rows, columns), of so many inches a row.

        What explains it stands below, and takes more lines where it is narrow.
        """
        below = 0.6 if self.width > WIDTHS["column"] else 1.2
        figure = self.figure(
            figsize=(self.width, height * rows + below), layout="constrained"
        )
        axes = figure.subplots(rows, columns, squeeze=False, sharey=share)
        return figure, axes


@contextmanager
def styled(size: str, style: Path | None = None) -> Iterator[Canvas]:
    """Draw with our style, and with a user's matplotlib style sheet over it.

    Raises SpecError where there is no matplotlib, or the style sheet is none.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415  (heavy, and only who draws wants it)
        from matplotlib.figure import Figure  # noqa: PLC0415
        from matplotlib.style import context  # noqa: PLC0415
    except ImportError as error:
        text = f'pictures need matplotlib: pip install "mpiens[plot]" ({error})'
        raise SpecError([Fault("", text)]) from error
    own: list[Any] = ["default", dict(_STYLE)]
    if style is not None:
        try:
            own.append(mpl.rc_params_from_file(style, use_default_template=False))
        except (OSError, ValueError) as error:
            text = f"{style} is no style sheet of matplotlib: {error}"
            raise SpecError([Fault("--style", text)]) from error
    with context(own):
        yield Canvas(Figure, WIDTHS[size])


def check_form(path: Path) -> None:
    """Raise SpecError where a picture cannot have that name."""
    if path.suffix.lower().lstrip(".") not in FORMS:
        text = f"{path} is no picture; let its name end in .png, .svg or .pdf"
        raise SpecError([Fault("--output-file", text)])


def save(figure: Any, path: Path) -> None:
    """Write a picture in the form that its name asks for; the same bytes each time."""
    check_form(path)
    form = path.suffix.lower().lstrip(".")
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    figure.savefig(
        path, format=form, dpi=_RESOLUTION, metadata=dates.get(form, {"Software": None})
    )


def wrap(text: str) -> str:
    """Return a label in lines that are no longer than an axis."""
    return textwrap.fill(text, _LETTERS)


def colour(index: int) -> str:
    """Return the colour of the index-th thing; they begin again after seven."""
    return COLOURS[index % len(COLOURS)]


def stroke(index: int) -> Any:
    """Return the stroke of the index-th line."""
    return STROKES[index % len(STROKES)]
