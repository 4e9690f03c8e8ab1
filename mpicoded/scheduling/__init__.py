"""Decisions: who gets which unit, how long to wait, who is alive; no MPI, no clock."""
