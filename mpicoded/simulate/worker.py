"""One simulated worker: its decisions, its engine, and what befalls it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

from mpicoded.cost.links import Act
from mpicoded.faults import Effect
from mpicoded.scheduling.events import (
    Alive,
    Answered,
    Came,
    Do,
    Event,
    Ran,
    RanPart,
    Reply,
    RunUnit,
    SendAlive,
    SendPiece,
    SendTimes,
    Span,
    StandIn,
    StoodIn,
    Tick,
    Times,
)
from mpicoded.scheduling.ranks import Task
from mpicoded.scheduling.worker import LEADER, WorkerRank
from mpicoded.trace import Action

if TYPE_CHECKING:
    from mpicoded.simulate.run import Simulation

NOTICED = 0.03  # s until the leader knows that a rank is dead


class Output(NamedTuple):
    """A task's output, without its numbers."""

    skipped: bool
    silent: bool


class Anything(dict[Any, None]):
    """Halos without their numbers."""

    def __missing__(self, key: Any) -> None:
        return None


class Worker:
    """One worker: its decisions, its engine, what befalls it."""

    def __init__(self, number: int, run: Simulation) -> None:
        self.number, self.run = number, run
        self.rank = WorkerRank(lambda last, layout: run.routes(last, layout).get(number, {}))
        self.dead = False
        self._jobs: deque[RunUnit | StandIn] = deque()
        self._busy, self._alarm = False, inf
        self._asleep: list[Act] | None = None  # what happens when it goes on
        self._since = self._slept = 0.0
        self._frozen: set[int] = set()  # faults that struck
        self._slow_since: float | None = None

    def when_awake(self, act: Act) -> None:
        """Let ``act`` happen now, or when a frozen rank goes on; never if it is dead."""
        if self._asleep is not None:
            self._asleep.append(act)
        elif not self.dead:
            act()

    def hear(self, event: Event) -> None:
        """Tell the rank of an event, and do what it decides."""
        if not self.dead:
            for action in self.rank.on(event, self.run.now):
                if type(action) in ACTIONS:
                    ACTIONS[type(action)](self, action)
            if self.rank.next_tick < self._alarm:
                self._alarm = at = self.rank.next_tick
                self.run.after(at - self.run.now, lambda: self._ring(at))

    def _ring(self, at: float) -> None:
        if at == self._alarm:
            self._alarm = inf
            self.when_awake(lambda: self.hear(Tick()))

    # ---- faults

    @property
    def tasks(self) -> list[Task]:
        """Tasks that wait for the engine."""
        return [job.task for job in self._jobs]

    def die(self, told: bool = True) -> None:
        """Kill the rank; the others are told a moment later, if anybody tells."""
        if self.dead:
            return
        self.dead, self._asleep = True, None
        if told:
            self.run.after(NOTICED, lambda: self.run.lose(self.number))

    def freeze(self, seconds: float = inf) -> None:
        """Stop the rank; after so many seconds it goes on."""
        if self.dead or self._asleep is not None:
            return
        self._asleep, self._since = [], self.run.now
        if seconds < inf:
            self.run.after(seconds, self.thaw)

    def thaw(self) -> None:
        """Let a frozen rank go on."""
        if self._asleep is None:
            return
        acts, self._asleep = self._asleep, None
        self._slept += self.run.now - self._since
        for act in acts:
            self.when_awake(act)
        self.when_awake(self._next)

    # ---- the engine

    def _submit(self, action: RunUnit | StandIn) -> None:
        self._jobs.append(action)
        self._next()

    def _next(self) -> None:
        """Begin with the next task, after what befalls the rank in its query."""
        if self._busy or not self._jobs:
            return
        query, now = self._jobs[0].task.query, self.run.now
        effect = self.run.effect(self.number, self._jobs[0].task)
        if effect.crash:
            self.run.leader.injected(Action.CRASH, self.number, now, now, query)
            self.die()
            return
        for number, seconds in effect.freezes:
            if number not in self._frozen:
                self._frozen.add(number)
                self._note_freeze(query, seconds)
                self.freeze(seconds)
                return
        self._note_slowness(effect, query)
        self._begin(self._jobs.popleft(), effect)

    def _begin(self, action: RunUnit | StandIn, effect: Effect) -> None:
        self._busy, started = True, self.run.now
        task, epoch = action.task, action.epoch
        skipped = not self.rank.wanted(task, epoch)
        halos = action.halos if isinstance(action, StandIn) else ()
        took = 0.0 if skipped else self.run.seconds(self.number, task, halos)
        effect = effect.of_unit(self.rank.answers(task, epoch), skipped)
        pause = took * (effect.factor - 1) + effect.seconds
        if effect.seconds:
            end = started + took + pause
            self.run.leader.injected(Action.DELAY, self.number, started + took, end, task.query)
        output, slept = Output(skipped, effect.silent), self._slept
        for box, share in self.run.costs.first(self.number, task) if epoch and not skipped else ():
            part = RanPart(task, epoch, box, output)
            self.run.after(share * took, partial(self.when_awake, partial(self.hear, part)))
        self.run.after(took + pause, lambda: self._end(action, output, started, slept))

    def _end(self, action: RunUnit | StandIn, output: Output, started: float, slept: float) -> None:
        if self.dead:
            return
        if self._asleep is not None:
            self._asleep.append(lambda: self._end(action, output, started, slept))
            return
        if self._slept > slept:  # it stood still for a part of that time
            late, slept = self._slept - slept, self._slept
            self.run.after(late, lambda: self._end(action, output, started, slept))
            return
        self._busy = False
        now, lost = self.run.now, bool(action.epoch and output.skipped)
        if isinstance(action, StandIn):
            self.hear(StoodIn(*action[:3], None if lost else Anything()))
            self._next()
            return
        if output.silent:
            self.run.leader.injected(Action.SILENCE, self.number, now, now, action.task.query)
        span = Span(Action.COMPUTE, started, now)
        self.hear(Ran(action.task, (span,), None if lost else output, action.epoch))
        self._next()

    def _note_freeze(self, query: int, seconds: float) -> None:
        for start, stop in ((self.run.now,) * 2, (self.run.now, self.run.now + seconds)):
            self.run.leader.injected(Action.FREEZE, self.number, start, stop, query)

    def _note_slowness(self, effect: Effect, query: int) -> None:
        now, since = self.run.now, self._slow_since
        if (effect.factor > 1) != (since is not None):
            start = now if since is None else since
            self.run.leader.injected(Action.SLOW, self.number, start, now, query)
            self._slow_since = now if since is None else None

    # ---- actions

    def _reply(self, action: Reply) -> None:
        task, output = action.task, action.output
        if output.silent:
            return
        nbytes = 0.0 if output.skipped else self.run.costs.answer(task.stage, task.unit)
        about = (self.number, task, output.skipped, action.clock)
        self._send(LEADER, nbytes, lambda now: Answered(*about, now, int(nbytes)))

    def _piece(self, action: SendPiece) -> None:
        about = (self.number, action.task, action.epoch, action.origin, self.rank.oldest)
        run, origin = self.run, action.origin
        nbytes, pack = run.costs.piece(origin.stage, action.box, self.number, action.rank)
        run.after(pack, lambda: self._send(action.rank, nbytes, lambda now: Came(*about, now)))

    def _times(self, action: SendTimes) -> None:
        self._send(LEADER, 0.0, lambda now: Times(self.number, action.task, action.clocks))

    def _alive(self, action: SendAlive) -> None:
        self._send(LEADER, 0.0, lambda now: Alive(self.number, action.asked, action.todo))

    def _send(self, target: int, nbytes: float, event: Callable[[float], Event]) -> None:
        self.run.send(self.number, target, nbytes, event)


ACTIONS: dict[type[Do], Callable[[Worker, Any], None]] = {
    RunUnit: Worker._submit,
    StandIn: Worker._submit,
    Reply: Worker._reply,
    SendPiece: Worker._piece,
    SendTimes: Worker._times,
    SendAlive: Worker._alive,
}
