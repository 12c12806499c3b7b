"""Ensembles of a stochastic simulator under MPI, with honest uncertainty bands.

Importing this package starts nothing: no MPI, no HDF5, no threads.
"""

__version__ = "0.1.0"
