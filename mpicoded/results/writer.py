"""The writer of a results file: rows and events are kept in memory and flushed at an interval.

The file survives ``kill -9`` at any moment. It gets its name only when it is whole and on disk, at
its full size; afterwards nothing but the numbers inside is overwritten, in this order: rows of the
queries and of the trace; flush; `mode` and `events`, which say that those rows count; flush. What
needs other metadata (a longer trace, one more start) makes a new file beside and renames it.
Readers may open the file at any time, also while it is written. (A power cut is not a kill: what
the system has not yet written back to the disk is then lost too.)
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from mpicoded.answer import Answer, Mode
from mpicoded.errors import ResultsError
from mpicoded.results.about import differences, versions
from mpicoded.results.file import build, check_idle, named, open_to_write
from mpicoded.results.layout import Layout, Status, variables
from mpicoded.results.rows import Array, Row, base_rows, blocks_of, by_query, plan_data, row_of
from mpicoded.trace import EVENT


class Results:
    """A results file that is being written. One thread writes; use it as a context manager.

    ``create`` and ``resume`` return it. Answers and events are kept in memory for at most
    ``interval`` seconds. Times that are added count from this start of the run and are moved on by
    ``offset``, the last time that the file knew.
    """

    def __init__(self, path: Path, interval: float) -> None:
        self.path = path
        self.interval = interval
        self.offset = 0.0
        self._file, self.layout = open_to_write(path)
        self._mode = self._file["queries/mode"][:]
        self._count = int(self._file["trace/events"][()])
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
        attrs: Mapping[str, str],
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
        join the root attributes.

        Raises
        ------
        ResultsError
            If the file exists and is not to be overwritten, or cannot be written.
        """
        with named(path):
            if path.exists() and not overwrite:
                raise ResultsError(
                    f"{path}: exists; give --resume to go on with it, or --overwrite to replace it"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            check_idle(path)
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
            build(path, layout, about, data)
            return cls(path, flush)

    @classmethod
    def resume(
        cls, path: Path, layout: Layout, *, job_text: str, hosts: Sequence[str], flush: float
    ) -> Results:
        """Open the file of a run that was cut short; ``pending`` is what is left of it.

        A finished file opens too and has nothing pending.

        Raises
        ------
        ResultsError
            If it is no results file, is damaged, is of another job, or is being written.
        """
        with named(path):
            results = cls(path, flush)
            try:
                results._check_same(job_text, layout)
                if results.pending.size:
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
        if not self.layout.base:
            return np.zeros(0, np.int64)
        outputs = self._file["predictions/base_output"]
        return np.flatnonzero(np.isnan(outputs[:].reshape(self.layout.queries, -1)[:, 0]))

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
        with named(self.path):
            if self.layout.scores:
                self._file["predictions/base_class"][block] = classes
                self._file.flush()  # `base_pending` goes by the output
            self._file["predictions/base_output"][block] = outputs
            self._file.flush()

    def flush(self, now: bool = False) -> None:
        """Write what is kept, if there is any and the interval is over, or ``now``.

        A file that is touched without need would look like a run that gets on.

        Raises
        ------
        ResultsError
            If it cannot be written, as on a full disk.
        """
        kept = self._rows or self._events
        if not now and (not kept or perf_counter() - self._flushed < self.interval):
            return
        with named(self.path):
            blocks = list(blocks_of(self._rows))
            for first, block in blocks:
                for name in block[0]:
                    if name != "queries/mode":
                        self._put(name, first, [row[name] for row in block])
            self._write_events()
            self._file.flush()
            for first, block in blocks:  # only now do the rows count
                self._put("queries/mode", first, [row["queries/mode"] for row in block])
            self._file["trace/events"][()] = self._count
            self._file.flush()
        self._rows.clear()
        self._flushed = perf_counter()

    def close(self, finished: bool) -> None:
        """Write the rest, say whether the run came to its end, and see it onto the disk."""
        if not self._file:
            return
        try:
            self.flush(now=True)
            with named(self.path):
                self._file["status"][()] = Status.FINISHED if finished else Status.RUNNING
                self._file.flush()
                os.fsync(self._file.id.get_vfd_handle())
        finally:
            self._file.close()

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
        self.close(finished=kind is None and not self.pending.size)

    def _put(self, name: str, first: int, rows: list[Any]) -> None:
        self._file[name][first : first + len(rows)] = np.stack(rows)

    def _write_events(self) -> None:
        if not self._events:
            return
        events = np.concatenate(self._events)
        end = self._count + len(events)
        if end > self.layout.sizes["event"]:
            self._rebuild(replace(self.layout, events=2 * end))
        for name in EVENT.names or ():
            self._file[f"trace/{name}"][self._count : end] = events[name]
        self._count = end
        self._events.clear()

    def _rebuild(self, layout: Layout, changes: Mapping[str, Any] | None = None) -> None:
        """Replace the file by one of a larger layout, with the same content and ``changes``."""
        self._file.flush()
        paths = (v.path for v in variables(self.layout))  # an older file may lack some
        data = {path: self._file[path] for path in paths if path in self._file}
        data |= dict(changes or {})
        about = dict(self._file.attrs) | {"layout": layout.text()}
        build(self.path, layout, about, data)
        self._file.close()
        self._file, self.layout = open_to_write(self.path)

    def _restart(self, hosts: Sequence[str]) -> None:
        """Begin one more start, at the last time that is known."""
        known = [self._file["trace/stop"][: self._count], self._file["queries/answered"][:]]
        self.offset = float(np.nanmax(np.concatenate([[0.0], *known])))
        old = self._file["cluster/host"].asstr()[:]
        table = np.full((len(old) + 1, max(old.shape[1], len(hosts))), "", object)
        table[: len(old), : old.shape[1]] = old
        table[-1, : len(hosts)] = hosts
        layout = replace(self.layout, starts=len(table), ranks=table.shape[1])
        began = np.append(self._file["cluster/began"][:], self.offset)
        self._rebuild(layout, {"cluster/host": table, "cluster/began": began})

    def _check_same(self, job_text: str, layout: Layout) -> None:
        lines = differences(str(self._file.attrs["job"]), job_text)
        if lines:
            raise ResultsError(
                f"{self.path}: is of another job and cannot be resumed ({lines}); "
                "give that job again, or --overwrite"
            )
        mine = asdict(replace(layout, events=0, starts=1, ranks=0))
        its = asdict(replace(self.layout, events=0, starts=1, ranks=0))
        differing = [f"{k} = {its[k]} there, {mine[k]} here" for k in mine if mine[k] != its[k]]
        if differing:
            raise ResultsError(
                f"{self.path}: the job's data or model has changed ({'; '.join(differing)}); "
                "restore them, or give --overwrite to begin again"
            )
