"""The supervisor: starts a job under mpirun, watches it, and starts it again when that has died.

    start ── mpirun ends ──┬─ the results file is complete ────────────────── 0
      ▲    or is ended:    ├─ the job is wrong (2), a worker raised (1) ───── its status
      │    a rank is gone, ├─ the last two starts answered nothing ────────── its status
      │    or no answer    └─ ask all hosts; leave out those that are silent ─┐
      └─ for ``stall`` s ── --resume ─────────────────────────────────────────┘

The results file is the only memory: what stands there is answered, and --resume asks the rest.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mpicoded.cluster_tools.launch.allocation import allocated_agent, allocated_hosts, alone
from mpicoded.cluster_tools.launch.command import SSH, check
from mpicoded.cluster_tools.launch.judge import Ended, final, refusal
from mpicoded.cluster_tools.launch.leftovers import sweep
from mpicoded.cluster_tools.launch.mpi import Mpi, find
from mpicoded.cluster_tools.launch.nodes import (
    Refusal,
    fit,
    last_line,
    names_of_this_machine,
    placed,
    refusals,
)
from mpicoded.cluster_tools.launch.order import Order, of_job, of_program
from mpicoded.cluster_tools.launch.outline import Outline
from mpicoded.cluster_tools.launch.process import Start
from mpicoded.cluster_tools.launch.progress import Progress, look
from mpicoded.cluster_tools.launch.roll import Roll
from mpicoded.cluster_tools.launch.signals import Stopped, stopping
from mpicoded.cluster_tools.launch.target import Host, Limits, Target
from mpicoded.cluster_tools.launch.watch import DOES_NOT_END, View, wait, watch
from mpicoded.errors import JobError

ONCE_MORE = 1.0  # s between two rounds of asking while no host answers
NO_FT = "with {} the death of a rank ends the job; it is then started again and goes on"


def supervise(
    job: Path | Sequence[str],
    target: Target,
    sets: Sequence[str] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
    limits: Limits | None = None,
) -> int:
    """Run a job to its end and return the exit status.

    Words in place of a job file are any other program; it is run under mpirun once.

    Raises
    ------
    JobError
        If there is no mpirun, or the job file cannot be read.
    """
    limits = limits or Limits()
    check(target)
    mpi = find(target.mpirun)
    sweep()
    if isinstance(job, Path):
        flags = ["--resume"] * resume + ["--overwrite"] * overwrite
        return Supervisor(job, target, sets, mpi, limits).run(flags)
    order = of_program(mpi, target, job, 1, target.hosts, target.ranks)
    with stopping() as stopped:
        status = wait(Start(order), limits, stopped)
    return stopped.status if stopped.number else as_exit(status)


class Supervisor:
    """One job and all its starts, the oldest first in ``history``."""

    def __init__(
        self, job: Path, target: Target, sets: Sequence[str], mpi: Mpi, limits: Limits
    ) -> None:
        self.job, self.target, self.sets, self.mpi, self.limits = job, target, sets, mpi, limits
        self.outline = Outline.read(job, sets)
        self.history: list[Ended] = []
        self.ours: Progress | None = None  # what the file of this run, not of an older one, held
        self.silent: dict[str, Refusal] = {}  # hosts that could not be used when last asked
        self.lost: set[str] = set()  # hosts of ranks that died before the ranks had met
        self.elsewhere = False  # whether the results file is on another machine, out of our sight

    def order(self, flags: Sequence[str], hosts: Sequence[Host]) -> Order:
        """Return a start of the job on these hosts; without any, mpirun finds them itself."""
        ranks = fit(self.target.ranks, hosts, self._all_hosts() if hosts else ())
        job, starts = (self.job, self.outline, self.sets), len(self.history)
        return of_job(self.mpi, self.target, *job, flags, hosts, ranks, starts)

    def run(self, flags: Sequence[str]) -> int:
        """Start the job until it is done, or until starting it again is of no use."""
        if not self.mpi.survives:
            say(NO_FT.format(self.mpi.name))
        if "--resume" in flags:
            self.ours = look(self.outline.results)
        steps = self.ours.steps if self.ours else 0
        with stopping() as stopped:
            hosts = self._answering(self.target.hosts, stopped, first=True)
            if self.silent and hosts:
                say(f"{self._told_hosts(hosts)}, starting without")
            while hosts is not None and not stopped.number:
                again = self.ours or (self.elsewhere and self.history)
                order = self.order(["--resume"] if again else flags, hosts)
                self.history.append(self._start(order, stopped))
                status = self._verdict(stopped)
                if status is not None:
                    return status
                hosts = self._answering(self._all_hosts(), stopped)
                if hosts is not None and (why := self._refusal(steps, hosts)):
                    say(f"{self.history[-1].reason}; {why}; {self._told()}")
                    return 1 if self.history[-1].why else as_exit(self.history[-1].status) or 1
                if hosts is not None:
                    self._tell_restart(hosts)
        if stopped.number:
            return self._tell_stopped(stopped)
        return 1

    def _start(self, order: Order, stopped: Stopped) -> Ended:
        """Run mpirun once."""
        here = not order.hosts or bool(self.target.prefix)
        here = here or order.hosts[0].name in names_of_this_machine()
        places = placed(order.hosts, order.ranks)
        roll = Roll(order.ranks, places, len(order.hosts), alone(order.hosts))
        view = View(self.outline, self.limits, here, roll)
        self.elsewhere = not (here or view.before)
        start = Start(order)
        status, why = watch(start, view, self.limits, stopped)
        self.ours = view.now or self.ours
        finished = view.now is not None and view.now.finished
        if status == 0 and not finished:  # nothing was left to do, or the file is elsewhere
            self.ours = look(self.outline.results) or self.ours
            finished = self.ours.finished if self.ours else self.elsewhere
        steps = self.ours.steps if self.ours else 0
        names = tuple(host.name for host in order.hosts)
        self.lost.update(view.lost)
        met, last = view.now is not None, last_line(bytes(start.errors))
        return Ended(status, start.text(), why, steps, finished, names, view.lost, met, last)

    def _verdict(self, stopped: Stopped) -> int | None:
        """Return the exit status if there is nothing more to start."""
        ended = self.history[-1]
        status = final(ended, first=len(self.history) == 1)
        if ended.finished and ended.why == DOES_NOT_END:
            say(f"{ended.why}: it was ended")
        if stopped.number and not ended.finished:
            return self._tell_stopped(stopped)
        return status

    def _tell_stopped(self, stopped: Stopped) -> int:
        say(f"{stopped.why}; {self._told()}, --resume goes on with the rest")
        return stopped.status

    def _refusal(self, steps: int, hosts: Sequence[Host]) -> str:
        return refusal(self.history, self.limits, steps, tuple(host.name for host in hosts))

    def _all_hosts(self) -> tuple[Host, ...]:
        return self.target.hosts or allocated_hosts()

    def _answering(
        self, known: Sequence[Host], stopped: Stopped, first: bool = False
    ) -> tuple[Host, ...] | None:
        """Ask the hosts; return those that answer, () if mpirun is to find them, None if none.

        Raises
        ------
        JobError
            If a host refuses before the ``first`` start.
        """
        target = self.target
        if not target.hosts:
            target = replace(target, agent=target.agent or allocated_agent())
        end, waits = time.monotonic() + self.limits.hosts, False
        while known and not stopped.number:
            self.silent = refusals(target, known, *self._question(), lambda: bool(stopped.number))
            if first:
                self._check_refusals()
            hosts = tuple(host for host in known if host.name not in self.silent)
            hosts = tuple(host for host in hosts if host.name not in self.lost) or hosts
            self.silent |= {h.name: Refusal() for h in known if h not in hosts}
            if hosts:
                return hosts if self.target.hosts or self.silent else ()
            if time.monotonic() > end:
                say(f"no host has answered for {self.limits.hosts:g} s; {self._told()}")
                return None
            if not waits:
                say(f"none of {len(known)} hosts answers{self._why()}; asking again")
            waits = True
            time.sleep(ONCE_MORE)
        return ()

    def _question(self) -> tuple[float, Sequence[str]]:
        """Return for how long hosts are asked to run what; after ranks that did not meet, ours."""
        if self.history and not (self.history[-1].met or self.history[-1].lost):
            return self.outline.start_limit, (sys.executable, "-m", "mpicoded", "--help")
        return self.limits.probe, ("true",)

    def _check_refusals(self) -> None:
        for name, why in self.silent.items():
            if why.final:
                agent = shlex.split(self.target.agent or SSH)[0]
                said = why.said.rstrip(".") or f"{agent} ended with status {why.status}"
                raise JobError(
                    f"{name} refuses to start anything: {said}; mend that (`{agent} {name} true` "
                    "should work without a question), or leave the host out"
                )

    def _why(self) -> str:
        """Return what the first host that said something said."""
        said = next((why.said for why in self.silent.values() if why.said), "")
        return f" ({said})" if said else ""

    def _tell_restart(self, hosts: Sequence[Host]) -> None:
        how = "starting again"
        if self.silent:
            how = f"{self._told_hosts(hosts)}, starting again without"
        say(f"{self.history[-1].reason}; {how}; {self._told()}")

    def _told_hosts(self, hosts: Sequence[Host]) -> str:
        ranks = fit(self.target.ranks, hosts, self._all_hosts())
        fewer = f" ({ranks} ranks instead of {self.target.ranks})"
        verb = "does" if len(self.silent) == 1 else "do"
        names = ", ".join(self.silent)
        said = f"{names} {verb} not answer{self._why()}"
        if self.lost.issuperset(self.silent):
            said = f"leaving {names} out"
        return said + fewer * (ranks < self.target.ranks)

    def _told(self) -> str:
        return str(self.ours) if self.ours else "no query is answered"


def say(text: str) -> None:
    """Print one line about a decision."""
    sys.stdout.flush()
    print(f"launch: {text}", file=sys.stderr, flush=True)


def as_exit(status: int) -> int:
    """Return an exit status for one of a process, which is negative after a signal."""
    return status if status >= 0 else 128 - status
