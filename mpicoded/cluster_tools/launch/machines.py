"""Machines: the hosts of a job, and the limits of its supervisor."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Host:
    """A machine, by a name or address that the others know, and how many ranks may run there."""

    name: str
    slots: int = 1


@dataclass(frozen=True)
class Machines:
    """``ranks`` ranks on ``hosts``; without hosts on this machine, or where a batch system says.

    ``agent`` is a command that starts another on a host (``AGENT HOST WORDS…``; default: ssh),
    ``interface`` the network interface for MPI's messages. ``prefix`` are words before mpirun.
    ``env`` goes to every rank. ``reachable(host, stopped)`` tells whether a host can be used
    (default: the agent runs ``true`` there in time); once ``stopped()`` it waits no longer.
    ``mpirun`` is the program (default: of this environment).
    """

    ranks: int
    hosts: tuple[Host, ...] = ()
    agent: str | None = None
    interface: str | None = None
    prefix: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    reachable: Callable[[str, Callable[[], bool]], bool] | None = None
    mpirun: str | None = None


@dataclass(frozen=True)
class Limits:
    """Limits of the supervisor: starts of the job, and seconds that it waits.

    ``stall``: for the next answer while no rank is at work; ``end``: for mpirun's end when the run
    is complete; ``probe``: for a host's answer; ``hosts``: for any host; ``kill``: from SIGTERM to
    SIGKILL of mpirun.
    """

    restarts: int = 10
    stall: float = 15.0
    end: float = 10.0
    probe: float = 3.0
    hosts: float = 120.0
    kill: float = 4.0
