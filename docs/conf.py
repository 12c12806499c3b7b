"""How Sphinx builds the pages of this folder: sphinx-build -W docs build/docs."""

from __future__ import annotations

from mpiens import __version__

project = "mpiens"
author = "the mpiens team"
release = __version__
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"mpiens {release}"
myst_heading_anchors = 3
# links to the rest of the repository, which has no page here
suppress_warnings = ["myst.xref_missing"]
