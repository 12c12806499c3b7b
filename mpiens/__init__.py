"""Ensembles of a stochastic simulator under MPI, with honest uncertainty bands.

Importing this package starts nothing: no MPI, no HDF5, no threads.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpiens.fault import SpecError
    from mpiens.joining import Joined, join
    from mpiens.notebook import open_file as open
    from mpiens.notebook import run

__all__ = ["Joined", "SpecError", "join", "open", "run"]
__version__ = "0.1.0"

_PLACES = {
    "Joined": ("joining", "Joined"),
    "SpecError": ("fault", "SpecError"),
    "join": ("joining", "join"),
    "open": ("notebook", "open_file"),
    "run": ("notebook", "run"),
}


def __getattr__(name: str) -> Any:
    """Return what is public here, and load its module only now."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, own = _PLACES[name]
    return getattr(importlib.import_module(f"mpiens.{module}"), own)
