"""The group as a Python program uses it: a context manager in the manner of mpi4py.futures.

with Group(MPI.COMM_WORLD, model, (1, 32, 32), code="replication", k=4, r=4) as group:
    if group is not None:               # rank 0; the others serve until it closes
        answer = group.infer(x)
"""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from mpi4py import MPI
from torch import Tensor, nn

from mpicoded.answer import Answer
from mpicoded.cluster import Cluster
from mpicoded.codes import CODES, Code, CodeRequest
from mpicoded.errors import DataError, JobError, PlanError, RemoteError
from mpicoded.expected_accuracy import KEY, AccuracyTable, about_code
from mpicoded.models.check import check_kind, check_weights, not_finite
from mpicoded.network.graph import trace
from mpicoded.network.linear import opened
from mpicoded.partition import PARTITIONS, Request
from mpicoded.plan import Plan
from mpicoded.runtime.check import check
from mpicoded.runtime.deployment import Deployment
from mpicoded.runtime.end import end_job, leave_later, leave_orphaned
from mpicoded.runtime.hall import Hall
from mpicoded.runtime.leader import Leader
from mpicoded.runtime.rollcall import duplicate
from mpicoded.runtime.settings import Settings
from mpicoded.runtime.setup import check_packs
from mpicoded.runtime.start import refuse_foreign
from mpicoded.runtime.threads import use_threads
from mpicoded.runtime.worker import serve
from mpicoded.trace import Trace


class Group:
    """One leader and its workers around ``model``, which is rank 0's: its weights go to all.

    Parameters
    ----------
    comm
        The ranks of the group. Every rank enters the ``with`` block; rank 0 gets the group, the
        others work inside ``__enter__`` until rank 0 leaves the block, and get None.
    model, shape
        The network and the shape (C, H, W) of one image.
    code, k, r
        A code by name (``mpicoded.codes.CODES``), its data units (None: as many as workers less r)
        and its parity units.
    split, stages, tiles
        How to cut: "width", "height", "tiles", "channels" or "batch"; names of each stage's last
        block.
    linear
        Whether every stage is one block without its activation, as exact codes need.
    weights, about
        Tensors and metadata of a trained code.
    settings
        Further fields of :class:`mpicoded.runtime.settings.Settings`: ``window``, ``deadline``, …

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
        code: str = "uncoded",
        k: int | None = None,
        r: int = 0,
        split: str = "width",
        stages: Sequence[str] = (),
        tiles: tuple[int, int] | None = None,
        linear: bool = False,
        batch: int = 1,
        weights: dict[str, Tensor] | None = None,
        about: dict[str, str] | None = None,
        **settings: Any,
    ) -> None:
        self.comm = comm
        self.model, self.shape = model, shape
        self.code, self.k, self.r = code, k, r
        self.split, self.stages, self.tiles, self.batch = split, tuple(stages), tiles, batch
        self.linear = linear or split == "channels"
        self.weights, self.about = weights, about or {}
        self.settings = Settings(**settings)

    def __enter__(self) -> Group | None:
        """Start: on rank 0 return the group, elsewhere serve."""
        limit = self.settings.start_limit
        comm = self._own_comm(limit)  # no message of the user's can be taken for one of ours
        if comm.Get_rank() > 0:
            leave_later(comm, [])
            if serve(comm, limit) is None:
                leave_orphaned(comm)
            return None
        hall = Hall(comm, limit)
        leave_later(comm, hall.stuck)
        try:
            deployment = self._deploy()
            deployment.plan.check(Cluster.local(hall.ranks), self.settings.sharing)
            deployment.check_wire(self.settings.wire, self.settings.parity)
            cluster = hall.meet(limit)
            use_threads(self.settings.threads)
            self._leader = Leader(hall, cluster, deployment, self.settings)
        except BaseException:
            hall.release()
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

    def _deploy(self) -> Deployment:
        _known("code", self.code, CODES)
        _known("split", self.split, PARTITIONS)
        if self.code == "learned" and self.weights is None:
            raise JobError("the learned code needs the weights and about of its file; see README")
        check_kind(self.model)
        check_weights(self.model)
        for key, tensor in (self.weights or {}).items():
            if why := not_finite(tensor):
                raise DataError(f"the code's weights: {key} holds {why}; train them again")
        workers = max(1, self.comm.Get_size() - 1)
        k = workers - self.r if self.k is None else self.k
        chain = trace(self.model, self.shape)
        if self.linear:
            chain = opened(chain)
        request = Request(
            chain, k, self.r, self.stages, self.tiles, batch=self.batch, linear=self.linear
        )
        plan = PARTITIONS[self.split](request)
        codes = tuple(
            CODES[self.code](CodeRequest(k, self.r, stage, self.weights, self.about, chain=chain))
            for stage in plan.stages
        )
        self._attach(codes, plan)
        deployment = Deployment(chain, plan, codes)
        check_packs(deployment.programs())
        check(deployment)
        return deployment

    def _attach(self, codes: Sequence[Code], plan: Plan) -> None:
        """Tell the code what its answers are worth, if its file says it of this very plan."""
        if KEY in self.about and len(codes) == 1:
            table = AccuracyTable.parse(self.about[KEY])
            fits = not table.misfits(about_code(self.code, plan.k, plan.r, plan.stages[0]))
            codes[0].expected = table if fits else None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace_: TracebackType | None,
    ) -> None:
        """Finish what is in flight and send the workers home."""
        if self.comm.Get_rank() == 0:
            self._leader.close()
            self._leader.hall.release()

    @property
    def plan(self) -> Plan:
        """Who computes what."""
        return self._leader.deployment.plan

    @property
    def cluster(self) -> Cluster:
        """The ranks and their hosts."""
        return self._leader.cluster

    @property
    def trace(self) -> Trace:
        """What happened so far; see :mod:`mpicoded.trace`."""
        return self._leader.record.trace

    @property
    def began(self) -> float:
        """``time.perf_counter()`` at second 0 of the trace."""
        return self._leader.record.began

    def submit(self, x: Tensor | npt.NDArray[np.float32]) -> Future[Answer]:
        """Queue a query, (B, C, H, W) or one image (C, H, W); its future gives the Answer.

        ``x`` is not copied: leave it as it is until the answer is there.

        Raises
        ------
        PlanError
            If it is no float32 tensor or array of the group's shape, or not finite.
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


def _known(what: str, name: str, names: dict[str, Any]) -> None:
    if name not in names:
        raise JobError(f"there is no {what} {name!r}: choose one of {', '.join(names)}")
