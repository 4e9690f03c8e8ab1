"""Exit a rank so that the job ends in bounded time under every MPI.

What was measured (docs/design.md): under Open MPI's ULFM, MPI_Finalize may hang once a rank has
died, so ranks leave without it, the leader last; without ULFM and under MPICH they must finalize,
and a rank that is stopped for good would make that hang.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from mpi4py import MPI

from mpicoded.runtime.environment import (
    PARENT,
    has_ulfm,
    machine,
    on_one_host,
    parent_died,
    started,
)

Stuck = list[tuple[int, str, int]]  # rank, machine, pid
SETTLE = 0.3  # s; a bad status comes last: with it mpirun ends, and the ranks would be left behind
TURN, LAST_TURN = 0.5, 3.0  # s after which the next rank does it; the most that one waits
AGAIN = 0.05  # s until what a signal raised is raised once more
LAST = 6.0  # s that the leader has to leave when all is decided
PART = 30.0  # s that the leader waits for workers to leave a program in which a rank has died


def dead(comm: MPI.Comm) -> list[int]:
    """Return the ranks of ``comm`` that are known to have died, or left (ULFM)."""
    MPI.COMM_SELF.Iprobe()  # word of a death comes only to those who call MPI
    failed = comm.Get_failed()
    ranks = MPI.Group.Translate_ranks(failed, list(range(failed.Get_size())), comm.Get_group())
    return sorted(ranks)


def exit_rank(status: int) -> None:
    """Exit this rank with ``status``; everything that is to be kept has been written.

    Returns where the normal way out, through MPI_Finalize, is the right one.
    """
    if has_ulfm():
        _flush()
        os._exit(status)


def exit_rank_later(comm: MPI.Comm, stuck: Stuck) -> None:
    """Exit a user's own program at its end in the way that the state of the ranks allows then.

    Its status stays what it was; only after a death under ULFM, when an exit handler must skip
    MPI_Finalize, it is 1 after an uncaught exception and 0 otherwise, also after sys.exit.
    """
    atexit.register(_at_exit, comm, stuck)


def _at_exit(comm: MPI.Comm, stuck: Stuck) -> None:
    if MPI.Is_finalized() or comm == MPI.COMM_NULL:
        return
    status = 1 if getattr(sys, "last_value", None) else 0
    abort(comm, stuck, status)
    if has_ulfm() and not _all_here(comm):
        _part(comm)
        if status:
            time.sleep(SETTLE)
        exit_rank(status)


def _all_here(comm: MPI.Comm) -> bool:
    """Wait for all ranks before MPI_Finalize; return False once one is dead: that could hang."""
    try:
        here = comm.Ibarrier()
        while not (comm.Get_failed().Get_size() or parent_died()):
            if here.Test():
                return True
            time.sleep(0.01)
    except MPI.Exception:
        return False
    return False


def _part(comm: MPI.Comm) -> None:
    """Let the leader exit last: workers take one that is gone before for killed."""
    others = comm.Get_size() - 1
    if comm.Get_rank() == 0:
        _wait(lambda: len(dead(comm)) >= others, PART)
    elif 0 in dead(comm):
        exit_after_leader(comm)


def exit_after_leader(comm: MPI.Comm) -> NoReturn:
    """Exit after the leader's death; the lowest living rank ends the job with status 1."""
    if not has_ulfm():
        os._exit(1)
    before = set(range(comm.Get_rank())) - set(dead(comm))
    if _wait(lambda: False, SETTLE + TURN * len(before)):  # the lowest may be stopped
        os._exit(0)
    end_job("")


def stand_in(comm: MPI.Comm, status: int) -> int:
    """Return the status of this rank when the leader is about to leave with ``status``.

    A bad one must not be lost if the leader is killed before it has left: rank 1 carries it too.
    """
    if comm.Get_rank() == 0:
        return status
    if status == 0 or not has_ulfm() or comm.Get_rank() > 1:
        return 0
    _wait(lambda: 0 in dead(comm), LAST)
    return status


def end_on_signals() -> None:
    """Let the leader close its files in good order upon SIGTERM or Ctrl-C, in ``LAST`` seconds."""
    sys.unraisablehook = _raise_again
    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _on_signal)


def _on_signal(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends it at once
    threading.Thread(target=_end_late, args=(128 + number,), name="end", daemon=True).start()
    raise SystemExit(128 + number)


def _raise_again(lost: sys.UnraisableHookArgs) -> None:
    """Raise SystemExit again, a little later: in a destructor or a callback Python drops it."""
    error = lost.exc_value
    main = threading.current_thread() is threading.main_thread()
    if not (isinstance(error, SystemExit) and main):
        sys.__unraisablehook__(lost)
        return

    def again(number: int, frame: FrameType | None) -> None:
        raise SystemExit(error.code)

    signal.signal(signal.SIGALRM, again)
    signal.setitimer(signal.ITIMER_REAL, AGAIN)


def _end_late(status: int) -> None:
    time.sleep(LAST)
    end_job("", status)


def end_stopped(silent: Stuck) -> Stuck:
    """End ranks that do not answer the end of the job: stopped, or behind a dead link.

    Under ULFM those on this host are killed. Return the others: they would hold mpirun up for ever,
    and :func:`abort` ends them, when all results are on disk.
    """
    stuck = []
    for rank, where, pid in silent:
        if has_ulfm() and pid and where == machine():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        else:
            stuck.append((rank, where, pid))
    if silent:
        ranks = [rank for rank, _, _ in silent]
        print(f"r0 | ranks {ranks} did not answer the end of the job in time", file=sys.stderr)
    return stuck


def abort(comm: MPI.Comm, stuck: Stuck, status: int) -> None:
    """End the whole job with ``status`` if there are ranks that hold it up."""
    if not stuck:
        return
    _flush()
    if has_ulfm():
        _end_mpirun()  # MPI_Abort would only end this rank
    elif status:
        os._exit(status)  # after MPI_Abort mpirun itself has crashed at times
    else:
        comm.Abort(status)


def end_job(text: str, status: int = 1) -> NoReturn:
    """Print ``text`` and end the whole job, stopped ranks too, from any state of MPI.

    Where several ranks would, they do so in turn, and the first one speaks for all.
    """
    wait = min(TURN * started()[2], LAST_TURN)
    _flush()
    if not _wait(lambda: False, wait) and text:
        os.write(2, f"{text}\n".encode())
        _wait(lambda: False, SETTLE)  # mpirun passes that on
    if has_ulfm() and on_one_host():  # else a bad status does it
        _end_mpirun()
    os._exit(status)


def _end_mpirun() -> None:
    if not parent_died():
        with suppress(OSError):
            os.kill(PARENT, signal.SIGTERM)


def _wait(done: Callable[[], bool], limit: float) -> bool:
    """Wait until ``done``, for ``limit`` seconds at most; return True at once if mpirun is gone."""
    end = time.perf_counter() + limit
    while not (parent_died() or done()) and time.perf_counter() < end:
        time.sleep(0.01)
    return parent_died()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
