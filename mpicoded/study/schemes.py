"""Schemes that fill in erasures: the codes of jobs, and the baselines beside them in every table.

zero-fill      zero for what is missing, as ADCNN (Zhang et al., ICPP 2020) does
mean           the mean of the data units that arrived
replication    r copies, of data units 0, 1, …; zero for a unit of which no copy arrived
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mpicoded.codes import Arrived
from mpicoded.codes.erasures import erasures
from mpicoded.job import Job
from mpicoded.runtime.deployment import Deployment, uncoded

Fill = Callable[[Tensor, Arrived], Tensor]  # data outputs (k, …), arrived (k,) -> (k, …)


@dataclass(frozen=True)
class Scheme:
    """A deployment's own code (``fill`` is None), or a baseline.

    It has ``r`` units beyond the k data units, or is compared with codes that have ``scenario``
    of them; ``patterns`` (…, n) leave something to fill.
    """

    name: str
    deployment: Deployment
    r: int
    scenario: int
    patterns: tuple[Arrived, ...]
    fill: Fill | None = None
    copies: bool = False  # unit k + j is a copy of data unit j mod k

    @property
    def k(self) -> int:
        """Data units."""
        return self.deployment.plan.k

    @property
    def by_images(self) -> bool:
        """True if its units are images."""
        return self.deployment.plan.stages[0].split == "batch"

    @property
    def systematic(self) -> bool:
        """True if data units are among its units."""
        return self.fill is not None or self.deployment.segment_codes[0].systematic

    def possible(self, arrived: Arrived) -> bool:
        """True if it can fill the erasures of this pattern; a baseline always can."""
        return self.fill is not None or all(
            code.fillable(arrived) for code in self.deployment.segment_codes
        )

    def effective(self, arrived: Arrived) -> Arrived:
        """Reduce a pattern to what counts: of a baseline the data units, or their copies."""
        if self.fill is None:
            return arrived
        if not self.copies:
            return arrived[: self.k]
        return np.array([arrived[i :: self.k].any() for i in range(self.k)])

    def missing(self, arrived: Arrived) -> tuple[int, int]:
        """Count missing data units and parity units; all are the former if not systematic."""
        data = arrived[: self.k] if self.systematic else arrived
        return int((~data).sum()), int((~arrived[len(data) :]).sum())

    def outputs_missing(self, arrived: Arrived) -> Arrived:
        """Return which outputs of a query are filled in: (k,) of images, (1,) of shards."""
        if not self.systematic:
            return np.ones(self.k if self.by_images else 1, bool)
        data = ~arrived[: self.k]
        return data if self.by_images else np.array([data.any()])

    def by_query(self, values: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return values (B,) as (outputs, queries): k rows where units are images, else one."""
        return np.asarray(values).reshape(self.k if self.by_images else 1, -1)


def schemes(jobs: Sequence[Job], built: Sequence[Deployment], lost: int | None) -> list[Scheme]:
    """Return the jobs' codes in order, then the baselines, with at most ``lost`` units missing."""
    most = max(1, *(d.plan.r for d in built)) if lost is None else lost
    found = []
    for name, deployment in zip(_names(jobs), built, strict=True):
        r, code = deployment.plan.r, deployment.segment_codes[0]
        patterns = _patterns(code.n, min(most, code.n - 1), code.k if code.systematic else None)
        found.append(Scheme(name, deployment, r, r or most, patterns))
    return found + list(_baselines(built, most))


def _names(jobs: Sequence[Job]) -> list[str]:
    """Name schemes after their codes; after k, r and the job file too where that is not enough."""
    plain = [job.code.name for job in jobs]
    sized = [f"{job.code.name} k={job.code.k} r={job.code.r}" for job in jobs]
    filed = [f"{job.code.name} ({job.file.stem})" for job in jobs]
    for candidate in (plain, sized, filed):
        if max(Counter(candidate).values()) == 1:
            return candidate
    return [f"{name} {number}" for number, name in enumerate(filed, 1)]


def _patterns(n: int, lost: int, k: int | None) -> tuple[Arrived, ...]:
    """Return the patterns that leave something to fill: a data unit of ``k``, or all outputs."""
    return tuple(a for a in erasures(n, lost) if k is None or not a[:k].all())


def _baselines(deployments: Sequence[Deployment], lost: int) -> Iterator[Scheme]:
    """Yield the baselines of every partition of the work, and of every r."""
    cuts: dict[object, tuple[Deployment, list[int]]] = {}
    for deployment in deployments:
        bare = uncoded(deployment.chain, deployment.plan, deployment.pixels)
        bare, rs = cuts.setdefault(deployment.plan.stages, (bare, []))
        if deployment.plan.r not in rs:
            rs.append(deployment.plan.r)
    for bare, rs in cuts.values():
        k = bare.plan.k
        cut = f" k={k} {bare.plan.split}" if len(cuts) > 1 else ""
        patterns = _patterns(k, min(lost, k), k)
        yield Scheme(f"zero-fill{cut}", bare, 0, lost, patterns, zero)
        yield Scheme(f"mean{cut}", bare, 0, lost, patterns, mean)
        for r in sorted(set(rs) - {0}):
            size = f" r={r}" if len(rs) > 1 else ""
            name, patterns = (
                f"replication, else zero{cut}{size}",
                _patterns(k + r, min(lost, k + r - 1), k),
            )
            yield Scheme(name, bare, r, r, patterns, zero, True)


def _mask(y: Tensor, arrived: Arrived) -> Tensor:
    return torch.from_numpy(arrived).view(-1, *[1] * (y.dim() - 1))


def zero(y: Tensor, arrived: Arrived) -> Tensor:
    """Fill in zero for every missing unit."""
    return y * _mask(y, arrived)  # (k, …)


def mean(y: Tensor, arrived: Arrived) -> Tensor:
    """Fill in the mean of the data units that arrived for every missing one."""
    mask = _mask(y, arrived)
    return torch.where(mask, y, (y * mask).sum(0) / max(1, int(mask.sum())))  # (k, …)
