"""Draw one query: the work of every rank for it, from its submission to its answer.

leader  |encode|send|      wait       |decode|encode|send|   wait   |decode|head|
rank 1         |wire out|queue|compute|wire back|
rank 2         |wire out|compute         |wire back|       the critical unit has a dark frame
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mpicoded.answer import Mode
from mpicoded.errors import ResultsError
from mpicoded.results import Loaded
from mpicoded.study.report import style
from mpicoded.study.report.fault_intervals import fault_intervals
from mpicoded.study.report.labels import labels
from mpicoded.study.report.phases import CriticalPath
from mpicoded.study.report.spans import lanes, spans
from mpicoded.study.report.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, SKY
from mpicoded.trace import Action

KINDS = {  # colour, colour of the words on it
    "encode": (PURPLE, "black"),
    "send": (ORANGE, "black"),
    "wait": (GREY, "black"),
    "other queries": ("#F4F4F4", GREY),
    "decode": (RED, "white"),
    "head": (INK, "white"),
    "wire out": (SKY, "black"),
    "queue": ("#DDDDDD", "black"),
    "compute": (BLUE, "white"),
    "wire back": (GREEN, "white"),
    "unknown": (GREY, "black"),  # there was an answer, but no word of what happened
    "ended the stage": ("none", "black"),
}
OWN = {Action.ENCODE: "encode", Action.DECODE: "decode", Action.HEAD: "head"}
PARTS: tuple[tuple[str, str, str], ...] = (
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
    """Draw one query into ``path``; ResultsError if it cannot be drawn."""
    last = loaded.layout.queries - 1
    if not 0 <= query <= last:
        raise ResultsError(f"{loaded.path}: has no query {query}; give one from 0 to {last}")
    if loaded.queries["mode"][query] == Mode.PENDING:
        raise ResultsError(f"{loaded.path}: query {query} has no answer yet; give another one")
    if not (loaded.events["query"] == query).any():
        raise ResultsError(f"{loaded.path}: has no trace of query {query}; give another one")
    style.save(path, 1.75 + 0.3 * loaded.layout.ranks, _Timeline(loaded, query).draw)


class _Timeline:
    """Times are in ms since the query's submission; row 0 is the leader, row p is rank p."""

    def __init__(self, loaded: Loaded, query: int) -> None:
        self.loaded, self.query = loaded, query
        self.began = float(loaded.queries["submitted"][query])
        self.latency = 1e3 * float(loaded.queries["latency"][query])
        self.events = loaded.events[loaded.events["query"] == query]
        self.units = spans(self.events)
        self.end = self.latency * (1 + TAIL)
        path = CriticalPath(loaded, spans(loaded.events))
        ends = np.c_[path.critical("rank")[query], path.critical("unit")[query]]
        self.critical = [(s, *end) for s, end in enumerate(ends.tolist())]

    def _ms(self, seconds: float) -> float:
        return 1e3 * (float(seconds) - self.began)

    def draw(self, figure: Figure) -> None:
        """Draw the query on a figure."""
        axes = figure.subplots()
        self._faults(axes)
        segments = [*self._leader(), *self._workers()]
        self._draw(axes, segments)
        self._fates(axes)
        self._stages(axes)
        self._dress(figure, axes, segments)
        mode = Mode(self.loaded.queries["mode"][self.query]).name.lower()
        words = f"query {self.query}: {mode}, {style.three_digits(self.latency)} ms"
        words += f" from submission to answer   ({labels(self.loaded)})"
        style.headline(figure, words)

    def _leader(self) -> Iterator[Segment]:
        """Yield the leader's work for this query; pale, that for others meanwhile."""
        events, answered = self.loaded.events, self.began + 1e-3 * self.latency
        others = events[np.isin(events["action"], list(OWN)) & (events["query"] != self.query)]
        for e in others[(others["stop"] > self.began) & (others["start"] < answered)]:
            start, stop = max(self._ms(e["start"]), 0), min(self._ms(e["stop"]), self.latency)
            yield Segment(0, "other queries", start, stop)
        for e in self.events[np.isin(self.events["action"], list(OWN))]:
            kind = OWN[Action(e["action"])]
            yield Segment(0, kind, self._ms(e["start"]), self._ms(e["stop"]))
        for unit in self.units:
            yield Segment(0, "send", self._ms(unit["posted"]), self._ms(unit["sent"]))
        for e in self.events[self.events["action"] == Action.DECODE]:
            units = self.units[self.units["stage"] == e["stage"]]
            its = units[units["sent"] < e["start"]]
            if len(its):
                yield Segment(0, "wait", self._ms(its["sent"].max()), self._ms(e["start"]))

    def _workers(self) -> Iterator[Segment]:
        for rank in np.unique(self.units["rank"]):
            its = np.sort(self.units[self.units["rank"] == rank], order="sent")
            ends = np.fmax.reduce([its[name] for name in ("sent", "stopped", "arrived")])
            found = lanes(zip(its["sent"], ends, strict=True))
            for unit, lane in zip(its, found, strict=True):
                yield from self._unit(unit, lane, max(found) + 1)

    def _unit(self, unit: np.void, lane: int, lanes: int) -> Iterator[Segment]:
        where = {"unit": int(unit["unit"]), "lane": lane, "lanes": lanes}
        rank, parts = int(unit["rank"]), PARTS
        if np.isnan(unit["came"]):
            parts = (("unknown", "sent", "arrived"),)
        elif np.isnan(unit["stopped"]):
            parts = (*PARTS[:1], ("unknown", "came", "arrived"))
        for kind, begin, end in parts:
            start, stop = self._ms(unit[begin]), self._ms(unit[end])
            if start < stop:  # false for NaN
                yield Segment(rank, kind, start, stop, **where)
        ended = (int(unit["stage"]), rank, where["unit"]) in self.critical
        if ended and unit["fate"] == Action.ARRIVE:
            start, stop = self._ms(unit["sent"]), self._ms(unit["arrived"])
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
                box = {**style.HALO, "facecolor": KINDS[s.kind][0]} if s.row == 0 else None
                axes.text((s.start + stop) / 2, s.y, words, ha="center", va="center",
                          fontsize=7 if s.lanes == 1 else 6, color=KINDS[s.kind][1], zorder=5,
                          clip_on=True, bbox=box)  # fmt: skip

    def _faults(self, axes: Axes) -> None:
        named = set()
        for fault in fault_intervals(self.loaded):
            start, stop = self._ms(fault.start), self._ms(fault.stop)
            if start < self.end and stop > 0 and start < stop:
                axes.barh(fault.rank, stop - start, left=start, height=0.96, color=style.SHADE,
                          linewidth=0, zorder=1)  # fmt: skip
                if (fault.rank, fault.word) not in named:
                    named.add((fault.rank, fault.word))
                    axes.text(max(start, 0), fault.rank + 0.48, f" {fault.word}", fontsize=6.5,
                              ha="left", va="bottom", color=style.SHADE_INK, zorder=6)  # fmt: skip

    def _fates(self, axes: Axes) -> None:
        """Name at the end of a span the fate of an answer of no use, or that there is none."""
        for unit in self.units:
            at, word = self._ms(unit["arrived"]), Action(unit["fate"] or Action.LOST).name.lower()
            if np.isnan(at):
                at, word = self._ms(unit["sent"]), "no answer"
            if word == "arrive":
                continue
            y = int(unit["rank"]) + 0.5
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

    def _dress(self, figure: Figure, axes: Axes, segments: list[Segment]) -> None:
        ranks = self.loaded.layout.ranks
        axes.set_xlim(0, self.end)
        axes.set_ylim(ranks - 0.45, -0.55)
        axes.set_yticks(range(ranks), ["leader", *(f"rank {p}" for p in range(1, ranks))])
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("time since the query was submitted [ms]")
        there = {s.kind for s in segments}
        keys = [Patch(color=KINDS[kind][0], label=kind) for kind in KINDS if kind in there]
        if "ended the stage" in there:
            keys[-1] = Patch(fill=False, edgecolor="black", linewidth=1.2, label="ended the stage")
        figure.legend(handles=keys, loc="outside lower left", ncols=6, fontsize=8,
                      handlelength=1.1, columnspacing=1.4)  # fmt: skip


def _fits(words: str, start: float, stop: float, width: float) -> bool:
    return (stop - start) / width > LETTER * (len(words) + 1)
