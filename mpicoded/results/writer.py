"""The writer of a results file: rows and events are kept in memory and flushed at an interval.

The file survives ``kill -9`` at any moment. It gets its name only when it is whole and on disk, at
its full size; afterwards nothing but the numbers inside is overwritten, in this order: rows of the
queries and of the trace; flush; checksums of the queries' rows; flush; `mode` and `events`, which
say that those rows count; flush. So a query that counts has its events. What needs other metadata
(a longer trace, one more start) makes a new file beside and renames it. All else is sealed.
One process writes: a lock is held from before the file is made until it is closed, and where there
are no locks a file that has lost its name to another is noticed at the next flush.
Readers may open the file at any time, also while it is written. (A power cut is not a kill: what
the system has not yet written back to the disk is then lost too.)
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
import numpy.typing as npt
import torch

from mpicoded.answer import Answer, Mode
from mpicoded.errors import ResultsError
from mpicoded.outputs import Lock
from mpicoded.results.checks import base_paths, check_values, checksums, row_paths, verify
from mpicoded.results.file import (
    array_of,
    attributes,
    build,
    dataset,
    layout_of,
    named,
    open_file,
    open_to_write,
    readable,
)
from mpicoded.results.layout import BASE_CHECK, CHECK, Layout, Status, variables
from mpicoded.results.record import versions
from mpicoded.results.rows import Array, Row, base_rows, blocks_of, by_query, plan_data, row_of
from mpicoded.trace import EVENT

MODE = "queries/mode"
SHARING = "# --set runtime.sharing="  # a run goes on so with fewer nodes; its answers are the same


class Results:
    """A results file that is being written. One thread writes; use it as a context manager.

    ``create`` and ``resume`` return it. Answers and events are kept in memory for at most
    ``interval`` seconds. Times that are added count from this start of the run and are moved on by
    ``offset``, the last time that the file knew.
    """

    def __init__(self, path: Path, interval: float, lock: Lock) -> None:
        self.path = path
        self.interval = interval
        self.offset = 0.0
        self._lock = lock
        self._file, self.layout = open_to_write(path)
        self._found = verify(self._data(), self.layout)
        self.damage = str(self._found)  # what of the file does not count; "" if all is whole
        self._mode, self._base = self._found.mode, self._found.base
        self._count = self._found.events
        self._rows: list[tuple[int, Row]] = []
        self._events: list[npt.NDArray[np.void]] = []
        self._flushed = perf_counter()

    @classmethod
    def create(
        cls,
        path: Path,
        layout: Layout,
        *,
        job_text: str,
        seed: int,
        attrs: Mapping[str, Any],
        plan: Sequence[Mapping[str, Any]],
        plan_table: str,
        hosts: Sequence[str],
        flush: float,
        labels: npt.ArrayLike | None = None,
        held_out: npt.ArrayLike | None = None,
        predicted: Mapping[str, npt.ArrayLike] | None = None,
        overwrite: bool = False,
    ) -> Results:
        """Make the file, whole and on disk, and open it for writing.

        ``plan`` has one mapping a (stage, unit): stage, unit, rank, output and input (h0, h1, w0,
        w1), flops, bytes_in, bytes_out. ``labels`` and ``held_out`` are (images,). ``predicted``
        are further variables of the group `plan`. ``attrs`` (such as mpi_library, commit, clock)
        join the root attributes. Answers of a simulated run (clock = "simulated", outputs
        ``NO_OUTPUT``) have no output, whatever their mode.

        ResultsError if the file exists and is not to be overwritten, or cannot be written.
        """
        with named(path), locked(path) as lock:
            check_new(path, overwrite)
            data = plan_data(layout, plan, plan_table)
            for name, values in (predicted or {}).items():
                data[f"plan/{name}"] = np.asarray(values, "f8")
            data["cluster/host"] = np.array([list(hosts)], object)  # (start, rank)
            if labels is not None:
                data["labels/label"] = by_query(layout, labels, -1)
            if held_out is not None:
                data["labels/held_out"] = by_query(layout, held_out, 0)
            about: dict[str, Any] = {**versions(), **attrs, "job": job_text, "seed": seed}
            about |= {"hosts": ", ".join(dict.fromkeys(hosts)), "layout": layout.text()}
            try:
                build(path, layout, about, data, overwrite)
            except FileExistsError:  # made by another since, on a file system without locks
                check_new(path, overwrite)
                raise
            return cls(path, flush, lock)

    @classmethod
    def resume(
        cls, path: Path, layout: Layout, *, job_text: str, hosts: Sequence[str], flush: float
    ) -> Results:
        """Open the file of a run that was cut short; ``pending`` is what is left of it.

        A finished file opens too and has nothing pending.

        ResultsError if it is no results file, is damaged, is of another job, or is being written.
        """
        if not path.exists():
            raise ResultsError(f"{path}: there is no such results file")
        with readable(path), locked(path) as lock:
            with open_file(path, "r") as file:
                _check_same(path, file, layout, job_text)  # before as much is read as it says
            results = cls(path, flush, lock)
            try:
                check_values(results._data(), results.layout, results._found)
                changed = (results._file[MODE][:] != results._mode).any()  # a mode is missing
                if results.pending.size or results.damage or changed:
                    results._restart(hosts)
            except BaseException:
                results._file.close()
                raise
            return results

    @property
    def pending(self) -> npt.NDArray[np.int64]:
        """Queries that have no answer yet, also not in memory."""
        return np.flatnonzero(self._mode == Mode.PENDING).astype(np.int64)

    @property
    def base_pending(self) -> npt.NDArray[np.int64]:
        """Queries for which the unsplit model's output is not here; none if it is not kept."""
        return np.flatnonzero(~self._base).astype(np.int64)

    def add(self, answer: Answer, *, exit_taken: int = -1) -> None:
        """Keep an answer, and flush if the interval is over."""
        assert self._mode[answer.query] == Mode.PENDING, f"query {answer.query} answered twice"
        self._mode[answer.query] = answer.mode
        self._rows.append((answer.query, row_of(self.layout, answer, self.offset, exit_taken)))
        self.flush()

    def add_events(self, events: npt.NDArray[np.void]) -> None:
        """Keep events, (events,) of ``EVENT``, and flush if the interval is over."""
        events = events.copy()
        events["start"] += self.offset
        events["stop"] += self.offset
        self._events.append(events)
        self.flush()

    def write_base(self, output: torch.Tensor | Array, first: int = 0) -> None:
        """Write the unsplit model's outputs, (images, ...), from query ``first`` on, at once."""
        outputs, classes = base_rows(self.layout, output)
        block = slice(first, first + len(outputs))
        columns = [outputs, *[classes.astype("i4")] * self.layout.scores]
        with named(self.path):
            for name, column in zip(base_paths(self.layout), columns, strict=True):
                self._file[name][block] = column
            self._file.flush()
            self._file["predictions/base_check"][block] = checksums(columns, first)
            self._file.flush()
        self._base[block] = True

    def flush(self, now: bool = False) -> None:
        """Write the rows and events in memory, if any, when the interval is over, or ``now``.

        A file that is touched without need would look like a run that gets on.

        ResultsError if it cannot be written, as on a full disk.
        """
        kept = self._rows or self._events
        if not now and (not kept or perf_counter() - self._flushed < self.interval):
            return
        with named(self.path):
            self._check_own()
            blocks = [_columns(self.layout, *block) for block in blocks_of(self._rows)]
            for first, columns in blocks:
                self._put(first, columns, columns.keys() - {MODE})
            self._write_events()
            self._file.flush()
            for first, columns in blocks:  # only now are the rows whole
                self._put(first, {CHECK.path: checksums(list(columns.values()), first)})
            self._file.flush()
            for first, columns in blocks:  # and only now they count
                self._put(first, columns, {MODE})
            self._file["trace/events"][()] = self._count
            self._file.flush()
        self._rows.clear()
        self._flushed = perf_counter()

    def close(self, finished: bool) -> None:
        """Write the rest and the status of the run, and sync them to the disk.

        It did not come to its end while something is pending, whatever ``finished`` is.
        """
        if not self._file:
            return
        finished = finished and not self.pending.size and not self.base_pending.size
        try:
            self.flush(now=True)
            with named(self.path):
                self._file["status"][()] = Status.FINISHED if finished else Status.RUNNING
                self._file.flush()
                os.fsync(self._file.id.get_vfd_handle())
                self._check_own()
        finally:
            self._file.close()
            self._lock.release()

    def __enter__(self) -> Self:
        """Return the open file."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close; the run is finished if nothing was raised and nothing is pending."""
        self.close(finished=kind is None)

    def _data(self) -> dict[str, h5py.Dataset]:
        table = variables(self.layout)
        return {v.path: dataset(self._file, v, self.layout.sizes) for v in table}

    def _check_own(self) -> None:
        """Raise ResultsError if the name is no longer that of our file."""
        mine = os.fstat(self._file.id.get_vfd_handle())
        if not self.path.exists() or not os.path.samestat(mine, self.path.stat()):
            raise ResultsError(
                f"{self.path}: another program has replaced or removed it since the run began; "
                "run one at a time, each with a file of its own in [results]"
            )

    def _put(self, first: int, columns: Mapping[str, Array], names: Set[str] | None = None) -> None:
        for name in columns if names is None else names:
            self._file[name][first : first + len(columns[name])] = columns[name]

    def _write_events(self) -> None:
        if not self._events:
            return
        events = np.concatenate(self._events)
        end = self._count + len(events)
        if end > self.layout.sizes["event"]:
            self._rebuild(replace(self.layout, events=2 * end))
        columns = {f"trace/{name}": events[name] for name in EVENT.names or ()}
        columns["trace/check"] = checksums(list(columns.values()), self._count)
        self._put(self._count, columns)
        self._count, self._events = end, []

    def _rebuild(self, layout: Layout, changes: Mapping[str, Any] | None = None) -> None:
        """Replace the file by one of a larger layout, with the same content and ``changes``."""
        self._file.flush()
        data = dict[str, Any](self._data()) | dict(changes or {})
        about = attributes(self.path, self._file) | {"layout": layout.text()}
        build(self.path, layout, about, data)
        self._file.close()
        self._file, self.layout = open_to_write(self.path)

    def _restart(self, hosts: Sequence[str]) -> None:
        """Begin one more start, at the last time that is known, with all whole rows."""
        found, file = self._found, self._file
        changes = self._whole_events()
        known = [changes["trace/stop"], file["queries/answered"][:][self._mode != Mode.PENDING]]
        self.offset = float(np.nanmax(np.concatenate([[0.0], *known])))
        old = array_of(file["cluster/host"])
        table = np.full((len(old) + 1, max(old.shape[1], len(hosts))), "", object)
        table[: len(old), : old.shape[1]] = old
        table[-1, : len(hosts)] = hosts
        layout = replace(self.layout, starts=len(table), ranks=table.shape[1])
        changes |= {"cluster/host": table, "status": np.array(Status.RUNNING, "u1")}
        changes["cluster/began"] = np.append(file["cluster/began"][:], self.offset)
        changes[MODE] = self._mode
        changes[CHECK.path] = np.where(self._mode == Mode.PENDING, 0, file[CHECK.path][:])
        if layout.base:
            changes[BASE_CHECK.path] = np.where(found.base, file[BASE_CHECK.path][:], 0)
        self._rebuild(layout, changes)

    def _whole_events(self) -> dict[str, Array]:
        """Return the variables of the trace with the events that are whole, and count those."""
        good = np.ones(self._count, bool)
        good[self._found.events_lost[self._found.events_lost < self._count]] = False
        names = [f"trace/{name}" for name in EVENT.names or ()]
        columns = {name: self._file[name][: self._count][good] for name in names}
        self._count = int(good.sum())
        columns["trace/check"] = checksums(list(columns.values()))
        return columns | {"trace/events": np.array(self._count)}


def _check_same(path: Path, file: h5py.File, layout: Layout, job_text: str) -> None:
    """Raise ResultsError if a file is of another job, or of other sizes, than these."""
    found = layout_of(path, file)
    lines = differences(str(file.attrs["job"]), job_text)
    if lines:
        raise ResultsError(
            f"{path}: is of another job and cannot be resumed ({lines}); "
            "give that job again, or --overwrite"
        )
    its, mine = (asdict(replace(each, events=0, starts=1, ranks=0)) for each in (found, layout))
    differing = [f"{k} = {its[k]} there, {mine[k]} here" for k in mine if mine[k] != its[k]]
    if differing:
        raise ResultsError(
            f"{path}: the job's data or model has changed ({'; '.join(differing)}); "
            "restore them, or give --overwrite to begin again"
        )


def differences(old: str, new: str) -> str:
    """Return the first lines in which two job texts differ, "" if they do not."""
    kept = ([x for x in text.splitlines() if not x.startswith(SHARING)] for text in (old, new))
    pairs = itertools.zip_longest(*kept, fillvalue="")
    differing = [(i, a.strip(), b.strip()) for i, (a, b) in enumerate(pairs, 1) if a != b]
    first = [f"line {i}: {a!r} there, {b!r} here" for i, a, b in differing[:3]]
    more = [f"{len(differing) - 3} more"] if len(differing) > 3 else []
    return "; ".join(first + more)


def check_new(path: Path, overwrite: bool) -> None:
    """Raise ResultsError if the file exists and is not to be overwritten."""
    if path.exists() and not overwrite:
        raise ResultsError(
            f"{path}: exists; give --resume to go on with it, or --overwrite to replace it"
        )


@contextmanager
def locked(path: Path) -> Iterator[Lock]:
    """Keep others out of a results file, after the block too unless it raises."""
    lock = Lock(path)
    try:
        yield lock
    except BaseException:
        lock.release()
        raise


def _columns(layout: Layout, first: int, rows: list[Row]) -> tuple[int, dict[str, Array]]:
    """Return the rows of consecutive queries by variable, in the types of the file."""
    types = {v.path: v.dtype for v in variables(layout)}
    names = row_paths(layout)
    return first, {n: np.stack([row[n] for row in rows]).astype(types[n]) for n in names}
