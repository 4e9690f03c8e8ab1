"""Moves between stages and every rank's steps, derived from a plan: who sends what to whom.

A move is where the box that one unit owns meets the box that another reads. Scatter and gather are
the same, with one unit on rank 0 that owns, or reads, all of a map.

    owned by 0.0   oooo....        A convolution of 3 rows reads one row of its neighbour: unit 1.0
    owned by 0.1   ....oooo        keeps four rows on its rank and gets one.
    read by  1.0   oooo<...

Steps of a rank are in the order of the stages that they are *for*: what all ranks send for a stage
and receive for it stands between the same two runs. Therefore no order can deadlock, not even where
every rank waits until all its messages are taken; a later stage never waits for an earlier one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import NamedTuple

from mpicoded.cluster import Cluster
from mpicoded.dry_run import check
from mpicoded.errors import PlanError
from mpicoded.geometry import Box, Range, around, borders_first
from mpicoded.plan import Part, Plan, Stage
from mpicoded.steps import CUT, ENCODE, GATHER, HEAD, Kind, Node, Step

__all__ = ["End", "Move", "Route", "Unit", "check", "moves", "parts", "routes", "schedule"]


class Unit(NamedTuple):
    """A unit as moves see it: where it stands, and which parts it reads and owns."""

    node: Node
    rank: int
    reads: tuple[Part, ...] = ()
    owns: tuple[Part, ...] = ()


class Move(NamedTuple):
    """A box of a value that goes from rank ``source`` to ``target``."""

    source: int
    target: int
    origin: Node
    reader: Node
    value: str
    box: Box

    @property
    def node(self) -> Node:
        """The unit that the message belongs to: its reader or, at rank 0, its origin."""
        return self.origin if self.reader.unit == GATHER else self.reader


def moves(a: Iterable[Unit], b: Iterable[Unit]) -> list[Move]:
    """Intersect the parts that units ``b`` read with those that ``a`` own, reader by reader."""
    owners = [(unit, part) for unit in a for part in unit.owns]
    return [
        Move(owner.rank, reader.rank, owner.node, reader.node, part.value, box)
        for reader in b
        for part in reader.reads
        for owner, own in owners
        if own.value == part.value and (box := own.box.meet(part.box))
    ]


class End(NamedTuple):
    """The other end of a move: its rank, its node, and the box, in the coordinates of the map."""

    rank: int
    node: Node
    box: Box


@dataclass(frozen=True)
class Route:
    """The moves of one data unit: ``pieces`` make up its input, ``sends`` carry its output.

    Both include what stays on the unit's own rank. The leader's ends are its nodes CUT and GATHER,
    and it is sent the whole output. An input that it ``keeps`` is what halos can be computed from.
    """

    reads: Box
    pieces: tuple[End, ...]
    sends: tuple[End, ...]
    keeps: bool = False

    def later(self, start: int) -> Route:
        """Return the route if stages were numbered from ``start`` on."""
        pieces, sends = (
            tuple(end._replace(node=end.node.later(start)) for end in each)
            for each in (self.pieces, self.sends)
        )
        return replace(self, pieces=pieces, sends=sends)


def routes(plan: Plan, ranks: Sequence[Sequence[int]]) -> dict[int, dict[Node, Route]]:
    """Derive the moves of every rank's data units; ``ranks[s]`` are the homes of stage s."""
    _check(plan)
    homes = zip(plan.stages, ranks, strict=True)
    stages = (replace(stage, ranks=tuple(own), r=0) for stage, own in homes)  # coded ones have none
    plan = replace(plan, stages=tuple(stages))
    pieces, sends = defaultdict[Node, list[End]](list), defaultdict[Node, list[End]](list)
    for move in (move for phase in _phases(plan) for move in phase.moves):
        pieces[move.reader].append(End(move.source, move.origin, move.box))
        sends[move.origin].append(End(move.target, move.reader, move.box))
    found: dict[int, dict[Node, Route]] = {}
    for node in (Node(s, i) for s, i in plan.units() if not plan.coded(i, s)):
        stage = plan.stages[node.stage]
        assert len(stage.reads(node.unit)) == 1, "a route is of one value"
        ends = tuple(pieces[node]), tuple(sends[node])
        route = Route(stage.shards[node.unit].reads, *ends, stage.keeps)
        found.setdefault(stage.ranks[node.unit], {})[node] = route
    return found


def parts(stage: Stage, unit: int, rank: int, route: Route) -> tuple[Box, ...]:
    """Return the boxes of its output that a unit on ``rank`` computes one after the other."""
    writes = stage.shards[unit].writes
    read = [end.box for end in route.sends if end.rank not in (0, rank)]
    return borders_first(writes, read) if stage.borders_first else (writes,)


class Phase(NamedTuple):
    """Steps that all ranks take for one purpose: rank 0's own, then moves, then runs of units."""

    before: Node | None
    moves: list[Move]
    runs: list[Unit]


def schedule(plan: Plan) -> dict[int, tuple[Step, ...]]:
    """Return the steps of every rank, for one query; PlanError if the plan cannot be run so."""
    _check(plan)
    plan = plan.placed(Cluster.local(plan.ranks))
    steps: dict[int, list[Step]] = {rank: [] for rank in range(plan.ranks)}
    for phase in _phases(plan):
        if phase.before is not None:
            steps[0].append(Step(Kind.RUN, phase.before))
        for m in phase.moves:
            if m.source != m.target:
                steps[m.source].append(Step(Kind.SEND, m.node, m.target, m.value, m.box))
        for m in phase.moves:
            steps[m.target].append(Step(Kind.RECV, m.node, m.source, m.value, m.box))
        for unit in phase.runs:
            steps[unit.rank].append(Step(Kind.RUN, unit.node))
    return {rank: tuple(own) for rank, own in steps.items()}


def _phases(plan: Plan) -> Iterator[Phase]:
    for segment in plan.segments:
        yield from _segment(plan, segment)
    yield Phase(Node(max(0, len(plan.stages) - 1), HEAD), [], [])


def _segment(plan: Plan, segment: Range) -> Iterator[Phase]:
    first, last = segment.start, segment.stop - 1
    data, coded = [_data_units(plan, s) for s in range(*segment)], _coded_units(plan, segment)
    owners = [_leader(Node(first, CUT), data)]
    if data[0]:
        yield Phase(owners[0].node, moves(owners, data[0]), [])
    if coded:  # after data has been posted
        _check_code(plan, segment, "begins", owners[0].owns)
        encoder = _leader(Node(first, ENCODE), [coded])
        yield Phase(encoder.node, moves([encoder], coded), [])
    yield Phase(None, [], data[0])
    for before, units in pairwise(data):
        owners += before
        yield Phase(None, moves(owners, units), units)
    yield Phase(None, [], coded)
    answers = [_whole(plan, unit) for units in data for unit in units] + coded
    gather = Unit(Node(last, GATHER), 0, _gathered(plan, segment, answers))
    if coded:
        _check_code(plan, segment, "ends", gather.reads)
    yield Phase(None, moves(answers, [gather]), [gather])


def _data_units(plan: Plan, s: int) -> list[Unit]:
    """Return the units of a stage that run the base model, with what each alone answers for."""
    stage = plan.stages[s]
    return [
        Unit(Node(s, i), stage.ranks[i], stage.reads(i), stage.owned(i))
        for i in range(stage.k)
        if not plan.coded(i, s)
    ]


def _whole(plan: Plan, unit: Unit) -> Unit:
    """Return the unit with all that it writes: a decoder needs what the next one writes too."""
    return unit._replace(owns=plan.stages[unit.node.stage].writes(unit.node.unit))


def _coded_units(plan: Plan, segment: Range) -> list[Unit]:
    """Return the units that run the whole segment, on what the leader encodes."""
    first, s = plan.stages[segment.start], segment.stop - 1
    last = plan.stages[s]
    coded = [i for i in range(plan.units_of(s)) if plan.coded(i, s)]
    if not coded:
        return []
    window = Box.of(*(r.size for r in last.windows[0]))
    reads = Part(first.entry, window, first.input_shape[0])
    writes = Part(last.exit, Box.of(*last.unit_output), last.output_shape[0])
    return [Unit(Node(s, i), last.ranks[i], (reads,), (writes,)) for i in coded]


def _leader(node: Node, stages: Sequence[Sequence[Unit]]) -> Unit:
    """Return rank 0 as the unit that owns all that the stages read and do not make."""
    units = list(chain(*stages))
    made = {part.value for unit in units for part in unit.owns} if node.unit == CUT else set()
    return Unit(node, 0, (), _hulls(p for unit in units for p in unit.reads if p.value not in made))


def _gathered(plan: Plan, segment: Range, answers: Sequence[Unit]) -> tuple[Part, ...]:
    """Return the parts of the answers that rank 0 reads: for later, or read nowhere else."""
    read = [{p.value for i in range(st.k) for p in st.reads(i)} for st in plan.stages]
    inside, later = set().union(*read[slice(*segment)]), set().union(*read[segment.stop :])
    parts = _hulls(part for unit in answers for part in unit.owns)
    return tuple(part for part in parts if part.value in later or part.value not in inside)


def _hulls(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Return each value's smallest box around all of its parts."""
    found: dict[str, Part] = {}
    for part in parts:
        have = found.setdefault(part.value, part)
        found[part.value] = part._replace(box=around((have.box, part.box)))
    return tuple(found.values())


def _check(plan: Plan) -> None:
    """Raise PlanError where a stage cannot have its input directly."""
    held: set[str] = set()  # values that rank 0, or the units before, can have
    for s, stage in enumerate(plan.stages):
        read = {part.value for i in range(stage.k) for part in stage.reads(i)}
        why = ""
        if s == 0:
            why = "it is the first, and the leader holds the query"
        elif not all(st.spatial for st in plan.stages[s - 1 : s + 1]):
            why = "units of images or channels have no strips or tiles to exchange"
        elif not plan.systematic:
            why = "all units are coded, and run their whole segment by themselves"
        elif read - held:
            why = f"no stage before it makes {', '.join(sorted(read - held))}, the leader does"
        if stage.direct and why:
            raise PlanError(
                f"stage {s + 1}, {stage.name}, cannot have its input directly: {why}. Let the "
                "leader gather before it (direct = False)"
            )
        held |= read | {part.value for i in range(stage.k) for part in stage.writes(i)}


def _check_code(plan: Plan, segment: Range, where: str, parts: Sequence[Part]) -> None:
    """Raise PlanError if a code would have to stand on several values."""
    first, last = plan.stages[segment.start], plan.stages[segment.stop - 1]
    if len(parts) > 1:
        raise PlanError(
            f"stage {first.name if where == 'begins' else last.name} {where} with {len(parts)} "
            f"values, {', '.join(part.value for part in parts)}, and a code stands on one map: cut "
            "the network where one value alone is alive, or use r = 0"
        )
