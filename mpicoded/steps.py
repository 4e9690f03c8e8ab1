"""A rank's schedule as data: what it receives, runs and sends, line by line, and its drawing.

star, r = 1                       halo exchange, no code
0  cut>1,2 enc>3  gather head     0  cut>1,2                     gather head
1  <0 run 0.0 >0                  1  <0 run 0.0 >2 <2 run 1.0 >0
2  <0 run 0.1 >0                  2  <0 run 0.1 >1 <1 run 1.1 >0
3  <0 run 0.2 >0
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import reduce
from itertools import groupby
from typing import NamedTuple

from mpicoded.errors import PlanError
from mpicoded.geometry import Box, Range

CUT, ENCODE, GATHER, HEAD, EXIT = -1, -2, -3, -4, -5  # in the place of a unit: nodes of rank 0
NAMES = {CUT: "cut", ENCODE: "enc", GATHER: "gather", HEAD: "head", EXIT: "exit"}
UNITS = {name: unit for unit, name in NAMES.items()}
SIGNS = {unit: (name + ">" * (unit in (CUT, ENCODE)),) for unit, name in NAMES.items()}  # as drawn


class Kind(Enum):
    """Kinds of steps."""

    RECV = "<"
    RUN = "run "
    SEND = ">"


class Node(NamedTuple):
    """A unit of a stage, or what rank 0 does for all of them; "1.0", "1.gather"."""

    stage: int
    unit: int

    def __str__(self) -> str:
        return f"{self.stage}.{NAMES.get(self.unit, self.unit)}"

    def later(self, start: int) -> Node:
        """Return the node if stages were numbered from ``start`` on."""
        return self._replace(stage=start + self.stage)

    @classmethod
    def parse(cls, text: str) -> Node:
        """Return the node that ``str`` gave."""
        stage, unit = text.split(".")
        return cls(int(stage), UNITS[unit] if unit in UNITS else int(unit))


@dataclass(frozen=True, repr=False)
class Step:
    """One line of a rank's schedule; its repr parses back: ``<2 1.0 relu 4:5,0:8``, ``run 1.0``.

    A message is of the unit that reads it; an answer to the leader, of the unit that made it. What
    stays on its rank is received from that rank itself, without any message. ``box`` is a region of
    ``value``; of a coded unit it has a size, and no place in the map.
    """

    kind: Kind
    node: Node
    peer: int = -1
    value: str = ""
    box: Box | None = None

    def __repr__(self) -> str:
        if self.kind is Kind.RUN:
            return f"run {self.node}"
        return f"{self.kind.value}{self.peer} {self.node} {self.value} {self.box}"

    @classmethod
    def parse(cls, text: str) -> Step:
        """Return the step whose repr this is; PlanError if it is none."""
        found = STEP.fullmatch(text)
        if found is None:
            raise PlanError(
                f"{text!r} is no step: write <PEER NODE VALUE ROWS,COLUMNS for a message that "
                "comes, the same with > for one that goes, or run NODE"
            )
        run, sign, peer, node, value, *ends = found.groups()
        if run:
            return cls(Kind.RUN, Node.parse(run))
        top, bottom, left, right = map(int, ends)
        box = Box(Range(top, bottom), Range(left, right))
        return cls(Kind(sign), Node.parse(node), int(peer), value, box)


NODE = rf"\d+\.(?:\d+|{'|'.join(UNITS)})"
STEP = re.compile(rf"run ({NODE})|([<>])(\d+) ({NODE}) (\S+) (-?\d+):(-?\d+),(-?\d+):(-?\d+)")


class Word(NamedTuple):
    """Steps drawn together: a sign, and with which ranks or of which unit; "cut>1,2"."""

    column: int  # twice the stage; odd: what rank 0 does when the stage is over
    sign: str
    items: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.sign + ",".join(map(str, self.items))

    def joined(self, other: Word) -> Word:
        """Return both as one word; two units of a stage become x."""
        if self.sign.startswith(Kind.RUN.value) and self.items != other.items:
            return Word(self.column, self.sign.removesuffix("x") + "x")
        items = self.items + tuple(i for i in other.items if i not in self.items)
        return self._replace(items=items)


def draw(steps: Mapping[int, Sequence[Step]]) -> str:
    """Return ranks x steps as text, time from left to right.

    Ranks that are fed by workers alone and go the same way share a line: the lines of those who
    feed them say who gets what.
    """
    words = {rank: _words(rank, own) for rank, own in sorted(steps.items()) if own}
    lines = [_together(list(group)) for _, group in groupby(words.items(), _way)]
    columns = sorted({word.column for own in words.values() for word in own})
    cells = [
        [" " * (c % 2) + " ".join(str(w) for w in own if w.column == c) for c in columns]
        for _, own in lines
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    margin = max(len(str(rank)) for rank in words) + 2
    bodies = [" ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    labels = [label for label, _ in lines]
    return "\n".join(_row(*both, margin) for both in zip(labels, bodies, strict=True))


def _row(label: str, body: str, margin: int) -> str:
    """Join a line to its ranks, which may reach into the blanks that it begins with."""
    over = max(0, len(label) - margin)
    return label.ljust(margin) + ("  " + body.lstrip() if body[:over].strip() else body[over:])


def _way(line: tuple[int, list[Word]]) -> Hashable:
    """Return the part that lines drawn as one share: all but units, and whom they hear from."""
    rank, words = line
    fed = [peer for word in words if word.sign == "<" for peer in word.items]
    if not fed or 0 in fed:
        return rank
    return tuple((w.column, w.sign, w.items if w.sign == ">" else ()) for w in words)


def _together(lines: Sequence[tuple[int, list[Word]]]) -> tuple[str, list[Word]]:
    ranks, words = zip(*lines, strict=True)
    joined = [reduce(Word.joined, same) for same in zip(*words, strict=True)]
    return ",".join(map(str, ranks)), joined


def _words(rank: int, steps: Sequence[Step]) -> list[Word]:
    words, column, own = list[Word](), 0, {s.node for s in steps if s.kind is Kind.RUN}
    for step in steps:
        (stage, unit), before = step.node, words[-1:]
        if step.kind is Kind.RUN:
            column = 2 * stage + (unit in (GATHER, HEAD))
            words.append(Word(column, *SIGNS.get(unit, (f"run {stage}.", (unit,)))))
            continue
        if step.kind is Kind.RECV:
            if step.peer == rank or step.node not in own:  # it stays, or is an answer
                continue
            column = 2 * stage
        word = Word(column, step.kind.value, (step.peer,))
        if before and before[0].column == column and before[0].sign.endswith(word.sign):
            words[-1] = before[0].joined(word)  # cut>1 and >2: cut>1,2
        else:
            words.append(word)
    return words
