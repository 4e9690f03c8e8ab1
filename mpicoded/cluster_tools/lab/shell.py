"""Commands of the system: a list of words, never through a shell; not disturbed by Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mpicoded.errors import LabError

LIMIT = 30.0  # s
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class CommandError(LabError):
    """A command of the system failed; the message holds it and its output."""


def run(words: Sequence[str], text: str = "", *, check: bool = True) -> str:
    """Run ``words`` with ``text`` as standard input; return what it printed."""
    return run_all([(words, text)], check=check)[0]


def run_all(commands: Sequence[tuple[Sequence[str], str]], *, check: bool = True) -> list[str]:
    """Run several commands at a time; wait for all, then raise CommandError for the first bad."""
    outputs, wrong = [], ""
    with held():
        running = [_start(words) for words, _ in commands]
        for (words, text), process in zip(commands, running, strict=True):
            out, err = _finish(process, text)
            if process.returncode and not wrong:
                wrong = f"{' '.join(words)}: {_first(err) or f'status {process.returncode}'}"
            outputs.append(out)
    if check and wrong:
        raise CommandError(wrong)
    return outputs


@contextmanager
def held() -> Iterator[None]:
    """Keep Ctrl-C and the like waiting until this is done: half a step cannot be undone."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _finish(process: subprocess.Popen[str], text: str) -> tuple[str, str]:
    """Return the process's output, on both streams; it ends within ``LIMIT``."""
    try:
        return process.communicate(text, LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0], f"did not end within {LIMIT:g} s"


def _start(words: Sequence[str]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        words, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def _first(text: str) -> str:
    """Return the first line that is not empty."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def json_of(words: Sequence[str]) -> list[dict[str, Any]]:
    """Return the JSON list that a command printed."""
    return list(json.loads(run(words) or "[]"))
