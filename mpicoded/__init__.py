"""Coded distributed inference of convolutional networks under MPI."""
