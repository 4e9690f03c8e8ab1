"""The supervisor: start a job under mpirun, watch it, and start it again when that has died.

    start ── mpirun ends ──┬─ the results file is complete ────────────────── 0
      ▲    or is ended:    ├─ the job is wrong (2), a worker raised (1) ───── its status
      │    a rank is gone, ├─ the last two starts answered nothing ────────── its status
      │    or no answer    └─ ask all hosts; leave out those that are silent ─┐
      └─ for ``stall`` s ── --resume ─────────────────────────────────────────┘

The results file is the only memory: what stands there is answered, and --resume asks the rest.
"""

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mpicoded.cluster_tools.launch.hostfile import allocated_agent, allocated_hosts, alone
from mpicoded.cluster_tools.launch.job_header import JobHeader
from mpicoded.cluster_tools.launch.leftovers import sweep
from mpicoded.cluster_tools.launch.machines import Host, Limits, Machines
from mpicoded.cluster_tools.launch.mpi import Mpi, find
from mpicoded.cluster_tools.launch.nodes import (
    SSH,
    Refusal,
    fit,
    last_line,
    names_of_this_machine,
    placed,
    refusals,
)
from mpicoded.cluster_tools.launch.process import Start, Stopped, stopping
from mpicoded.cluster_tools.launch.progress import Progress, look
from mpicoded.cluster_tools.launch.restart import Ended, final, refusal
from mpicoded.cluster_tools.launch.start_command import StartCommand, again, check, of_program
from mpicoded.cluster_tools.launch.watch import DOES_NOT_END, Roll, View, watch
from mpicoded.errors import JobError

ONCE_MORE = 1.0  # s between two rounds of asking while no host answers
NO_FT = "with {} the death of a rank ends the job; it is then started again and goes on"


def supervise(
    job: Path | Sequence[str],
    machines: Machines,
    sets: Sequence[str] = (),
    flags: Sequence[str] = (),
    limits: Limits | None = None,
) -> int:
    """Run a job, or a program's words once; return the exit status; JobError if it cannot start."""
    limits = limits or Limits()
    check(machines)
    mpi = find(machines.mpirun)
    sweep()
    if isinstance(job, Path):
        return Supervisor(job, machines, sets, mpi, limits).run(flags)
    command = of_program(mpi, machines, job, 1, machines.hosts, machines.ranks)
    with stopping() as stopped:
        status, _ = watch(Start(command), None, limits, stopped)
    return stopped.status if stopped.number else as_exit(status)


class Supervisor:
    """One job and all its starts, the oldest first in ``history``."""

    def __init__(
        self, job: Path, machines: Machines, sets: Sequence[str], mpi: Mpi, limits: Limits
    ) -> None:
        self.job, self.machines, self.sets, self.mpi, self.limits = job, machines, sets, mpi, limits
        self.header = JobHeader.read(job, sets)
        self.history: list[Ended] = []
        self.ours: Progress | None = None  # what the file of this run, not of an older one, held
        self.silent: dict[str, Refusal] = {}  # hosts that could not be used when last asked
        self.lost: set[str] = set()  # hosts of ranks that died before the ranks had met
        self.elsewhere = False  # true if the results file is on another machine, out of our sight

    def command(self, flags: Sequence[str], hosts: Sequence[Host]) -> StartCommand:
        """Return a start of the job on these hosts; without any, mpirun finds them itself."""
        header, options = self.header, list(self.sets)
        ranks = fit(self.machines.ranks, hosts, self._all_hosts() if hosts else ())
        machines = again(self.machines, hosts, ranks, len(self.history))
        if ranks < machines.ranks and 1 < ranks <= header.units:
            options.append("runtime.sharing=true")  # too few without a host: several units each
        name = f"./{self.job}" if str(self.job).startswith("-") else str(self.job)  # no option
        program = [sys.executable, "-m", "mpicoded", "run", name, *flags]
        program += [word for each in options for word in ("--set", each)]
        return of_program(self.mpi, machines, program, header.threads, hosts, ranks)

    def run(self, flags: Sequence[str]) -> int:
        """Start the job until it is done, or until starting it again is of no use."""
        if not self.mpi.survives:
            say(NO_FT.format(self.mpi.name))
        if "--resume" in flags:
            self.ours = look(self.header.results)
        steps = self.ours.steps if self.ours else 0
        with stopping() as stopped:
            hosts = self._answering(self.machines.hosts, stopped, first=True)
            if self.silent and hosts:
                say(f"{self._absent(hosts)}, starting without")
            while hosts is not None and not stopped.number:
                again = self.ours or (self.elsewhere and self.history)
                ended = self._start(self.command(["--resume"] if again else flags, hosts), stopped)
                self.history.append(ended)
                if ended.finished and ended.why == DOES_NOT_END:
                    say(f"{ended.why}: it was ended")
                if stopped.number and not ended.finished:
                    break
                status = final(ended, first=len(self.history) == 1)
                if status is not None:
                    return status
                hosts = self._answering(self._all_hosts(), stopped)
                if hosts is not None and not self._goes_on(ended, steps, hosts):
                    return 1 if ended.why else as_exit(ended.status) or 1
        if not stopped.number:
            return 1
        say(f"{stopped.why}; {self._progress}, --resume goes on with the rest")
        return stopped.status

    def _start(self, command: StartCommand, stopped: Stopped) -> Ended:
        """Run mpirun once."""
        names = tuple(host.name for host in command.hosts)
        local = not names or bool(self.machines.prefix) or names[0] in names_of_this_machine()
        places = placed(command.hosts, command.ranks)
        roll = Roll(command.ranks, places, len(names), alone(command.hosts))
        view = View(self.header, self.limits, local, roll)
        self.elsewhere = not (local or view.before)
        start = Start(command)
        status, why = watch(start, view, self.limits, stopped)
        self.ours = view.now or self.ours
        finished = view.now is not None and view.now.finished
        if status == 0 and not finished:  # nothing was left to do, or the file is elsewhere
            self.ours = look(self.header.results) or self.ours
            finished = self.ours.finished if self.ours else self.elsewhere
        steps = self.ours.steps if self.ours else 0
        self.lost.update(view.lost)
        met, last = view.now is not None, last_line(bytes(start.errors))
        return Ended(status, start.text(), why, steps, finished, names, view.lost, met, last)

    def _goes_on(self, ended: Ended, steps: int, hosts: Sequence[Host]) -> bool:
        """Print if, and how, the job is started again; return if it is."""
        names = tuple(host.name for host in hosts)
        why = refusal(self.history, self.limits, steps, names)
        again = f"{self._absent(hosts)}, starting again without" if self.silent else ""
        say(f"{ended.reason}; {why or again or 'starting again'}; {self._progress}")
        return not why

    def _all_hosts(self) -> tuple[Host, ...]:
        return self.machines.hosts or allocated_hosts()

    def _answering(
        self, known: Sequence[Host], stopped: Stopped, first: bool = False
    ) -> tuple[Host, ...] | None:
        """Return the hosts that answer, () if mpirun finds them, None if none; JobError."""
        machines = self.machines
        if not machines.hosts:
            machines = replace(machines, agent=machines.agent or allocated_agent())
        end, waits = time.monotonic() + self.limits.hosts, False
        while known and not stopped.number:
            self.silent = refusals(machines, known, *self._question(), lambda: bool(stopped.number))
            if first:
                self._check_refusals()
            hosts = tuple(host for host in known if host.name not in self.silent)
            hosts = tuple(host for host in hosts if host.name not in self.lost) or hosts
            self.silent |= {h.name: Refusal() for h in known if h not in hosts}
            if hosts:
                return hosts if self.machines.hosts or self.silent else ()
            if time.monotonic() > end:
                say(f"no host has answered for {self.limits.hosts:g} s; {self._progress}")
                return None
            if not waits:
                say(f"none of {len(known)} hosts answers{self._why}; asking again")
            waits = True
            time.sleep(ONCE_MORE)
        return ()

    def _question(self) -> tuple[float, Sequence[str]]:
        """Return for how long hosts are asked to run which words."""
        if self.history and not (self.history[-1].met or self.history[-1].lost):
            return self.header.start_limit, (sys.executable, "-m", "mpicoded", "--help")
        return self.limits.probe, ("true",)

    def _check_refusals(self) -> None:
        for name, why in self.silent.items():
            if why.final:
                agent = shlex.split(self.machines.agent or SSH)[0]
                message = why.message.rstrip(".") or f"{agent} ended with status {why.status}"
                raise JobError(
                    f"{name} refuses to start anything: {message}; mend that (`{agent} {name} "
                    "true` should work without a question), or leave the host out"
                )

    def _absent(self, hosts: Sequence[Host]) -> str:
        """Return which hosts are left out, in words, and how many ranks remain on the others."""
        ranks = fit(self.machines.ranks, hosts, self._all_hosts())
        fewer = f" ({ranks} ranks instead of {self.machines.ranks})"
        names, verb = ", ".join(self.silent), "does" if len(self.silent) == 1 else "do"
        left_out = f"{names} {verb} not answer{self._why}"
        if self.lost.issuperset(self.silent):
            left_out = f"leaving {names} out"
        return left_out + fewer * (ranks < self.machines.ranks)

    @property
    def _why(self) -> str:
        """The message of the first host that gave one."""
        message = next((why.message for why in self.silent.values() if why.message), "")
        return f" ({message})" if message else ""

    @property
    def _progress(self) -> str:
        return str(self.ours) if self.ours else "no query is answered"


def say(text: str) -> None:
    """Print one line about a decision."""
    sys.stdout.flush()
    print(f"launch: {text}", file=sys.stderr, flush=True)


def as_exit(status: int) -> int:
    """Return an exit status for one of a process, which is negative after a signal."""
    return status if status >= 0 else 128 - status
