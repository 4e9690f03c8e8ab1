"""Ways to fill holes: the codes of jobs, and the baselines that every table has beside them.

    zero-fill      zero for what is missing, as ADCNN (Zhang et al., ICPP 2020) does
    mean           the mean of the data units that are here
    replication    r copies, of data units 0, 1, …; zero for what has no copy that is here

Baselines depend on how the work is cut and on r, never on a code: jobs that agree in these share
them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mpicoded.codes import Arrived
from mpicoded.codes.erasures import erasures
from mpicoded.runtime.deployment import Deployment, uncoded

if TYPE_CHECKING:
    from mpicoded.job import Job

Fill = Callable[[Tensor, Arrived], Tensor]  # data outputs (k, …), arrived (k,) -> (k, …)


@dataclass(frozen=True)
class Way:
    """One way: ``fill`` is None for the deployment's own code.

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
        """Whether its units are images."""
        return self.deployment.plan.stages[0].split == "batch"

    @property
    def systematic(self) -> bool:
        """Whether data units are among its units."""
        return self.fill is not None or self.deployment.codes[0].systematic

    def possible(self, arrived: Arrived) -> bool:
        """Whether it can fill what this pattern leaves open; a baseline always can."""
        return self.fill is not None or all(c.fillable(arrived) for c in self.deployment.codes)

    def here(self, arrived: Arrived) -> Arrived:
        """Return what counts of a pattern: of a baseline, which data units are here, or a copy."""
        if self.fill is None:
            return arrived
        if not self.copies:
            return arrived[: self.k]
        return np.array([arrived[i :: self.k].any() for i in range(self.k)])

    def missing(self, arrived: Arrived) -> tuple[int, int]:
        """Return how many data units and how many parity units are missing.

        Without data units among them, all count as the former.
        """
        data = arrived[: self.k] if self.systematic else arrived
        return int((~data).sum()), int((~arrived[len(data) :]).sum())

    def outputs_missing(self, arrived: Arrived) -> Arrived:
        """Return which outputs of a query are filled in: (k,) of images, (1,) of shards."""
        if not self.systematic:
            return np.ones(self.k if self.by_images else 1, bool)
        data = ~arrived[: self.k]
        return data if self.by_images else np.array([data.any()])


def ways(jobs: Sequence[Job], deployments: Sequence[Deployment], lost: int | None) -> list[Way]:
    """Return the codes in the order of their jobs, then the baselines.

    Patterns have at most ``lost`` units missing; None: as many as the codes are made for.
    """
    most = max(1, *(d.plan.r for d in deployments)) if lost is None else lost
    found = []
    for name, deployment in zip(names(jobs), deployments, strict=True):
        r = deployment.plan.r
        found.append(Way(name, deployment, r, r or most, _patterns(deployment, most)))
    return found + list(_baselines(deployments, most))


def names(jobs: Sequence[Job]) -> list[str]:
    """Name ways after their codes; after k, r and the job file too where that does not tell."""
    plain = [job.code.name for job in jobs]
    sized = [f"{job.code.name} k={job.code.k} r={job.code.r}" for job in jobs]
    filed = [f"{job.code.name} ({job.file.stem})" for job in jobs]
    for candidate in (plain, sized, filed):
        if max(Counter(candidate).values()) == 1:
            return candidate
    return [f"{name} {number}" for number, name in enumerate(filed, 1)]


def _patterns(deployment: Deployment, lost: int) -> tuple[Arrived, ...]:
    """Return the patterns that leave something to fill."""
    code = deployment.codes[0]
    found = erasures(code.n, min(lost, code.n - 1))
    return tuple(a for a in found if not (code.systematic and a[: code.k].all()))


def _baselines(deployments: Sequence[Deployment], lost: int) -> Iterator[Way]:
    """Yield the baselines of every way to cut the work, and of every r."""
    cuts: dict[object, tuple[Deployment, list[int]]] = {}
    for deployment in deployments:
        bare = uncoded(deployment.chain, deployment.plan, deployment.pixels)
        bare, rs = cuts.setdefault(deployment.plan.stages, (bare, []))
        if deployment.plan.r not in rs:
            rs.append(deployment.plan.r)
    several = len(cuts) > 1
    for bare, rs in cuts.values():
        k, split = bare.plan.k, bare.plan.split
        cut = f" k={k} {split}" if several else ""
        patterns = tuple(a for a in erasures(k, min(lost, k)) if not a.all())
        yield Way(f"zero-fill{cut}", bare, 0, lost, patterns, zero)
        yield Way(f"mean{cut}", bare, 0, lost, patterns, mean)
        for r in sorted(set(rs) - {0}):
            patterns = tuple(a for a in erasures(k + r, min(lost, k + r - 1)) if not a[:k].all())
            size = f" r={r}" if len(rs) > 1 else ""
            yield Way(f"replication, else zero{cut}{size}", bare, r, r, patterns, zero, True)


def _here(y: Tensor, arrived: Arrived) -> Tensor:
    return torch.from_numpy(arrived).view(-1, *[1] * (y.dim() - 1))


def zero(y: Tensor, arrived: Arrived) -> Tensor:
    """Zero for what is missing."""
    return y * _here(y, arrived)  # (k, …)


def mean(y: Tensor, arrived: Arrived) -> Tensor:
    """The mean of the data units that are here for each that is not."""
    here = _here(y, arrived)
    return torch.where(here, y, (y * here).sum(0) / max(1, int(here.sum())))  # (k, …)
