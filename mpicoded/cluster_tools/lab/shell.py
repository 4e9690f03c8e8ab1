"""Commands of the system: a list of words, never through a shell; not disturbed by Ctrl-C."""

import json
import signal
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from mpicoded.errors import LabError

LIMIT = 30.0  # s
ABREAST = 64  # commands at a time
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class CommandError(LabError):
    """A command of the system failed; the message holds it and its output."""


def run(words: Sequence[str], text: str = "", *, check: bool = True) -> str:
    """Run ``words`` with ``text`` as standard input; return what it printed."""
    return run_all([(words, text)], check=check)[0]


def run_all(commands: Sequence[tuple[Sequence[str], str]], *, check: bool = True) -> list[str]:
    """Run several commands at a time; wait for all, then raise CommandError for the first bad."""
    with held(), ThreadPoolExecutor(ABREAST) as pool:
        ended = list(pool.map(_run, commands))
    wrong = next((why for _, why in ended if why), "")
    if check and wrong:
        raise CommandError(wrong)
    return [output for output, _ in ended]


def _run(command: tuple[Sequence[str], str]) -> tuple[str, str]:
    """Run one command; return its output, and why it failed, "" if it did not."""
    words, text = command
    try:
        done = subprocess.run(
            words,
            input=text,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        return "", f"{' '.join(words)}: did not end within {LIMIT:g} s"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    why = next(iter(lines), f"status {done.returncode}")
    return done.stdout, f"{' '.join(words)}: {why}" if done.returncode else ""


@contextmanager
def held() -> Iterator[None]:
    """Keep Ctrl-C and the like waiting until this is done: half a step cannot be undone."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def json_of(words: Sequence[str]) -> list[dict[str, Any]]:
    """Return the JSON list that a command printed."""
    return list(json.loads(run(words) or "[]"))
