"""Session: a probe on one host, reached as the launcher reaches it; every answer has a limit."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from mpicoded.cluster_tools.doctor import probe
from mpicoded.cluster_tools.launch.machines import Machines
from mpicoded.cluster_tools.launch.nodes import KEPT, is_here, last_line, on_host
from mpicoded.errors import JobError

LARGEST = 1 << 20  # bytes of an answer
END = 0.5  # s that the agent has to leave by itself


class NoAnswer(Exception):
    """A host does not do what it was asked for; the message is the agent's, or the probe's."""

    def __init__(self, host: str, why: str) -> None:
        super().__init__(why)
        self.host = host


class Session:
    """The connection to the probe of ``host``: commands go there and answers come back."""

    def __init__(self, machines: Machines, host: str) -> None:
        script = Path(probe.__file__).read_bytes()
        python = sys.executable if is_here(machines, host) else "python3"
        words = [python, "-c", f"import sys;exec(sys.stdin.buffer.read({len(script)}))"]
        words = on_host(machines, host, words)
        self.host, self._script, self._read = host, script, b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(
                words, stdin=pipe, stdout=pipe, stderr=self._errors, start_new_session=True
            )
        except OSError as error:
            raise JobError(f"{words[0]}: {error.strerror}; name another --agent") from None

    def ask(self, name: str, wait: float, **arguments: object) -> Any:
        """Return the answer to one command; NoAnswer after ``wait`` seconds."""
        assert self._process.stdin is not None
        line = json.dumps([name, arguments]).encode() + b"\n"
        try:
            self._process.stdin.write(self._script + line)  # less than a pipe holds
            self._process.stdin.flush()
        except OSError:
            raise NoAnswer(self.host, self._why()) from None
        self._script = b""
        answer = json.loads(self._line(time.monotonic() + wait, wait))
        if "error" in answer:
            raise NoAnswer(self.host, f"its probe failed: {answer['error']}")
        return answer["ok"]

    def _line(self, end: float, wait: float) -> bytes:
        """Return the next line of the probe's own."""
        assert self._process.stdout is not None
        mark = probe.MARK.encode()
        while True:
            line, newline, rest = self._read.partition(b"\n")
            if newline:
                self._read = rest
                if line.startswith(mark):
                    return line.removeprefix(mark)
                continue
            left = max(0.0, end - time.monotonic())
            if not select.select([self._process.stdout], [], [], left)[0]:
                raise NoAnswer(self.host, f"does not answer within {wait:g} s")
            piece = os.read(self._process.stdout.fileno(), 1 << 16)
            self._read += piece
            if not piece or len(self._read) > LARGEST:
                raise NoAnswer(self.host, self._why())

    def _why(self) -> str:
        """Return the last words of the agent."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END)
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - KEPT))
        status = self._process.poll()
        return last_line(self._errors.read()) or f"the agent ended with status {status}"

    def close(self) -> None:
        """End the probe, and the agent with it."""
        with suppress(OSError, subprocess.TimeoutExpired):
            self._process.communicate(timeout=END)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._errors.close()
