"""The Python API in the user's own MPI program: every test writes one and runs it under mpirun."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest

from launching import Ended, Running

README = Path(__file__).parents[1] / "README.md"
MPIS = pytest.mark.parametrize(
    ("mpi", "ft"),
    [("openmpi", True), ("openmpi", False), ("mpich", False)],
    ids=["ulfm", "openmpi", "mpich"],
)

HEAD = """
import os, signal, socket, sys, time
import torch
from mpi4py import MPI
from torch import nn

from mpicoded import Group, Mode, MpicodedError

COMM = MPI.COMM_WORLD
torch.manual_seed(COMM.rank)  # the weights that count are rank 0's


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.classify = nn.Linear(4 * 8 * 8, 10)

    def forward(self, x):
        return self.classify(self.features(x).flatten(1))


class Sorted(nn.Module):
    def forward(self, x):
        return x.flatten(1).sort().values


@torch.fx.wrap
def touchy(x):
    if COMM.rank and x.sum() >= float(sys.argv[1]):
        raise ValueError("no luck today")
    return x


class Touchy(nn.Module):
    def forward(self, x):
        return touchy(x).flatten(1)


def say(*words):
    # one write a line: with PYTHONUNBUFFERED print makes several, and those of two ranks mix
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

"""


@pytest.fixture
def program(tmp_path):
    """Write a program that begins with ``HEAD``; return its file."""

    def program(body: str) -> Path:
        file = tmp_path / "program.py"
        file.write_text(HEAD + textwrap.dedent(body))
        return file

    return program


@MPIS
def test_queries_and_mistakes(mpirun, program, mpi, ft):
    file = program(
        """
        def close(a, b):
            return torch.allclose(a, b, atol=1e-5)

        model = Net()
        with Group(COMM, model, (1, 16, 16), k=2, window=3) as group:
            if group is not None:
                images = torch.randn(20, 1, 16, 16)
                futures = [group.submit(x) for x in images]
                answers = [future.result(30) for future in futures]
                expected = model(images)
                assert all(close(a.output[0], y) for a, y in zip(answers, expected))
                assert [a.query for a in answers] == list(range(20))
                assert all(a.mode is Mode.AVAILABLE and a.latency > 0 for a in answers)
                try:
                    group.infer(torch.randn(1, 16, 17))
                except MpicodedError as error:
                    say("shape:", error)
                array = images[0].numpy()
                assert close(group.infer(array).output[0], expected[0])
                assert close(group.infer(array[:, ::-1][:, ::-1]).output[0], expected[0])
                array.flags.writeable = False
                assert close(group.infer(array[None]).output[0], expected[0])
                none = torch.full((1, 16, 16), torch.nan)
                for wrong in (images[0].byte(), images[0].double(), array.astype("u1"),
                              array.tolist(), none, images[0].to_sparse()):
                    try:
                        group.infer(wrong)
                    except MpicodedError as error:
                        say("query:", error)
                assert not futures[0].cancel()
                assert not group.submit(images[0]).cancel()
                assert close(group.infer(images[0]).output[0], expected[0])
                say("the first group is done")
                first = group

        for how in ({"code": "reed"}, {"split": "diagonal"}, {"k": 3}, {"k": 99},
                    {"window": 0}, {"windo": 3}):
            try:
                with Group(COMM, Net(), (1, 16, 16), **how) as group:
                    assert group is None
            except MpicodedError as error:
                say(*how, "is wrong:", error)
        try:
            with Group(COMM, Sorted(), (1, 16, 16), k=2) as group:
                assert group is None
        except MpicodedError as error:
            say("model:", error)

        with Group(COMM, model, (1, 16, 16), code="replication", k=1, r=1) as group:
            if group is not None:
                assert close(group.infer(images[0]).output[0], expected[0])
                say("another group is done")
                try:
                    first.infer(images[0])
                except RuntimeError as error:
                    say(error)
        say("rank", COMM.rank, "goes on")
        COMM.Barrier()  # all have said so
        sys.exit(3 if COMM.rank == 0 else 0)
        """
    )
    ended = mpirun(3, [file], timeout=90, mpi=mpi, ft=ft)
    assert (ended.status, ended.left) == (3, ()), ended.output  # the program's own
    lines = ended.stdout.splitlines()
    assert sorted(line for line in lines if line.startswith("rank")) == [
        f"rank {rank} goes on" for rank in range(3)
    ]
    said = "\n".join(line for line in lines if not line.startswith("rank"))
    patterns = (
        r"shape: .*\(1, 1, 16, 17\).*\(1, 1, 16, 16\).*",
        r"query: a query is torch.uint8, and no mean and std .*x.float\(\) / 255",
        r"query: a query is torch.float64, not torch.float32; convert it: x.float\(\)",
        r"query: a query is an array of uint8, not of float32.*x.astype\('float32'\)",
        "query: a query is a list, not a tensor: give torch.Tensor or numpy.ndarray.*",
        "query: a query has 256 numbers of 256 that are NaN or infinite.*",
        "query: a query is torch.sparse_coo on cpu.*",
        "the first group is done",
        "code is wrong: .*'reed'.*replication.*",
        "split is wrong: .*'diagonal'.*width.*",
        r"k is wrong: k \+ r = 3 \+ 0 = 3 units need 3 workers, there are 2: .*",
        "k is wrong: .*99.*",
        r"window is wrong: \[runtime\] window = 0: should be greater than 0",
        r"windo is wrong: \[runtime\] windo is not a key \(did you mean 'window'\?\)",
        "model: no block of this model can be cut.*",
        "another group is done",
        "the group is closed.*",
    )
    assert re.fullmatch("\n".join(patterns), said), said


@pytest.mark.parametrize(
    ("when", "mpi", "ft"),
    [
        ("at start", "openmpi", True),
        ("in a query", "openmpi", True),
        ("in a query", "openmpi", False),
        ("in a query", "mpich", False),
    ],
)
def test_exception_on_a_worker_comes_home(mpirun, program, when, mpi, ft):
    file = program(
        """
        with Group(COMM, Touchy(), (1, 4, 4), split="batch", k=2, batch=2) as group:
            if group is not None:
                futures = [group.submit(torch.ones(2, 1, 4, 4)) for _ in range(9)]
                for future in futures:
                    future.result(30)
        say("rank", COMM.rank, "goes on")
        """
    )
    ended = mpirun(3, [file, 0 if when == "at start" else 1], timeout=60, mpi=mpi, ft=ft)
    assert ended.status != 0, ended.output
    assert ended.left == ()
    assert re.search(r"RemoteError: rank [12] on \S+:\nTraceback", ended.stderr), ended.output
    assert "ValueError: no luck today" in ended.stderr
    assert "rank 0 goes on" not in ended.stdout


@MPIS
def test_exception_on_the_leader_ends_all_ranks(mpirun, program, mpi, ft):
    file = program(
        """
        with Group(COMM, Net(), (1, 16, 16), k=2) as group:
            if group is not None:
                group.submit(torch.randn(1, 16, 16))
                raise RuntimeError("the user's own mistake")
        """
    )
    ended = mpirun(3, [file], timeout=60, mpi=mpi, ft=ft)
    assert ended.status != 0
    assert ended.left == ()
    assert "RuntimeError: the user's own mistake" in ended.stderr


LOSES_A_RANK = """
    pids = COMM.allgather(os.getpid())
    with Group(COMM, Net(), (1, 16, 16), code="replication", k=1, r=1) as group:
        if group is not None:
            for query in range(40):
                if query == 20:
                    os.kill(pids[2], signal.SIGKILL)
                assert group.infer(torch.randn(1, 16, 16)).output is not None
            say("all answered")
    say("rank", COMM.rank, "goes on")
    if COMM.rank == 0:
        time.sleep(1.0)
        {}
    """


@pytest.mark.parametrize(("last", "status"), [("pass", 0), ("1 / 0", 1)])
def test_the_program_goes_on_after_a_death(mpirun, program, last, status):
    ended = mpirun(3, [program(LOSES_A_RANK.format(last))], timeout=60)
    assert ended.left == ()
    assert "all answered" in ended.stdout, ended.output
    goes_on = {line for line in ended.stdout.splitlines() if line.startswith("rank")}
    assert goes_on == {f"rank {rank} goes on" for rank in (0, 1)}
    assert ended.status == status, ended.output


MEETS = """
    case, RANK = sys.argv[1], COMM.rank
    COMM.Barrier()

    def group():
        return Group(COMM, Net(), (1, 16, 16), k=1, start_limit=2)

    if case == "leader raises" and RANK == 0:
        raise RuntimeError("no weights")
    if case == "worker leaves" and RANK == 2:
        sys.exit()
    if case == "worker stopped" and RANK == 2:
        os.kill(os.getpid(), signal.SIGSTOP)
    if case == "worker killed" and RANK == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if case == "one Group fewer":
        with group():
            pass
        if RANK == 2:
            sys.exit()
    with group() as first:
        if case == "leader killed later" and first is not None:
            first.infer(torch.randn(1, 16, 16))
    if case == "leader killed later" and RANK == 0:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    say("rank", RANK, "goes on")
    """
LATE = r"ranks \[{}\] of 3 on \S+ did not enter the Group within 2 s"


MEETINGS = {
    "leader raises": ("openmpi", True, LATE.format(0)),
    "worker leaves": ("openmpi", True, LATE.format(2)),
    "worker stopped": ("mpich", False, LATE.format(2)),
    "worker killed": ("openmpi", True, r"ranks \[2\] of 3 on \S+ died before the group met"),
    "one Group fewer": ("openmpi", False, LATE.format(2)),
    "leader killed later": ("openmpi", True, ""),
}


@pytest.fixture(scope="module")
def meetings(beside: Callable[..., Future[Ended]]) -> dict[str, Future[Ended]]:
    def met(start: Callable[..., Running], folder: Path, case: str, mpi: str, ft: bool) -> Ended:
        file = folder / "program.py"
        file.write_text(HEAD + textwrap.dedent(MEETS))
        return start(3, [file, case], mpi=mpi, ft=ft).wait(timeout=60)

    return {case: beside(met, case, *how) for case, (*how, _) in MEETINGS.items()}


@pytest.mark.parametrize("case", MEETINGS)
def test_a_rank_that_does_not_come_ends_the_program(meetings, case):
    ended = meetings[case].result()
    assert ended.status != 0 and not ended.left, ended.output
    assert re.search(MEETINGS[case][-1], ended.stderr), ended.output
    assert "rank 0 goes on" not in ended.stdout


def readme_program() -> str:
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    return next(block for block in blocks if "Group(" in block)


@pytest.mark.parametrize("n", [9, 1])
def test_the_program_of_the_readme(mpirun, tmp_path, n):
    file = tmp_path / "my_program.py"
    file.write_text(readme_program())
    ended = mpirun(n, ["-m", "mpi4py", file], timeout=90, cwd=tmp_path)
    assert (ended.status, ended.left) == (0, ()), ended.output
    assert "20 of 20 answered" in ended.stdout
    assert "torch.Size([1, 10]) AVAILABLE" in ended.stdout
