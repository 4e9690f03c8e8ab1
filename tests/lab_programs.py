"""What the tests of the lab run on its nodes, and how they look at it."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mpicoded.cluster_tools.lab.network import Network

RECEIVE = """
import socket, sys, time
listener = socket.create_server(("0.0.0.0", int(sys.argv[1])))
print("here", flush=True)
line, _ = listener.accept()
count = 0
while count < 500_000: count += len(line.recv(65536))   # TCP finds its pace
began, count = time.perf_counter(), 0
while data := line.recv(65536): count += len(data)
print(8 * count / (time.perf_counter() - began))
"""
SEND = """
import socket, sys, time
line = socket.create_connection((sys.argv[1], int(sys.argv[2])))
end = time.perf_counter() + float(sys.argv[3])
while time.perf_counter() < end: line.sendall(bytes(65536))
"""
BUSY = """
import time
end, used = time.perf_counter() + 1.5, time.process_time()
while time.perf_counter() < end: pass
print((time.process_time() - used) / 1.5)
"""


def rates(
    on: Callable[..., subprocess.Popen[str]], pairs: Sequence[tuple[int, int]], seconds: float = 1.5
) -> list[float]:
    """bit/s that arrive for every (from, to) of ``pairs``, all sending at the same time."""
    receivers = [on(to, RECEIVE, 5000 + i) for i, (_, to) in enumerate(pairs)]
    for receiver in receivers:
        assert receiver.stdout.readline() == "here\n"
    senders = [
        on(source, SEND, f"10.77.0.{to + 1}", 5000 + i, seconds)
        for i, (source, to) in enumerate(pairs)
    ]
    found = [float(receiver.communicate(timeout=30)[0]) for receiver in receivers]
    for sender in senders:
        sender.communicate(timeout=30)
    return found


def counted(
    network: Network,
    on: Callable[..., subprocess.Popen[str]],
    pairs: Sequence[tuple[int, int]],
    seconds: float,
) -> list[float]:
    """bit/s on the links to the receivers of ``pairs``, all in the same time."""
    programs = [on(to, RECEIVE, 5000 + i) for i, (_, to) in enumerate(pairs)]
    for receiver in programs:
        assert receiver.stdout.readline() == "here\n"
    for i, (source, to) in enumerate(pairs):
        programs.append(on(source, SEND, f"10.77.0.{to + 1}", 5000 + i, seconds + 2.0))
    wait_for(lambda: all(network.traffic()[to].received > 500_000 for _, to in pairs))
    before, began = network.traffic(), time.perf_counter()
    time.sleep(seconds)
    after, ended = network.traffic(), time.perf_counter()
    for program in programs:
        program.kill()
        program.communicate()
    return [8 * (after[to].received - before[to].received) / (ended - began) for _, to in pairs]


PING = """
import socket, sys, time
line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
line.bind(("0.0.0.0", 7000))
if sys.argv[1] == "echo":
    print("here", flush=True)
    while True:
        data, who = line.recvfrom(100)
        line.sendto(data, who)
line.settimeout(0.5)
for i in range(int(sys.argv[2])):
    line.sendto(b"%d" % i, ("10.77.0.2", 7000))
    time.sleep(0.002)
back = set()
try:
    while True: back.add(line.recvfrom(100)[0])
except TimeoutError: pass
print(len(back))
"""


def state(pid: int) -> str:
    """The letter of a process's state: S sleeps, T is stopped."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def wait_for(what: Callable[[], object], seconds: float = 15.0) -> None:
    limit = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.01)


def swap() -> int:
    """kB of swap that this machine has."""
    found = re.search(r"SwapTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    return int(found[1]) if found else 0
