"""The group as a Python program uses it: a context manager in the manner of mpi4py.futures.

with Group(MPI.COMM_WORLD, model, (1, 32, 32), code="replication", k=4, r=4) as group:
    if group is not None:               # rank 0; the others serve until it closes
        answer = group.infer(x)
"""

from __future__ import annotations

import atexit
from concurrent.futures import Future
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from mpi4py import MPI
from torch import Tensor, nn

from mpicoded.answer import Answer
from mpicoded.cluster import Cluster
from mpicoded.errors import DataError, JobError, PlanError, RemoteError
from mpicoded.expected_accuracy import KEY, AccuracyTable, read_table
from mpicoded.models.check import check_kind, check_weights, not_finite
from mpicoded.plan import Plan
from mpicoded.processes import START_LIMIT
from mpicoded.runtime.deployment import Deployment
from mpicoded.runtime.exit import end_job, exit_after_leader, exit_rank_later
from mpicoded.runtime.leader import Leader
from mpicoded.runtime.pool import WorkerPool
from mpicoded.runtime.replanner import Replanner
from mpicoded.runtime.rollcall import duplicate
from mpicoded.runtime.start import refuse_foreign
from mpicoded.runtime.threads import use_threads
from mpicoded.runtime.worker import serve
from mpicoded.scheduling.switch import Switch
from mpicoded.trace import Trace

if TYPE_CHECKING:
    from mpicoded.job import Job


class Group:
    """One leader and its workers around ``model``, which is rank 0's: its weights go to all.

    Parameters
    ----------
    comm
        The ranks of the group. Every rank enters the ``with`` block; rank 0 gets the group, the
        others work inside ``__enter__`` until rank 0 leaves the block, and get None.
    model, shape
        The network and the shape (C, H, W) of one image.
    k, r
        Data units (None: as many as workers less r) and parity units.
    weights, about
        Tensors and metadata of a trained code.
    options
        Further keys of a job, as ``code="replication"`` (its name), ``split="width"``,
        ``stages=["pool2"]`` or ``window=8``: see docs/job.md.

    Raises
    ------
    MpicodedError
        On rank 0, for whatever does not fit; the other ranks are sent home first.
    """

    def __init__(
        self,
        comm: MPI.Comm,
        model: nn.Module,
        shape: tuple[int, ...],
        *,
        k: int | None = None,
        r: int = 0,
        weights: dict[str, Tensor] | None = None,
        about: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.comm = comm
        self.model, self.shape = model, shape
        self.k, self.r = k, r
        self.weights, self.about = weights, about or {}
        self.options = {"split": "width"} | options
        self.start_limit = options.get("start_limit", START_LIMIT)
        if not isinstance(self.start_limit, int | float) or not 0 < self.start_limit < inf:
            raise JobError(f"start_limit = {self.start_limit!r}: should be positive seconds")

    def __enter__(self) -> Group | None:
        """Start: on rank 0 return the group, elsewhere serve."""
        limit = self.start_limit
        comm = self._own_comm(limit)  # no message of the user's can be taken for one of ours
        if comm.Get_rank() > 0:
            exit_rank_later(comm, [])
            if serve(comm, limit) is None:
                exit_after_leader(comm)
            return None
        pool = WorkerPool(comm, limit)
        exit_rank_later(comm, pool.stuck)
        try:
            job, deployment, replanner, switch = self._deploy()
            deployment.plan.check(Cluster.local(pool.ranks), job.runtime.sharing)
            cluster = pool.connect(limit).timed(job.measured())
            use_threads(job.runtime.threads)
            self._leader = Leader(
                pool,
                cluster,
                deployment,
                job.settings,
                fallback=job.plan.falls_back,
                replanner=replanner,
                switch=switch,
            )
        except BaseException:
            pool.release()
            raise
        return self

    def _own_comm(self, limit: float) -> MPI.Comm:
        """Return a communicator of the group's own; end the job if a rank does not come for it."""
        if MPI.COMM_WORLD.Get_size() == 1:
            refuse_foreign()
        try:
            return duplicate(self.comm, limit)
        except RemoteError as error:
            if self.comm.Get_rank() > 0:
                end_job(f"error: {error}")
            atexit.register(end_job, "")  # MPI_Finalize would wait for those who did not come
            raise

    def _deploy(self) -> tuple[Job, Deployment, Replanner | None, Switch | None]:
        # only rank 0 needs these, and what they import
        from mpicoded.deploy import Trained, build, replanner, switch, traced
        from mpicoded.job import Job

        k = max(1, self.comm.Get_size() - 1) - self.r if self.k is None else self.k
        job = Job.given(k=k, r=self.r, **self.options).on(range(self.comm.Get_size()))
        check_kind(self.model)
        check_weights(self.model)
        for key, tensor in (self.weights or {}).items():
            if why := not_finite(tensor):
                raise DataError(f"the code's weights: {key} holds {why}; train them again")
        trained = None if self.weights is None else Trained(self.weights, self.about)
        told = self.about.get(KEY)
        table = read_table(job) if told is None else AccuracyTable.parse(told)
        deployment = build(job, traced(job, self.model, self.shape), trained, table)
        return job, deployment, replanner(job, deployment), switch(job, deployment)

    def __exit__(self, *_: object) -> None:
        """Finish the queries in flight and release the workers."""
        if self.comm.Get_rank() == 0:
            self._leader.close()
            self._leader.pool.release()

    @property
    def plan(self) -> Plan:
        """The plan: who computes what."""
        return self._leader.deployment.plan

    @property
    def cluster(self) -> Cluster:
        """The ranks and their hosts."""
        return self._leader.cluster

    @property
    def trace(self) -> Trace:
        """Events so far; see :mod:`mpicoded.trace`."""
        return self._leader.trace

    @property
    def began(self) -> float:
        """``time.perf_counter()`` at second 0 of the trace."""
        return self._leader.began

    def submit(self, x: Tensor | npt.NDArray[np.float32]) -> Future[Answer]:
        """Queue a query, (B, C, H, W) or one image (C, H, W); its future gives the Answer.

        ``x`` is not copied: leave it as it is until the answer is there. Raises PlanError if it is
        no float32 tensor or array of the group's shape, or not finite.
        """
        x = _tensor(x)
        x = x if x.dim() == len(self.shape) + 1 else x[None]
        self._leader.deployment.check_query(x)
        if not x.sum().isfinite() and not x.isfinite().all():  # a sum of finite ones may overflow
            raise PlanError(
                f"a query has {int((~x.isfinite()).sum()):,} numbers of {x.numel():,} that are NaN "
                "or infinite, which would spoil what is decoded too: replace them"
            )
        return self._leader.submit(x)

    def infer(self, x: Tensor | npt.NDArray[np.float32]) -> Answer:
        """Run one query and wait for its Answer(output, mode, arrived, latency, …)."""
        return self.submit(x).result()


def _tensor(x: Any) -> Tensor:
    """Return a tensor over the same memory, where that can be."""
    if isinstance(x, np.ndarray):
        if x.dtype != np.float32:
            raise PlanError(
                f"a query is an array of {x.dtype}, not of float32; convert it as in training: "
                "x.astype('float32')"
            )
        return torch.from_numpy(np.require(x, requirements=("C", "W")))
    if not isinstance(x, Tensor):
        raise PlanError(
            f"a query is a {type(x).__name__}, not a tensor: give torch.Tensor or numpy.ndarray, "
            "such as torch.as_tensor(x, dtype=torch.float32)"
        )
    if x.device.type != "cpu" or x.layout != torch.strided:
        raise PlanError(f"a query is {x.layout} on {x.device}: give x.to_dense().cpu()")
    return x.detach()
