"""A worker's decisions: run a task when all of its input is there. No MPI, no clock, no tensors.

    star                Came -> RunUnit -> Ran -> Reply
    direct segment      Came (pieces) -> RunUnit -> Ran -> SendPiece, or a piece for this very rank
                               RanPart -> SendPiece, when borders are computed first
                                                    … the last stage: SendTimes, Reply

A task is dropped when its query is older than the oldest in flight, or was restarted in a newer
epoch: neighbours never wait for a rank that died, as the leader restarts the query. Where units
keep the input of a segment that a code protects, they go on by themselves instead:

    a halo is late, or its rank dead    StandIn -> StoodIn -> RunUnit, this stage's halos of that
                                                              unit and those of all later stages
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

from mpicoded.moves import End, Route
from mpicoded.scheduling.events import (
    Asked,
    Came,
    Do,
    Event,
    Gone,
    Halo,
    Piece,
    Placed,
    Ran,
    RanPart,
    Release,
    Reply,
    RunUnit,
    SendAlive,
    SendPiece,
    SendTimes,
    StandIn,
    StoodIn,
    Stopped,
    Tick,
)
from mpicoded.scheduling.halos import HaloWaits
from mpicoded.scheduling.layout import Layout
from mpicoded.scheduling.ranks import Task
from mpicoded.steps import Node

LEADER = 0
Routes = Mapping[Node, Route]  # of one rank's nodes in one layout
Key = tuple[Task, int]  # a task in an epoch


@dataclass
class _Slot:
    """Pieces that have come of a task's input, by where each was made; ``at``: the last one.

    ``came`` says when those came that were not computed here, ``due`` until when it waits.
    """

    pieces: dict[Node, Piece] = field(default_factory=dict)
    at: float = 0.0
    came: dict[Node, float] = field(default_factory=dict)
    due: float | None = None


@dataclass
class _Kept:
    """Inputs of a segment in an epoch, by unit, while halos may have to be computed from them."""

    inputs: dict[int, Any] = field(default_factory=dict)
    since: float = 0.0
    begun: set[Node] = field(default_factory=set)
    asked: set[tuple[Node, int]] = field(default_factory=set)  # reader, and the unit it lacks
    began: dict[tuple[Halo, ...], float] = field(default_factory=dict)  # computing these, when
    busy: int = 0  # jobs of the engine that read them
    over: bool = False


class WorkerRank:
    """Tasks of one worker; ``routes_of`` says what a layout means for this rank's nodes.

    It is called with a segment's last stage and its layout, and returns the rank's routes.
    """

    def __init__(self, routes_of: Callable[[int, Layout], Routes]) -> None:
        self.oldest = 0  # queries before it are over
        self.todo = 0  # tasks that were handed to the engine, or wait for pieces
        self.direct = 0  # of these, what the engine has of direct segments
        self.done = False
        self._routes_of = routes_of
        self._routes: dict[int, Routes] = {}  # by epoch
        self._epochs: dict[int, int] = {}  # newest of a query in flight
        self._slots: defaultdict[Key, _Slot] = defaultdict(_Slot)
        self._came: dict[Key, float] = {}  # of what the engine has
        self._sent: defaultdict[Key, set[End]] = defaultdict(set)  # what is of its first parts
        self._clocks: defaultdict[tuple[int, int], list[tuple[int, int, float, float, float]]]
        self._clocks = defaultdict(list)  # by query and epoch
        self._kept: defaultdict[tuple[int, int], _Kept] = defaultdict(_Kept)
        self._waits = HaloWaits()
        self._now = self.next_tick = inf
        self._do: list[Do] = []

    def on(self, event: Event, now: float) -> list[Do]:
        """Return the actions that follow from an event, in this order."""
        self._do, self._now = [], now
        HANDLERS[type(event)](self, event, now)
        return self._do

    def wanted(self, task: Task, epoch: int) -> bool:
        """True if the task is still needed; those of gathered stages are in no epoch."""
        current = not epoch or epoch >= self._epochs.get(task.query, 0)
        return current and task.query >= self.oldest

    def route(self, task: Task, epoch: int) -> Route:
        """Return the moves of a task in a layout."""
        return self._routes[epoch][Node(task.stage, task.unit)]

    def answers(self, task: Task, epoch: int) -> bool:
        """True if a task's output goes to the leader."""
        return not epoch or any(end.rank == LEADER for end in self.route(task, epoch).sends)

    # ---- events

    def came(self, event: Came, now: float) -> None:
        """Take in the input of a task, or a piece of it."""
        self._advance(event.oldest)
        task, epoch = event.task, event.epoch
        if not epoch:  # of a gathered stage; if nobody needs it, the engine finds that
            self._start((task, 0), (Piece(event.handle, None, None),), event.at)
            return
        self._restart(task.query, epoch)
        self._waits.late.discard(event.rank)
        if not self.wanted(task, epoch) or self._has((task, epoch), event.origin):
            self._do.append(Release(event.handle))
            return
        self._slots[task, epoch].came[event.origin] = event.at
        self._put((task, epoch), event.origin, Piece(event.handle, None, None), event.at)

    def placed(self, event: Placed, now: float) -> None:
        """Learn a layout; pieces may have come before it."""
        self._routes[event.layout.epoch] = self._routes_of(event.stage, event.layout)
        for key in [key for key in self._slots if key[1] == event.layout.epoch]:
            self._check(key)

    def ran_part(self, event: RanPart, now: float) -> None:
        """Send neighbours what they read of a part of a task's output."""
        task, epoch, box, output = event
        if not self.wanted(task, epoch):
            return
        node, routes = Node(task.stage, task.unit), self._routes[epoch]
        for end in routes[node].sends:
            if end.rank != LEADER and end.node not in routes and box.meet(end.box) == end.box:
                self._send(end, task, epoch, output)
                self._sent[task, epoch].add(end)

    def ran(self, event: Ran, now: float) -> None:
        """Send a task's output where it is read."""
        task, epoch = event.task, event.epoch
        key = (task, epoch)
        came, sent = self._came.pop(key), self._sent.pop(key, set())
        self.todo -= 1
        self.direct -= epoch > 0
        clock = (came, event.start, event.stop)
        if not epoch:
            self._do.append(Reply(task, event.output, clock))
        elif event.output is not None and self.wanted(task, epoch):
            self._pass_on(key, event.output, clock, sent)
        if epoch:
            self._kept[task.query, epoch].busy -= self.route(task, epoch).keeps
            self._settle(task.query, epoch)

    def stood_in(self, event: StoodIn, now: float) -> None:
        """Put halos that were computed here in the place of those that have not come."""
        query, epoch = event.task.query, event.epoch
        self.todo -= 1
        for reader, origin, box in event.halos if event.output is not None else ():
            key = Task(query, reader.stage, reader.unit), epoch
            if self.wanted(*key) and not self._has(key, origin):
                self._put(key, origin, Piece(event.output[reader, origin], origin, box), now)
        kept = self._kept[query, epoch]
        kept.busy -= 1
        if event.output is not None:
            self._waits.took(now - kept.began.pop(event.halos))
        self._settle(query, epoch)

    def asked(self, event: Asked, now: float) -> None:
        """Give a sign of life."""
        self._advance(event.oldest)
        self._do.append(SendAlive(event.asked, self.todo + len(self._slots)))

    def gone(self, event: Gone, now: float) -> None:
        """Lose a neighbour: compute what it would have sent, or the leader restarts the query.

        Without a leader, stop.
        """
        self.done = self.done or event.rank == LEADER
        self._waits.gone.add(event.rank)
        for key in list(self._slots):
            self._check(key)

    def stopped(self, event: Stopped, now: float) -> None:
        """Stop; no task is needed any more."""
        self.oldest, self.done = 2**62, True

    def tick(self, event: Tick, now: float) -> None:
        """Look for halos that are late."""
        if now < self.next_tick:
            return
        self.next_tick = inf
        for key, slot in list(self._slots.items()):
            if slot.due is not None and slot.due <= now:
                slot.due = inf
                ends = self.route(*key).pieces
                self._waits.late |= {end.rank for end in ends if end.node not in slot.pieces}
                self._check(key)
            elif slot.due is not None:
                self.next_tick = min(self.next_tick, slot.due)

    # ---- tasks

    def _put(self, key: Key, origin: Node, piece: Piece, at: float) -> None:
        slot = self._slots[key]
        slot.pieces[origin], slot.at = piece, at
        self._check(key)

    def _check(self, key: Key) -> None:
        """Start a task whose input is complete."""
        task, epoch = key
        routes = self._routes.get(epoch)
        if routes is None:
            return  # the leader's word of the layout is still to come
        node = Node(task.stage, task.unit)
        route, slot = routes[node], self._slots[key]
        if len(slot.pieces) < len(route.pieces):
            self._wait(key, route, slot)
            return
        del self._slots[key]
        pieces = [slot.pieces[end.node]._replace(box=end.box) for end in route.pieces]
        kept = self._kept[task.query, epoch]
        kept.begun.add(node)
        if route.keeps:
            pieces = [piece._replace(kept=True) for piece in pieces]
            kept.inputs[task.unit], kept.since = pieces[0].handle, slot.at
            kept.busy += 1
        elif task.unit in kept.inputs:
            self._waits.observe(node, route, self._after(slot, kept), slot.due is not None)
        self._start(key, tuple(pieces), slot.at)

    def _has(self, key: Key, origin: Node) -> bool:
        """True if a task has a piece already, or has begun."""
        (query, *node), epoch = key
        slot = self._slots.get(key)
        return Node(*node) in self._kept[query, epoch].begun or (
            slot is not None and origin in slot.pieces
        )

    def _after(self, slot: _Slot, kept: _Kept) -> dict[Node, float]:
        return {node: at - kept.since for node, at in slot.came.items()}

    def _wait(self, key: Key, route: Route, slot: _Slot) -> None:
        """Let a unit that has all of its own rank's pieces wait for the others, or do without."""
        (query, stage, unit), epoch = key
        kept, routes, node = self._kept[query, epoch], self._routes[epoch], Node(stage, unit)
        own = [end.node for end in route.pieces if end.node in routes]
        if unit not in kept.inputs or any(each not in slot.pieces for each in own):
            return
        for end in route.pieces:
            lacks = end.node not in slot.pieces and (node, end.node.unit) not in kept.asked
            if lacks and self._waits.avoided(end.rank):
                self._stand_in(key, end.node.unit)
        if slot.due is None:
            slot.due = self._waits.until(node, route, self._after(slot, kept), self._now)
            self.next_tick = min(self.next_tick, slot.due)

    def _stand_in(self, key: Key, lost: int) -> None:
        """Compute all that a task and those after it, on this rank, read of the unit ``lost``."""
        task, epoch = key
        kept = self._kept[task.query, epoch]
        halos = [
            Halo(node, end.node, end.box)
            for node, route in sorted(self._routes[epoch].items())
            if node.unit == task.unit and node.stage >= task.stage
            for end in route.pieces
            if end.node.unit == lost
        ]
        kept.asked |= {(halo.reader, lost) for halo in halos}
        kept.began[tuple(halos)] = self._now
        kept.busy += 1
        self.todo += 1
        self._do.append(StandIn(task, epoch, tuple(halos), kept.inputs[task.unit]))

    def _settle(self, query: int, epoch: int) -> None:
        """Give the inputs of a segment back when nobody reads them any more."""
        kept = self._kept[query, epoch]
        routes = self._routes.get(epoch, ())
        whole = (query, epoch) not in self._clocks and len(kept.begun) == len(routes)
        if not kept.busy and (kept.over or whole):
            self._do += [Release(handle) for handle in kept.inputs.values()]
            kept.inputs.clear()
            if kept.over:
                del self._kept[query, epoch]

    def _start(self, key: Key, pieces: tuple[Piece, ...], at: float) -> None:
        self.todo += 1
        self.direct += key[1] > 0
        self._came[key] = at
        self._do.append(RunUnit(*key, pieces))

    def _send(self, end: End, task: Task, epoch: int, output: Any) -> None:
        read = Task(task.query, end.node.stage, end.node.unit)
        node = Node(task.stage, task.unit)
        self._do.append(SendPiece(end.rank, read, epoch, node, end.box, output))

    def _pass_on(
        self, key: Key, output: Any, clock: tuple[float, float, float], sent: set[End]
    ) -> None:
        task, epoch = key
        routes, node = self._routes[epoch], Node(task.stage, task.unit)
        clocks = self._clocks[task.query, epoch]
        clocks.append((task.stage, task.unit, *clock))
        for end in routes[node].sends:
            if end.rank == LEADER:
                self._do.append(Reply(task, output, clock))
            elif end.node in routes:  # this very rank's
                read = Task(task.query, end.node.stage, end.node.unit)
                self._slots[read, epoch].came[node] = clock[2]
                self._put((read, epoch), node, Piece(output, node, end.box), clock[2])
            elif end not in sent:
                self._send(end, task, epoch, output)
        if len(clocks) == len(routes):  # before the reply, after which the query may be over
            self._do.insert(0, SendTimes(task, tuple(clocks)))
            del self._clocks[task.query, epoch]

    # ---- what is over

    def _advance(self, oldest: int) -> None:
        if oldest > self.oldest:
            self.oldest = oldest
            self._drop(lambda query, epoch: query < oldest)
            self._epochs = {q: e for q, e in self._epochs.items() if q >= oldest}

    def _restart(self, query: int, epoch: int) -> None:
        """Drop what an older epoch has left of a query."""
        before = self._epochs.get(query, 0)
        if epoch > before:
            self._epochs[query] = epoch
            if before:
                self._drop(lambda q, e: q == query and e < epoch)

    def _drop(self, over: Callable[[int, int], bool]) -> None:
        for key in [key for key in self._slots if over(key[0].query, key[1])]:
            handles = _messages(self._slots.pop(key))
            self._do += [Release(handle) for handle in handles]
        for query, epoch in [each for each in self._clocks if over(*each)]:
            del self._clocks[query, epoch]
        for query, epoch in [each for each in self._kept if over(*each)]:
            self._kept[query, epoch].over = True
            self._settle(query, epoch)


def _messages(slot: _Slot) -> Iterator[Any]:
    return (piece.handle for piece in slot.pieces.values() if piece.local is None)


HANDLERS: dict[type, Callable[[WorkerRank, Any, float], None]] = {
    Came: WorkerRank.came,
    Placed: WorkerRank.placed,
    Ran: WorkerRank.ran,
    RanPart: WorkerRank.ran_part,
    StoodIn: WorkerRank.stood_in,
    Asked: WorkerRank.asked,
    Gone: WorkerRank.gone,
    Stopped: WorkerRank.stopped,
    Tick: WorkerRank.tick,
}
