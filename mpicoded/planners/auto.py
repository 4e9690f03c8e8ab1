"""The best of all planners for the objective, by one cost model: never worse than one device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from mpicoded.cost.prediction import Prediction
from mpicoded.cost.usage import Usage
from mpicoded.errors import PlanError
from mpicoded.plan import Plan
from mpicoded.planners.base import Planner, Problem


@dataclass(frozen=True)
class Candidate:
    """A planner's plan, and what it is predicted to take."""

    name: str
    plan: Plan
    problem: Problem

    @cached_property
    def prediction(self) -> Prediction:
        """Seconds of a query."""
        return self.problem.model.predict(self.plan)

    @cached_property
    def usage(self) -> Usage:
        """Seconds that devices and links are busy."""
        return Usage.of(self.problem.model, self.plan)

    @cached_property
    def memory(self) -> int:
        """Bytes of the rank that needs most."""
        cluster, memory = self.problem.cluster, self.problem.memory
        return max(memory.of(self.plan, p, cluster).total for p in range(len(cluster.hosts)))

    @property
    def fits(self) -> bool:
        """True if all ranks have the memory that they need."""
        return self.problem.memory.fits(self.plan, self.problem.cluster)

    @cached_property
    def score(self) -> tuple[float, float]:
        """Return the objective, and the latency among plans that are equal by it."""
        latency = self.prediction.latency
        if self.problem.objective == "throughput":
            return self.problem.period(self.plan)
        if self.problem.objective == "memory":
            return self.memory, latency
        if self.problem.objective == "p99":
            assert self.problem.tail is not None, "p99 is simulated"
            return self.problem.tail(self.plan), latency
        return latency, latency


def candidates(
    problem: Problem, planners: Mapping[str, Planner]
) -> Iterator[Candidate | PlanError]:
    """Yield the plan of each planner that has one, in their order, and why the others have none."""
    for name, planner in planners.items():
        try:
            yield Candidate(name, planner(problem), problem)
        except PlanError as error:
            yield PlanError(f"{name}: {error}")


def auto(problem: Problem, planners: Mapping[str, Planner]) -> Plan:
    """Return the best plan; PlanError if rank 0 has the memory for none of them."""
    found = [each for each in candidates(problem, planners) if isinstance(each, Candidate)]
    fitting = [each for each in found if each.fits]
    if not fitting:
        problem.memory.check(found[0].plan, problem.cluster)  # raises
    return min(fitting, key=lambda each: each.score).plan
