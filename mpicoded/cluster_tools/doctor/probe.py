"""Probe of one host: a script that is piped to its python3 and answers commands, one JSON a line.

Python ≥ 3.7 and its standard library will do, whatever else is missing there.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import platform
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

MARK = "mpicoded-probe "  # begins every answer: a shell's own greeting does not
LIFE = 900  # s after which a probe that was forgotten ends
SYSTEM = "/sys/devices/system/cpu/cpu[0-9]*/topology"
INSTRUCTIONS = ("asimd", "atomics", "asimddp", "sve", "neon", "sse4_2", "avx", "avx2", "avx512f")
FLAGS, ADDRESS, NETMASK = 0x8913, 0x8915, 0x891B  # ioctl: SIOCGIFFLAGS, …ADDR, …NETMASK
UP, LOOPBACK = 1, 8
PINGS = 5
FIRST, MOST, SECONDS = 1 << 16, 8 << 20, 0.2  # bytes of a first message and at most; s of the next

# Run by the environment's python: each line is one fact, and the last "at" tells where it died.
CHECK = """
import importlib, json, os, platform, sys, time
def say(key, value): print(json.dumps([key, value]), flush=True)
say("python", platform.python_version())
say("bits", 64 if sys.maxsize > 2**32 else 32)
def load(name):
    say("at", "import " + name)
    try:
        return importlib.import_module(name)
    except Exception as error:
        say("failed", [name, " ".join(str(error).split())])
if package := load("mpi4py"):
    package.rc.initialize = False
    say("mpi4py", package.__version__)
    if library := load("mpi4py.MPI"):
        say("library", library.Get_library_version().split("\\n")[0].strip("\\0 "))
if package := load("mpicoded"):
    import pathlib, zlib
    files = sorted(pathlib.Path(package.__file__).parent.rglob("*.py"))
    say("mpicoded", f"{zlib.crc32(b''.join(file.read_bytes() for file in files)):08x}")
if package := load("numpy"):
    say("numpy", package.__version__)
if torch := load("torch"):
    say("torch", torch.__version__)
    say("cuda", torch.version.cuda if not torch.cuda.is_available() else None)
    say("at", "a convolution")
    for _ in range(2):
        began = time.perf_counter()
        with torch.no_grad():
            map = torch.nn.functional.conv2d(torch.ones(1, 16, 56, 56), torch.ones(32, 16, 3, 3))
            sum = (map.reshape(32, -1) @ torch.ones(54 * 54, 8)).sum().item()
    say("seconds", time.perf_counter() - began)
    say("sum", sum)
say("at", "")
os._exit(0)
"""


def facts(python: str, mpirun: str, folder: str, env: dict[str, str], limit: float) -> Any:
    """Return the host's facts: machine, addresses, and the software of the environment."""
    found = {
        "name": socket.gethostname(),
        "machine": platform.machine(),
        "cpu": _model(),
        "instructions": _instructions(),
        "cores": cores(),
        "interfaces": interfaces(),
        "mpirun": _output([mpirun, "--version"], limit) if os.path.exists(mpirun) else None,
        "memory": _memory(),
    }
    if os.path.exists(python):
        folder = folder if os.path.isdir(folder) else os.path.expanduser("~")
        found["software"] = software(python, folder, env, limit)
    return found


def software(python: str, folder: str, env: dict[str, str], limit: float) -> dict[str, Any]:
    """Import what a rank imports, and compute, in a process of its own, which may die of it."""
    found: dict[str, Any] = {"failed": []}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        words = [python, "-c", CHECK]
        process = subprocess.Popen(
            words, cwd=folder, env={**os.environ, **env}, stdout=out, stderr=err
        )
        try:
            found["status"] = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            found["status"] = None
        out.seek(0)
        err.seek(0)
        lines, errors = out.read().splitlines(), err.read().decode("utf-8", "replace").split("\n")
    for line in lines:
        try:
            key, value = json.loads(line.decode())
        except ValueError:
            continue  # a module printed something
        if key == "failed":
            found["failed"].append(value)
        else:
            found[key] = value
    found["last"] = next((text.strip() for text in reversed(errors) if text.strip()), "")
    found["peak"] = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return found


def cores() -> int:
    """Return the number of cores as mpirun counts them: those with two threads once."""
    found = set()
    for folder in glob.glob(SYSTEM):
        read = [_read(folder + "/" + name) for name in ("physical_package_id", "core_id")]
        if all(read):
            found.add(tuple(read))
    return min(len(found) or sys.maxsize, len(os.sched_getaffinity(0)))


def interfaces() -> list[tuple[str, str, int]]:
    """Return name, address and prefix length of all that are up; no loopback, no fe80::."""
    found, up = [], set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode())

            def ask(what: int, request: bytes = request) -> bytes:
                return fcntl.ioctl(any_socket, what, request)[16:]

            try:
                flags = struct.unpack_from("H", ask(FLAGS))[0]
                if not flags & UP or flags & LOOPBACK:
                    continue
                up.add(name)
                address, mask = ask(ADDRESS)[4:8], ask(NETMASK)[4:8]
            except OSError:
                continue  # it has no address of IPv4
            bits = bin(int.from_bytes(mask, "big")).count("1")
            found.append((name, socket.inet_ntoa(address), bits))
    for line in _read("/proc/net/if_inet6").splitlines():
        digits, _, bits_, scope, _, name = line.split()
        if name in up and scope == "00":
            address6 = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))
            found.append((name, address6, int(bits_, 16)))
    return found


def listen(token: str, who: str, first: int, count: int) -> int:
    """Answer the other hosts' link tests from now on; return the port."""
    listener = _listener(first, count)

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_answer, args=(connection, token, who), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return int(listener.getsockname()[1])


def _listener(first: int, count: int) -> socket.socket:
    for port in range(first, first + count) if first else [0]:
        for family, anywhere in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
            try:
                made = socket.socket(family)
                if family == socket.AF_INET6:
                    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                made.bind((anywhere, port))
                made.listen(64)
                return made
            except OSError:
                continue  # no IPv6 here, or the port is taken
    raise OSError(f"no port of {first} to {first + count - 1} is free")


def _answer(connection: socket.socket, token: str, who: str) -> None:
    """Tell who this is, then acknowledge messages: length, bytes."""
    connection.settimeout(30)
    with connection:
        try:
            if _receive(connection, len(token)) != token.encode():
                return
            connection.sendall(who.encode().ljust(8))
            while True:
                _receive(connection, struct.unpack("!I", _receive(connection, 4))[0])
                connection.sendall(b"!")
        except OSError:
            return


def links(to: list[tuple[str, int]], token: str, limit: float) -> list[Any]:
    """Test all addresses of another host at the same time; measure the rate of the first."""
    found: list[dict[str, Any]] = [{"error": "timed out"} for _ in to]
    connections: dict[int, socket.socket] = {}

    def reach(i: int) -> None:
        try:
            connections[i], found[i] = _reach(to[i][0], to[i][1], token, limit)
        except OSError as error:
            found[i] = {"error": error.strerror or "timed out"}

    threads = [threading.Thread(target=reach, args=(i,), daemon=True) for i in range(len(to))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * limit)
    if connections:
        first = min(connections)
        try:
            found[first]["rate"] = _rate(connections[first])
        except OSError as error:
            found[first]["error"] = error.strerror or "a large message timed out"
    for connection in connections.values():
        connection.close()
    return found


def _reach(address: str, port: int, token: str, limit: float) -> tuple[socket.socket, Any]:
    connection = socket.create_connection((address, port), limit)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(token.encode())
    who = _receive(connection, 8).decode().strip()
    times = [_message(connection, 1) for _ in range(PINGS)]
    source = connection.getsockname()[0]
    return connection, {"who": who, "source": source.replace("::ffff:", ""), "seconds": min(times)}


def _rate(connection: socket.socket) -> float:
    """Return bytes/s of a large message."""
    seconds = _message(connection, FIRST)
    size = min(MOST, max(FIRST, int(FIRST / seconds * SECONDS)))
    return size / _message(connection, size)


def _message(connection: socket.socket, size: int) -> float:
    began = time.perf_counter()
    connection.sendall(struct.pack("!I", size) + bytes(size))
    _receive(connection, 1)
    return time.perf_counter() - began


def _receive(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(min(size - len(data), 1 << 16))
        if not piece:
            raise OSError(0, "closed by the other side")
        data += piece
    return bytes(data)


def _model() -> str:
    board = _read("/proc/device-tree/model").strip("\0 \n")
    return board or _cpuinfo("model name") or platform.processor()


def _instructions() -> list[str]:
    flags = (_cpuinfo("Features") or _cpuinfo("flags")).split()
    return [name for name in INSTRUCTIONS if name in flags]


def _cpuinfo(key: str) -> str:
    lines = (line.partition(":") for line in _read("/proc/cpuinfo").splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == key), "")


def _memory() -> tuple[int, int]:
    """Return bytes in all, and those that are free for a program."""
    lines = (line.split() for line in _read("/proc/meminfo").splitlines())
    sizes = {words[0]: 1024 * int(words[1]) for words in lines if len(words) > 1}
    total = sizes.get("MemTotal:", 0)
    return total, sizes.get("MemAvailable:", total)


def _read(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _output(words: list[str], limit: float) -> str:
    """Return what a program printed, or why it cannot be run."""
    pipe, both = subprocess.PIPE, subprocess.STDOUT
    try:
        done = subprocess.run(words, stdout=pipe, stderr=both, timeout=limit, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stdout.decode("utf-8", "replace")[:2000]


COMMANDS: dict[str, Any] = {
    "facts": facts,
    "listen": listen,
    "links": links,
    "clock": time.time,
}


def main() -> None:
    """Answer commands until there are no more."""
    signal.alarm(LIFE)
    for line in sys.stdin.buffer:
        name, arguments = json.loads(line.decode())
        try:
            answer = {"ok": COMMANDS[name](**arguments)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(MARK + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
