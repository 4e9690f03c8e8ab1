"""Results of a run in HDF5 (netCDF-4 conventions): written as it goes, read by the report."""

from __future__ import annotations

from mpicoded.results.layout import Layout
from mpicoded.results.reader import Loaded, load
from mpicoded.results.writer import Results

__all__ = ["Layout", "Loaded", "Results", "load"]
