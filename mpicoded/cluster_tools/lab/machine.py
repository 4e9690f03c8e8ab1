"""Check this machine: if a lab can be built here, and how large an honest one is."""

import os
import shutil
from itertools import accumulate

from mpicoded.cluster_tools.lab import shell
from mpicoded.cluster_tools.lab.network import REDIRECT
from mpicoded.cluster_tools.lab.spec import Spec
from mpicoded.cluster_tools.lab.units import show_size
from mpicoded.errors import LabError

# Features of the kernel: name, module, and a command that succeeds where it is there.
FEATURES = (
    ("bridges", "bridge", "ip link add br0 type bridge"),
    ("veth pairs", "veth", "ip link add p0 type veth peer name p1"),
    ("token buckets", "sch_tbf", "tc qdisc add dev p0 root tbf rate 1mbit burst 32kb latency 1s"),
)
SHARED_FEATURES = (
    ("ifb devices", "ifb", "ip link add air type ifb"),
    ("ingress queues", "sch_ingress", "tc qdisc add dev p0 ingress"),
    (
        "redirection between devices",
        "cls_u32 act_mirred",
        f"tc filter add dev p0 parent ffff: {REDIRECT}",
    ),
)


def check(spec: Spec) -> None:
    """Check root, tools, cores and memory; LabError with one line that says what to do."""
    check_tools()
    check_cores(spec, len(os.sched_getaffinity(0)))
    check_memory(spec, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def check_tools() -> None:
    """Check that we may and can build anything; LabError."""
    if os.geteuid() != 0:
        raise LabError(
            "the lab needs root: it makes network namespaces and control groups; use sudo, or a "
            "virtual machine"
        )
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            raise LabError(f"there is no {tool!r} here: install iproute2 (apt install iproute2)")


def check_cores(spec: Spec, cores: int) -> None:
    """Check that all nodes can have their share at the same time; LabError."""
    shares = [node.cpu for node in spec.nodes]
    if sum(shares) <= cores + 1e-9:
        return
    asked = f"{len(shares)} nodes ask for {sum(shares):.3g} cores and this machine has {cores}"
    if len(set(shares)) == 1:
        less = int(100 * cores / len(shares)) / 100
        fit = int(cores / shares[0] + 1e-9)
        raise LabError(
            f"{asked}: it can honestly emulate {fit or 'no'} nodes of {shares[0]:g}"
            + (f", or {len(shares)} of {less:g} (--cpu {less:g})" if less >= 0.01 else "")
        )
    fit = sum(total <= cores + 1e-9 for total in accumulate(sorted(shares)))
    raise LabError(
        f"{asked}: it can honestly emulate the {fit} smallest of them, or all with their cpu times "
        f"{cores / sum(shares):.2f}"
    )


def check_memory(spec: Spec, total: int) -> None:
    """Check that the nodes' memory is there; LabError."""
    asked = sum(node.memory or 0 for node in spec.nodes)
    if asked > total:
        raise LabError(
            f"{len(spec.nodes)} nodes ask for {show_size(asked)} of memory and this machine has "
            f"{show_size(total)}: ask for less, or leave the limit out"
        )


def check_kernel(lab: str, shared: bool) -> None:
    """Try all that a lab is made of in a namespace, which goes with the lab; LabError."""
    space = f"{lab}-probe"
    try:
        shell.run(["ip", "netns", "add", space])
    except shell.CommandError as error:
        raise LabError(f"this kernel, or container, has no network namespaces: {error}") from None
    for feature, module, command in FEATURES + SHARED_FEATURES * shared:
        tool, *words = command.split()
        try:
            shell.run([tool, "-n", space, *words])
        except shell.CommandError as error:
            raise LabError(f"this kernel has no {feature} (modprobe {module}): {error}") from None
    shell.run(["ip", "netns", "del", space])
