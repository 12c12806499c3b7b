"""Tables for a terminal, as rich draws them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class Grid:
    """A table with a title and plain lines; nothing in its texts is markup."""

    def __init__(self, title: str) -> None:
        from rich import box, markup, table  # noqa: PLC0415  (only show's)

        self._escape = markup.escape
        self.drawn: Any = table.Table(
            title=self._escape(title),
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
        )

    def add_columns(self, first: str, rest: Iterable[str]) -> None:
        """Add the column of names, and those of numbers, which stand to the right."""
        self.drawn.add_column(self._escape(first))
        for name in rest:
            self.drawn.add_column(self._escape(name), justify="right")

    def add_row(self, cells: Iterable[str]) -> None:
        """Add a row."""
        self.drawn.add_row(*map(self._escape, cells))
