"""Runs any schedule in this process: ranks in random order, one mailbox for each pair of them."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from random import Random

import torch
from torch import Tensor

from mpicoded.geometry import Box, around
from mpicoded.network.graph import Chain
from mpicoded.network.pieces import shard_program
from mpicoded.network.program import Program
from mpicoded.plan import Plan, Stage
from mpicoded.steps import CUT, ENCODE, GATHER, Kind, Node, Step
from networks import programs
from units import cut, stack, stitch, trim

Maps = dict[str, Tensor]
Run = Callable[[Maps], Maps]  # what a unit reads -> what it writes
Pieces = list[tuple[Box, Tensor]]
Schedule = Mapping[int, tuple[Step, ...]]


def taken(pieces: Pieces, box: Box) -> Tensor:
    """Cut ``box`` out of the piece that holds it."""
    have, x = next((have, x) for have, x in pieces if have.meet(box) == box)
    return x[:, :, box.rows.inside(have.rows), box.cols.inside(have.cols)]


def pasted(pieces: Pieces) -> Tensor:
    """Join pieces to the map of the smallest box around them; NaN where there is none."""
    whole, like = around(box for box, _ in pieces), pieces[0][1]
    x = like.new_full((*like.shape[:2], whole.rows.size, whole.cols.size), torch.nan)
    for (rows, cols), piece in pieces:
        x[:, :, rows.inside(whole.rows), cols.inside(whole.cols)] = piece
    return x


def runs(chain: Chain, plan: Plan) -> dict[Node, Run]:
    """Return what every unit of a planner's plan runs."""
    found: dict[Node, Run] = {}
    for segment in plan.segments:
        for s in range(*segment):
            stage = plan.stages[s]
            for i, program in enumerate(programs(chain, stage)):
                found[Node(s, i)] = program.run
            interior = _interior(chain, plan.stages[segment.start], stage)
            for i in range(stage.k, plan.units_of(s)):
                found[Node(s, i)] = interior.run
    return found


def _interior(chain: Chain, first: Stage, last: Stage) -> Program:
    unbounded = (last.grid[0] > 1, last.grid[1] > 1)
    return shard_program(chain, first.first, last.last, Box.of(*last.unit_output), unbounded)


class Interpreter:
    """Walks the steps of all ranks on real tensors; nothing but messages goes from rank to rank.

    ``encode`` makes the inputs of the coded units (r, …) of a map, ``decode`` the k outputs of all
    (n, …) and the units that arrived; ``lost`` did not.
    """

    def __init__(
        self,
        plan: Plan,
        steps: Schedule,
        runs: Mapping[Node, Run],
        encode: Callable[[Tensor, Stage], Tensor] | None = None,
        decode: Callable[[Tensor, list[bool]], Tensor] | None = None,
        lost: tuple[Node, ...] = (),
    ) -> None:
        self.plan, self.steps, self.runs = plan, steps, runs
        self.encode, self.decode, self.lost = encode, decode, lost
        self.mail: dict[tuple[int, int], deque[Tensor]] = defaultdict(deque)
        self.held: dict[int, dict[str, Pieces]] = {p: defaultdict(list) for p in steps}
        self.slots: dict[int, dict[Node, dict[str, Pieces]]] = {
            p: defaultdict(lambda: defaultdict(list)) for p in steps
        }

    def __call__(self, value: str, x: Tensor, seed: int = 0) -> Maps:
        """Answer one query ``x``: the maps that rank 0 holds at the end, by name."""
        self.held[0][value] = [(Box.of(*x.shape[2:]), x)]
        random, at = Random(seed), dict.fromkeys(self.steps, 0)
        while able := [rank for rank in self.steps if self._able(rank, at[rank])]:
            rank = random.choice(able)
            self._do(rank, self.steps[rank][at[rank]])
            at[rank] += 1
        assert all(i == len(self.steps[p]) for p, i in at.items()), "a rank waits for ever"
        assert not any(self.mail.values()), "nobody takes a message"
        return {value: pieces[0][1] for value, pieces in self.held[0].items()}

    def _able(self, rank: int, i: int) -> bool:
        if i == len(self.steps[rank]):
            return False
        step = self.steps[rank][i]
        return step.kind is not Kind.RECV or step.peer == rank or bool(self.mail[step.peer, rank])

    def _do(self, rank: int, step: Step) -> None:
        if step.kind is Kind.RUN:
            self._run(rank, step.node)
            return
        assert step.box is not None
        if step.kind is Kind.SEND:
            x = taken(self.held[rank][self._name(step.node, step.value)], step.box)
            self.mail[rank, step.peer].append(x.clone())
            return
        if step.peer == rank:
            x = taken(self.held[rank][self._name(step.node, step.value)], step.box)
        else:
            x = self.mail[step.peer, rank].popleft()
        self.slots[rank][step.node][step.value].append((step.box, x))

    def _name(self, node: Node, value: str) -> str:
        """Name the value; units that are no boxes of one map have each their own."""
        stage = self.plan.stages[node.stage]
        own = not stage.spatial or self.plan.coded(node.unit, node.stage)
        return f"{value} of {node}" if own else value

    def _run(self, rank: int, node: Node) -> None:
        stage = self.plan.stages[node.stage]
        if node.unit >= 0:
            came = self.slots[rank].pop(node)
            made = self.runs[node]({value: pasted(pieces) for value, pieces in came.items()})
            boxes = {stage.exit: Box.of(*stage.unit_output)}
            if not self.plan.coded(node.unit, node.stage):
                boxes = {part.value: part.box for part in stage.writes(node.unit)}
            assert made.keys() == boxes.keys()
            for value, x in made.items():
                self.held[rank][self._name(node, value)].append((boxes[value], x))
        elif node.unit == CUT and not stage.spatial:
            for i, x in enumerate(cut(self.held[0][stage.entry][0][1], stage)):
                self._keep(Node(node.stage, i), stage.entry, x)
        elif node.unit == ENCODE:
            self._encode(node.stage)
        elif node.unit == GATHER:
            self._gather(node.stage)

    def _keep(self, node: Node, value: str, x: Tensor) -> None:
        self.held[0][self._name(node, value)].append((Box.of(*x.shape[2:]), x))

    def _encode(self, first: int) -> None:
        assert self.encode is not None
        last = next(seg.stop - 1 for seg in self.plan.segments if seg.start == first)
        entry = self.plan.stages[first].entry
        coded = [Node(last, i) for i in range(self.plan.units_of(last)) if self.plan.coded(i, last)]
        xs = self.encode(self.held[0][entry][0][1], self.plan.stages[last])
        for node, x in zip(coded, xs, strict=True):
            self._keep(node, entry, x)

    def _gather(self, s: int) -> None:
        """Stitch, and decode where there is a code."""
        stage, came = self.plan.stages[s], self.slots[0]
        pieces: dict[str, Pieces] = defaultdict(list)
        answers: list[Tensor | None] = []
        for node, values in sorted(came.items()):
            for value, ((box, x),) in values.items():
                pieces[value].append((box, x))
                if (node.stage, value) == (s, stage.exit):
                    answers.append(None if node in self.lost else x)
        if self.decode is not None:
            ys = self.decode(stack(answers, stage), [y is not None for y in answers])
            answers = [trim(y, stage, i) for i, y in enumerate(ys)]
        if self.decode or not stage.spatial:
            whole = stitch([y for y in answers if y is not None], stage)
            pieces[stage.exit] = [(Box.of(*whole.shape[2:]), whole)]
        for value, those in pieces.items():
            self.held[0][value] = [(around(b for b, _ in those), pasted(those))]
        came.clear()
