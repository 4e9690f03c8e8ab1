"""The network of a lab: a namespace for each node, one with the switch, and the links' rates.

    node n0      switch                     node n1
    eth0 ------- p0 --- bridge br0 --- p1 ------- eth0        switched: token buckets (tbf) at
      tbf -> <- tbf                tbf -> <- tbf              both ends of every link

On a shared medium everything that comes in at a port goes through one token bucket, on the device
``air`` (an ifb), before the bridge sees it. Nothing of this is ever outside these namespaces.
"""

import os
import signal
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpicoded.cluster_tools.lab import shell
from mpicoded.cluster_tools.lab.spec import SWITCH, Spec
from mpicoded.errors import LabError

NETNS = Path("/run/netns")
FREE = "pfifo limit 10000"  # instead of a token bucket when limits are lifted
REDIRECT = "protocol all pref 9 u32 match u32 0 0 action mirred egress redirect dev air"
HOLE = ("link add hole type ifb", "link set hole addrgenmode none up")
NO_BUCKET = "tbf rate 1kbit burst 10 limit 1"  # too small for any packet
SMALL = 3100  # bytes; two packets on a wire of usual MTU
Rates = Mapping[int, int | None]  # bit/s by number of the node; None: free


@dataclass(frozen=True)
class Traffic:
    """Bytes that a node has sent and received, and whether its link is up and limited (bit/s)."""

    sent: int
    received: int
    up: bool
    rate: int | None


@dataclass(frozen=True)
class Network:
    """The namespaces of the lab named ``lab``, as ``spec`` describes them."""

    lab: str
    spec: Spec

    def namespace(self, index: int) -> str:
        """Return the name of a node's namespace."""
        return f"{self.lab}-{self.spec.nodes[index].name}"

    @property
    def switch(self) -> str:
        """The name of the switch's namespace."""
        return f"{self.lab}-{SWITCH}"

    @property
    def _indices(self) -> range:
        return range(len(self.spec.nodes))

    def build(self) -> None:
        """Make namespaces, switch and links; they are up and free of limits."""
        spaces = [self.switch, *map(self.namespace, self._indices)]
        shell.run(["ip", "-batch", "-"], _lines(f"netns add {space}" for space in spaces))
        lines = ["link add br0 type bridge forward_delay 0 mcast_snooping 0", "link set br0 up"]
        for i in self._indices:
            lines.append(f"link add p{i} type veth peer name eth0 netns {self.namespace(i)}")
            lines.append(f"link set p{i} master br0 addrgenmode none up")
        shell.run(self._in("ip", self.switch), _lines(lines))
        own = "link set lo up\nlink set eth0 addrgenmode none up\naddr add {}/24 dev eth0\n"
        nodes = [(self._node("ip", i), own.format(self.spec.address(i))) for i in self._indices]
        shell.run_all(nodes)
        if self.spec.medium == "shared":
            self._build_air()

    def _build_air(self) -> None:
        lines = ["link add air type ifb", "link set air addrgenmode none up"]
        shell.run(self._in("ip", self.switch), _lines(lines))
        lines = []
        for i in self._indices:
            lines.append(f"qdisc add dev p{i} ingress")
            lines.append(f"filter add dev p{i} parent ffff: {REDIRECT}")
        shell.run(self._in("tc", self.switch), _lines(lines))

    def limit(self, rates: Rates, lossy: Collection[int] = ()) -> None:
        """Give links their rates; ``lossy`` nodes send small packets, others up to 32 kB."""
        words = {i: bucket(bits, small=i in lossy) for i, bits in rates.items()}
        put = "qdisc replace dev {} root {}\n".format
        at_switch = "".join(put(f"p{i}", words[i]) for i in rates)
        at_nodes = [(self._node("tc", i), put("eth0", words[i])) for i in rates]
        shell.run_all([(self._in("tc", self.switch), at_switch), *at_nodes])

    def limit_air(self, rate: int | None) -> None:
        """Give a shared medium its rate (bit/s in all); nothing to do on a switched one."""
        if self.spec.medium == "shared":
            text = f"qdisc replace dev air root {bucket(rate)}\n"
            shell.run(self._in("tc", self.switch), text)

    def set_link(self, index: int, up: bool) -> None:
        """Plug a node's cable in or out, at the switch."""
        shell.run(self._in("ip", self.switch), f"link set p{index} {'up' if up else 'down'}\n")

    def set_loss(self, index: int, share: float) -> None:
        """Drop that share of the packets from and to a node; 0 ends it; LabError if it cannot."""
        places = [(self.switch, f"p{index}"), (self.namespace(index), "eth0")]
        for space, device in places:
            old = f"filter del dev {device} parent ffff: pref 1\n"
            shell.run(self._in("tc", space), old, check=False)
        if share <= 0:
            return
        for space, device in places:
            shell.run(self._in("ip", space), _lines(HOLE), check=False)  # it may be there
            words = ["tc", "-n", space, "qdisc", "add", "dev", device, "ingress"]
            shell.run(words, check=False)  # a shared medium has one
            try:
                lines = [f"qdisc replace dev hole root {NO_BUCKET}"]
                lines.append(f"filter add dev {device} {_drop(share)}")
                shell.run(self._in("tc", space), _lines(lines))
            except shell.CommandError as error:
                raise LabError(
                    "this kernel cannot lose packets on purpose (that takes cls_bpf, act_mirred "
                    f"and ifb): {error}"
                ) from None

    def traffic(self) -> list[Traffic]:
        """Return bytes, state and limit of every link, by node."""
        shown = shell.json_of(["ip", "-n", self.switch, "-j", "-s", "link"])
        links = {link["ifname"]: link for link in shown}
        buckets = shell.json_of(["tc", "-n", self.switch, "-j", "qdisc"])
        rates = {q["dev"]: 8 * q["options"]["rate"] for q in buckets if q["kind"] == "tbf"}
        air = rates.get("air")
        found = []
        for i in self._indices:
            if (link := links.get(f"p{i}")) is None:
                raise LabError(f"the link of node {self.spec.nodes[i].name} is gone: lab down")
            stats = link["stats64"]
            up = "UP" in link["flags"] and "LOWER_UP" in link["flags"]
            limit = rates.get(f"p{i}", air)
            found.append(Traffic(stats["rx"]["bytes"], stats["tx"]["bytes"], up, limit))
        return found

    def _in(self, tool: str, space: str) -> list[str]:
        return [tool, "-n", space, "-batch", "-"]

    def _node(self, tool: str, index: int) -> list[str]:
        return self._in(tool, self.namespace(index))


def namespaces(lab: str) -> list[str]:
    """Return the namespaces that the lab has, whatever its spec."""
    if not NETNS.is_dir():
        return []
    return sorted(path.name for path in NETNS.iterdir() if path.name.startswith(f"{lab}-"))


def remove(lab: str) -> None:
    """Kill all processes in the lab's namespaces and remove these, links included."""
    for space in namespaces(lab):
        for pid in shell.run(["ip", "netns", "pids", space], check=False).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        shell.run(["ip", "netns", "del", space])


def bucket(rate: int | None, small: bool = False) -> str:
    """Return tc's words for a rate: at most 400 ms of it wait; then packets are dropped."""
    if rate is None:
        return FREE
    burst = SMALL if small else max(32 * 1024, rate // 8000)  # bytes; 1 ms of a fast link
    return f"tbf rate {rate}bit burst {burst} latency 400ms"


def _drop(share: float) -> str:
    """Return tc's words for a filter that sends a random ``share`` of packets to nowhere.

    Classic BPF: load a random word; above the threshold (jump 1) no match, else match all. It
    stands in for netem, which many kernels lack.
    """
    threshold = min(round(share * 2**32), 2**32 - 1)
    program = f"4,32 0 0 4294963256,37 1 0 {threshold},6 0 0 4294967295,6 0 0 0"
    action = "action mirred egress redirect dev hole"
    return f"parent ffff: protocol all pref 1 bpf bytecode '{program}' {action}"


def _lines(lines: Any) -> str:
    return "".join(line + "\n" for line in lines)
