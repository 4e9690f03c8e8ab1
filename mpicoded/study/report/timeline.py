"""The picture of one query: what every rank did for it, from its submission to its answer.

leader  |encode|send|      wait       |decode|encode|send|   wait   |decode|head|
rank 1         |wire out|queue|compute|wire back|
rank 2         |wire out|compute         |wire back|       the critical unit has a dark frame
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mpicoded.answer import Mode
from mpicoded.errors import ResultsError
from mpicoded.results import Loaded
from mpicoded.study.report.critical import CriticalPath
from mpicoded.study.report.episodes import episodes
from mpicoded.study.report.journeys import journeys
from mpicoded.study.report.scheme import scheme
from mpicoded.study.report.style import (
    BLUE,
    GREEN,
    GREY,
    HALO,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SHADE,
    SHADE_INK,
    SKY,
    WIDTH,
    save,
    styled,
    three_digits,
)
from mpicoded.trace import Action

Array = npt.NDArray[Any]
LIGHT = "#DDDDDD"
KINDS = {  # colour, colour of the words on it
    "encode": (PURPLE, "black"),
    "send": (ORANGE, "black"),
    "wait": (GREY, "black"),
    "other queries": ("#F4F4F4", GREY),
    "decode": (RED, "white"),
    "head": (INK, "white"),
    "wire out": (SKY, "black"),
    "queue": (LIGHT, "black"),
    "compute": (BLUE, "white"),
    "wire back": (GREEN, "white"),
    "unknown": (GREY, "black"),  # there was an answer, but no word of what happened
    "ended the stage": ("none", "black"),
}
OWN = {Action.ENCODE: "encode", Action.DECODE: "decode", Action.HEAD: "head"}
WAY: tuple[tuple[str, str, str], ...] = (
    ("wire out", "sent", "came"),
    ("queue", "came", "started"),
    ("compute", "started", "stopped"),
    ("wire back", "stopped", "arrived"),
)
ROW = 0.8  # of the distance of two rows
HEIGHTS = {  # in rows; 0.62 otherwise
    "wait": 0.1,
    "unknown": 0.06,
    "wire out": 0.42,
    "queue": 0.42,
    "wire back": 0.42,
    "ended the stage": 0.74,
}
WORDLESS = ("wait", "unknown", "ended the stage")
TAIL = 0.15  # of the latency: how much after the answer is shown
LETTER = 0.0095  # of the width of the axes: a letter of the words in a segment


@dataclass(frozen=True)
class Segment:
    """Something on a row (rank), in ms since the submission of the query."""

    row: int
    kind: str
    start: float
    stop: float
    unit: int = -1
    lane: int = 0  # of ``lanes`` that share the row, where a rank has several units at a time
    lanes: int = 1

    @property
    def y(self) -> float:
        """Middle of the segment."""
        return self.row + (self.lane - (self.lanes - 1) / 2) / self.lanes * ROW

    @property
    def height(self) -> float:
        """Height of the segment, in rows."""
        return HEIGHTS.get(self.kind, 0.62) / self.lanes


def draw_query(loaded: Loaded, query: int, path: Path) -> None:
    """Draw one query into ``path``.

    Raises
    ------
    ResultsError
        If there is no such query, it has no answer or no trace, or ``path`` cannot be written.
    """
    _check(loaded, query)
    with styled():
        save(_Timeline(loaded, query).figure(), path)


def _check(loaded: Loaded, query: int) -> None:
    last = loaded.layout.queries - 1
    if not 0 <= query <= last:
        raise ResultsError(f"{loaded.path}: has no query {query}; give one from 0 to {last}")
    if loaded.queries["mode"][query] == Mode.PENDING:
        raise ResultsError(f"{loaded.path}: query {query} has no answer yet; give another one")
    if not (loaded.events["query"] == query).any():
        raise ResultsError(f"{loaded.path}: has no trace of query {query}; give another one")


class _Timeline:
    """Times are in ms since the query's submission; row 0 is the leader, row p is rank p."""

    def __init__(self, loaded: Loaded, query: int) -> None:
        self.loaded, self.query = loaded, query
        self.began = float(loaded.queries["submitted"][query])
        self.latency = 1e3 * float(loaded.queries["latency"][query])
        self.events = loaded.events[loaded.events["query"] == query]
        self.ways = journeys(self.events)
        self.end = self.latency * (1 + TAIL)
        path = CriticalPath(loaded, journeys(loaded.events))
        self.critical = [
            (s, int(r), int(u))
            for s, (r, u) in enumerate(
                zip(path.critical("rank")[query], path.critical("unit")[query], strict=True)
            )
        ]

    def _ms(self, seconds: float) -> float:
        return 1e3 * (float(seconds) - self.began)

    def figure(self) -> Figure:
        ranks = self.loaded.layout.ranks
        figure = Figure(figsize=(WIDTH, 1.75 + 0.3 * ranks), layout="constrained")
        axes = figure.subplots()
        self._faults(axes)
        segments = [*self._leader(), *self._workers()]
        self._draw(axes, segments)
        self._fates(axes)
        self._stages(axes)
        self._dress(axes, segments)
        figure.suptitle(self._headline(), x=0.01, ha="left", fontsize=9.5, color=INK)
        return figure

    def _headline(self) -> str:
        mode = Mode(self.loaded.queries["mode"][self.query]).name.lower()
        return (
            f"query {self.query}: {mode}, {three_digits(self.latency)} ms from submission to "
            f"answer   ({scheme(self.loaded)})"
        )

    def _leader(self) -> Iterator[Segment]:
        """What the leader did for this query; pale, what it did for others meanwhile."""
        events, answered = self.loaded.events, self.began + 1e-3 * self.latency
        others = events[np.isin(events["action"], list(OWN)) & (events["query"] != self.query)]
        for e in others[(others["stop"] > self.began) & (others["start"] < answered)]:
            start, stop = max(self._ms(e["start"]), 0), min(self._ms(e["stop"]), self.latency)
            yield Segment(0, "other queries", start, stop)
        for e in self.events[np.isin(self.events["action"], list(OWN))]:
            kind = OWN[Action(e["action"])]
            yield Segment(0, kind, self._ms(e["start"]), self._ms(e["stop"]))
        for way in self.ways:
            yield Segment(0, "send", self._ms(way["posted"]), self._ms(way["sent"]))
        for e in self.events[self.events["action"] == Action.DECODE]:
            its = self.ways[(self.ways["stage"] == e["stage"]) & (self.ways["sent"] < e["start"])]
            if len(its):
                yield Segment(0, "wait", self._ms(its["sent"].max()), self._ms(e["start"]))

    def _workers(self) -> Iterator[Segment]:
        for rank in np.unique(self.ways["rank"]):
            its = self.ways[self.ways["rank"] == rank]
            lanes = _lanes(its)
            for way, lane in zip(its, lanes, strict=True):
                yield from self._way(way, lane, max(lanes) + 1)

    def _way(self, way: np.void, lane: int, lanes: int) -> Iterator[Segment]:
        where = {"unit": int(way["unit"]), "lane": lane, "lanes": lanes}
        rank, parts = int(way["rank"]), WAY
        if np.isnan(way["came"]):
            parts = (("unknown", "sent", "arrived"),)
        elif np.isnan(way["stopped"]):
            parts = (*WAY[:1], ("unknown", "came", "arrived"))
        for kind, begin, end in parts:
            start, stop = self._ms(way[begin]), self._ms(way[end])
            if start < stop:  # false for NaN
                yield Segment(rank, kind, start, stop, **where)
        ended = (int(way["stage"]), rank, where["unit"]) in self.critical
        if ended and way["fate"] == Action.ARRIVE:
            start, stop = self._ms(way["sent"]), self._ms(way["arrived"])
            yield Segment(rank, "ended the stage", start, stop, **where)

    def _draw(self, axes: Axes, segments: list[Segment]) -> None:
        looks: dict[str, dict[str, Any]] = {
            "other queries": {"hatch": "////", "edgecolor": "#C4C4C4", "zorder": 1.5},
            "ended the stage": {"fill": False, "edgecolor": "black", "linewidth": 1.2, "zorder": 4},
            "unknown": {"zorder": 1.7},
        }
        for s in segments:
            look: dict[str, Any] = {"facecolor": KINDS[s.kind][0], "linewidth": 0, "zorder": 2}
            look |= looks.get(s.kind, {})
            axes.barh(s.y, s.stop - s.start, left=s.start, height=s.height, **look)
        self._words(axes, segments)

    def _words(self, axes: Axes, segments: list[Segment]) -> None:
        """Name every kind where it is widest and, if it fits, the unit where it is computed."""
        named = set()
        segments = [s for s in segments if s.kind not in WORDLESS and s.lanes < 3]
        for s in sorted(segments, key=lambda s: s.start - s.stop):
            stop = min(s.stop, self.end)
            words = s.kind if s.kind not in named else ""
            words = f"unit {s.unit}" if s.kind == "compute" and s.kind in named else words
            if words and not _fits(words, s.start, stop, self.end):
                words = str(s.unit) if s.kind == "compute" else ""
            if words and _fits(words, s.start, stop, self.end):
                named.add(s.kind)
                box = {**HALO, "facecolor": KINDS[s.kind][0]} if s.row == 0 else None
                axes.text((s.start + stop) / 2, s.y, words, ha="center", va="center",
                          fontsize=7 if s.lanes == 1 else 6, color=KINDS[s.kind][1], zorder=5,
                          clip_on=True, bbox=box)  # fmt: skip

    def _faults(self, axes: Axes) -> None:
        named = set()
        for fault in episodes(self.loaded):
            start, stop = self._ms(fault.start), self._ms(fault.stop)
            if start < self.end and stop > 0 and start < stop:
                axes.barh(fault.rank, stop - start, left=start, height=0.96, color=SHADE,
                          linewidth=0, zorder=1)  # fmt: skip
                if (fault.rank, fault.word) not in named:
                    named.add((fault.rank, fault.word))
                    axes.text(max(start, 0), fault.rank + 0.48, f" {fault.word}", fontsize=6.5,
                              ha="left", va="bottom", color=SHADE_INK, zorder=6)  # fmt: skip

    def _fates(self, axes: Axes) -> None:
        """Say at the end of an answer's way if it was of no use, or that there is none."""
        for way in self.ways:
            at, word = self._ms(way["arrived"]), Action(way["fate"] or Action.LOST).name.lower()
            if np.isnan(at):
                at, word = self._ms(way["sent"]), "no answer"
            if word == "arrive":
                continue
            y = int(way["rank"]) + 0.5
            look: dict[str, Any] = {"va": "bottom", "fontsize": 6.5, "color": "#555555"}
            if at < 0.9 * self.end:
                axes.text(max(at, 0), y, f" {word}", ha="left", zorder=6, **look)
            else:
                axes.text(self.end, y, f"{word} ", ha="right", zorder=6, **look)

    def _stages(self, axes: Axes) -> None:
        """Mark the end of every stage, and the answer."""
        stops = self.events[self.events["action"] == Action.DECODE]
        several = self.loaded.layout.stages > 1
        for e in stops:
            at, words = self._ms(e["stop"]), f"stage {e['stage']} decoded" if several else "decoded"
            axes.axvline(at, color=RED, linewidth=0.9, linestyle=(0, (1, 2)), zorder=0.5)
            axes.annotate(f"{words} ", (at, 1.0), xycoords=axes.get_xaxis_transform(), ha="right",
                          va="bottom", fontsize=8, color=RED)  # fmt: skip
        axes.axvline(self.latency, color="black", linewidth=0.9, zorder=0.5)
        axes.annotate(" answer", (self.latency, 1.0), xycoords=axes.get_xaxis_transform(),
                      ha="left", va="bottom", fontsize=8)  # fmt: skip

    def _dress(self, axes: Axes, segments: list[Segment]) -> None:
        ranks = self.loaded.layout.ranks
        axes.set_xlim(0, self.end)
        axes.set_ylim(ranks - 0.45, -0.55)
        axes.set_yticks(range(ranks), ["leader", *(f"rank {p}" for p in range(1, ranks))])
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("time since the query was submitted [ms]")
        there = {s.kind for s in segments}
        keys = [Patch(color=KINDS[kind][0], label=kind) for kind in KINDS if kind in there]
        if "ended the stage" in there:
            frame: dict[str, Any] = {
                "edgecolor": "black",
                "linewidth": 1.2,
                "label": "ended the stage",
            }
            keys[-1] = Patch(fill=False, **frame)
        figure = axes.get_figure(root=True)
        assert figure is not None
        figure.legend(
            handles=keys, loc="outside lower left", ncols=6, fontsize=8, handlelength=1.1,
            columnspacing=1.4,
        )  # fmt: skip


def _lanes(ways: Array) -> list[int]:
    """Return a lane for each journey of one rank, so that none overlap in theirs."""
    free_at, lanes = list[float](), list[int]()
    for way in ways:
        end = float(np.nanmax([way["sent"], way["stopped"], way["arrived"]]))
        lane = next((i for i, at in enumerate(free_at) if at <= way["sent"]), len(free_at))
        free_at[lane : lane + 1] = [end]
        lanes.append(lane)
    return lanes


def _fits(words: str, start: float, stop: float, width: float) -> bool:
    return (stop - start) / width > LETTER * (len(words) + 1)
