"""Ensembles of a stochastic simulator under MPI, with honest uncertainty bands.

Importing this package starts nothing: no MPI, no HDF5, no threads.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpiens.joining import Joined, join

__all__ = ["Joined", "join"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Return what is public here, and load its module only now."""
    if name in __all__:
        from mpiens import joining  # noqa: PLC0415

        return getattr(joining, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
