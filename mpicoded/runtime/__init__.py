"""The runtime: leader and workers under MPI."""
