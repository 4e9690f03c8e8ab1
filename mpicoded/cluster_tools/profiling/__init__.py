"""Profiling: how fast the ranks and the links of this cluster are, measured."""
