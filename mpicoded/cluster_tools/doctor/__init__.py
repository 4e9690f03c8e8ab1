"""Examine the hosts of a job before a run does: machine, software, links, clocks, mpirun."""
