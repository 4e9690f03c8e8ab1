"""The remote-start agent: start commands on a node of the lab, as ssh does on a machine.

    AGENT HOST WORDS…            as `ssh HOST WORDS…`: through a shell there
    AGENT --exec HOST WORDS…     the words as they are

A script by itself, run by its path. It lifts the node's limits (they begin when all ranks are
ready), enters its control group and its network, and takes a host name and a TMPDIR of its own:
two nodes with the same make Open MPI hang. Status 255 if the node cannot be reached, as ssh.
"""

import ctypes
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

UNREACHABLE = 255
CLONE_NEWUTS, CLONE_NEWNET = 0x04000000, 0x40000000


def main(argv: Sequence[str]) -> None:
    """Become the words, on the node."""
    sys.path.insert(0, str(Path(__file__).parents[3]))
    from mpicoded.errors import LabError

    name, *rest = argv
    literal = rest[:1] == ["--exec"]
    host, *words = rest[literal:]
    try:
        environment = enter(name, host)
    except LabError as error:
        print(f"lab: {host}: {error}", file=sys.stderr)
        sys.exit(UNREACHABLE)
    command = words if literal else ["/bin/sh", "-c", " ".join(words)]
    os.execvpe(command[0], command, {**os.environ, **environment})


def enter(name: str, host: str) -> dict[str, str]:
    """Make this process one of the node's; return what is new in its environment."""
    from mpicoded.cluster_tools.lab.lab import Lab
    from mpicoded.cluster_tools.lab.network import NETNS
    from mpicoded.cluster_tools.lab.state import Home
    from mpicoded.errors import LabError

    home = Home(name)
    state = home.need()
    lab = Lab.of(home, state.spec)
    index = state.spec.index(host)
    if any(fault.away for fault in state.of_node(index)):
        raise LabError("no route to host")
    if state.lift:
        lab.lift(index)
    lab.group(index).enter(os.getpid())
    with (NETNS / lab.network.namespace(index)).open("rb") as space:
        _system(ctypes.CDLL(None, use_errno=True).setns, space.fileno(), CLONE_NEWNET)
    _system(ctypes.CDLL(None, use_errno=True).unshare, CLONE_NEWUTS)
    socket.sethostname(state.spec.nodes[index].name)
    environment = lab.environment(index)
    # A folder for each start: what a killed mpirun leaves makes one of the same pid fail.
    return environment | {"TMPDIR": tempfile.mkdtemp(dir=environment["TMPDIR"])}


def _system(call: Callable[..., int], *arguments: int) -> None:
    if call(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    main(sys.argv[1:])
