"""Rank 0's decisions: admission, phases of posting, gathers, turns on the link. No MPI, no clock.

Offered -> Admit, Run cut -> (posts: Send …, then Run encode -> Send parity …)
Answered … -> Run gather, then Run head -> Finish         the last segment
           -> Run gather, then Run cut of the next        any other
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from mpicoded.geometry import Range
from mpicoded.scheduling.by_stage import ByStage
from mpicoded.scheduling.dispatcher import (
    Act,
    Dispatcher,
    Extra,
    Late,
    Lost,
    Ping,
    Place,
    Post,
    Ready,
    Return,
    Suspect,
)
from mpicoded.scheduling.drift import Drift
from mpicoded.scheduling.events import (
    UNSPLIT,
    Admit,
    Adopt,
    Alive,
    Answered,
    Do,
    Event,
    Finish,
    Gone,
    NewPlan,
    Offered,
    Ran,
    Release,
    Replan,
    Replanned,
    Run,
    Say,
    Send,
    SendLayout,
    SendPing,
    Taken,
    Tick,
    Times,
)
from mpicoded.scheduling.fallback import Fallback
from mpicoded.scheduling.flight import Flight
from mpicoded.scheduling.gather import Coded
from mpicoded.scheduling.ranks import Task
from mpicoded.scheduling.switch import Switch
from mpicoded.scheduling.turns import Turns
from mpicoded.steps import CUT, ENCODE, GATHER, HEAD, Node
from mpicoded.trace import Action, Trace

NO_TASK = Task(-1, -1, -1)
CONTROL = 256  # bytes of a message without a map


class LeaderRank:
    """Queries in flight, at most ``window``; what more is offered waits, at most ``queue`` of them.

    ``codes[s]`` protects the segment that ends with stage s, ``nbytes[s][unit]`` is the message
    with a unit's input. What happens is added to ``trace``.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        codes: Sequence[Coded],
        segments: Sequence[Range],
        nbytes: Sequence[Sequence[int]],
        window: int,
        queue: float = inf,
        trace: Trace | None = None,
    ) -> None:
        self.dispatcher = dispatcher
        self.codes, self.segments, self.nbytes = list(codes), list(segments), list(nbytes)
        self.stages, self._its = Range(0, len(codes)), Range(0, len(segments))  # the plan's
        self._starts = ByStage(0)  # the first stage of every plan
        self.plans = [(self.stages, self._its)]  # that are known
        self.switch: Switch | None = None  # chooses one of these
        self.drift: Drift | None = None  # asks for another plan
        self.window, self.queue = window, queue
        self.trace = trace or Trace()
        self.flights: dict[int, Flight] = {}
        self.fallback: Fallback | None = None  # compares with one device
        self.closing = False
        self._waiting: deque[Flight] = deque()
        self._heard = dict.fromkeys(dispatcher.ranks.workers, 0.0)
        self._turns: Turns[Send | SendPing | SendLayout] = Turns()
        self._do: list[Do] = []

    @property
    def done(self) -> bool:
        """True when no more queries come and none is in flight."""
        return self.closing and not self.flights and not self._waiting

    @property
    def gathering(self) -> bool:
        """True while answers are waited for."""
        return bool(self.dispatcher.gathers)

    @property
    def oldest(self) -> int:
        """The oldest query in flight: workers may skip older ones."""
        return self.dispatcher.oldest()

    @property
    def alone(self) -> bool:
        """True without any worker that lives."""
        return self.dispatcher.ranks.deserted

    def wanted(self, task: Task) -> bool:
        """True unless a task of rank 0 is to encode units that nobody waits for any more."""
        flight = self.flights.get(task.query)
        return task.unit != ENCODE or (
            flight is not None
            and self.segments[flight.segment].start == task.stage
            and self._key(flight) in self.dispatcher.gathers
        )

    def heard_since(self, since: float) -> bool:
        """True if a rank with a task has given a sign of life since then."""
        ranks = self.dispatcher.ranks.owing()
        return any(rank.outstanding and rank.heard > since for rank in ranks)

    def next_tick(self, now: float) -> float:
        """Return when time alone may change something; no Tick does anything before."""
        return min(self.dispatcher.next_tick(), self._turns.next_stall(now))

    def on(self, event: Event, now: float) -> list[Do]:
        """Return the actions that follow from an event, in this order."""
        self._do = []
        HANDLERS[type(event)](self, event, now)
        self._start(now)
        return self._do

    def _start(self, now: float) -> None:
        """Send the messages that have their turn on the link."""
        for message, paced in self._turns.start(now):
            self._do.append(message._replace(paced=True) if paced else message)
            if paced:
                self.dispatcher.ranks.defer([message.rank], now)

    # ---- queries

    def offered(self, event: Offered, now: float) -> None:
        """Let a query wait for its turn."""
        if self.switch is not None:
            self.switch.arrived(now)
        flight = Flight.new(event.query, event.since, self._shape)
        if len(self._waiting) >= self.queue and len(self.flights) >= self.window:
            self._do.append(Finish(event.query, flight, refused=True))
            return
        self._waiting.append(flight)
        self._admit(now)

    @property
    def _shape(self) -> tuple[int, int]:
        """(stages, n) of the plan, at least one of each."""
        n = max((code.n for code in self.codes[slice(*self.stages)]), default=1)
        return max(1, self.stages.size), n

    def _admit(self, now: float) -> None:
        while self._waiting and len(self.flights) < self.window:
            flight = self._waiting.popleft()
            if self.switch is not None and self.switch.choose():
                self.stages, self._its = self.plans[self.switch.now]
                self._note(Action.REPLAN, now, now, 0, NO_TASK._replace(query=flight.query))
            self.flights[flight.query] = flight
            flight.begin(self.stages, self._its, self._shape)
            self._do.append(Admit(flight.query))
            if self._falls_back(flight, now):
                self._run_unsplit(flight)
            elif self.stages.size and self.dispatcher.ranks.workers:
                self._do.append(Run(Task(flight.query, self.stages.start, CUT)))
            else:
                self._run_unsplit(flight)

    def _falls_back(self, flight: Flight, now: float) -> bool:
        """True if a query is to run unsplit, as one device is faster, or to see whether it is."""
        if self.fallback is None:
            return False
        before, unsplit = self.fallback.alone, self.fallback.admit(now)
        if before and not self.fallback.alone:
            self._note(Action.REPLAN, now, now, 0, NO_TASK._replace(query=flight.query))
        return unsplit

    def _run_unsplit(self, flight: Flight) -> None:
        flight.unsplit, flight.degraded = True, False
        self._do.append(Run(Task(flight.query, flight.stages.start, UNSPLIT)))

    def ran(self, event: Ran, now: float) -> None:
        """Go on with a query when the engine is done with a task of it."""
        task, flight = event.task, self.flights.get(event.task.query)
        encoded = task.unit == ENCODE and self.codes[task.stage].systematic
        first = self.codes[task.stage].k if encoded else -1
        for action, start, stop in event.spans:
            self._note(action, start, stop, 0, task._replace(unit=first))
            if flight is not None:
                flight.spend(action, stop - start)
        if flight is None:
            return
        if task.unit == CUT:
            self._open(flight, now)
        elif task.unit == ENCODE:
            if self.segments[flight.segment].start == task.stage:  # else it was not needed
                flight.coded = flight.segment
            posts, flight.unsent = flight.unsent, []
            for post in posts:
                self._post(post, now)
        elif task.unit in (HEAD, UNSPLIT):
            if task.unit == UNSPLIT and self.fallback is not None:
                self._compare(self.fallback, event, now)
            self._finish(flight, now)

    def _open(self, flight: Flight, now: float) -> None:
        """Post the units of a segment, the data units first."""
        key, flight.posted = self._key(flight), now
        code = self.codes[key[1]]
        encodes = any(code.copy_of(unit) is None for unit in range(code.n))
        flight.coded = flight.segment - 1 if encodes else flight.segment
        self._carry_out(self.dispatcher.open(*key, now), now)
        if encodes:
            self._start(now)  # data leaves before parity is encoded
            self._do.append(Run(Task(flight.query, self.segments[flight.segment].start, ENCODE)))

    def _compare(self, fallback: Fallback, event: Ran, now: float) -> None:
        """Give the plan up if it measures slower than one device."""
        if fallback.ran(event.stop - event.start, now):
            text = (
                f"a query takes {fallback.took:.3g} s by the plan and {fallback.seconds:.3g} s on "
                f"one device: rank 0 runs them unsplit, for {fallback.until - now:.0f} s"
            )
            self._do.append(Say(text))
            self._note(Action.ALONE, now, now, 0, NO_TASK._replace(query=event.task.query))

    def _finish(self, flight: Flight, now: float, lost: bool = False) -> None:
        if self.fallback is not None:
            self.fallback.end(now, flight.unsplit)
        if self.drift is not None and (paces := self.drift.look(self.dispatcher.ranks, now)):
            self._do.append(Replan(paces))
        self._do += [Release(handle) for handle in flight.answers.values()]
        self._do.append(Finish(flight.query, flight, lost))
        del self.flights[flight.query]
        self._admit(now)

    def _key(self, flight: Flight) -> tuple[int, int]:
        """Return query and stage as the dispatcher knows them: the segment's last stage."""
        return flight.query, self.segments[flight.segment].stop - 1

    # ---- what the ranks say

    def answered(self, event: Answered, now: float) -> None:
        """Take in a unit's output, or word that it was skipped."""
        rank, task, skipped, (_, started, stopped) = event[:4]
        self._heard[rank] = now
        acts = self.dispatcher.answered(rank, task, now, skipped, stopped - started)
        flight = self.flights.get(task.query)
        fates = {Late: Action.LATE, Extra: Action.EXTRA}
        fate = next((fates[type(act)] for act in acts if type(act) in fates), Action.ARRIVE)
        self._note_answer(fate, event, flight)
        if flight is None or fate is not Action.ARRIVE:
            self._do.append(Release(event.handle))
        else:
            flight.answers[task.unit] = event.handle
            stage = task.stage - flight.stages.start
            flight.seconds[stage, task.unit] = now - flight.posted
        self._carry_out(acts, now)

    def times(self, event: Times, now: float) -> None:
        """Note what the stages of a direct segment took a rank."""
        self._heard[event.rank] = now
        for stage, unit, came, started, stopped in event.clocks:
            task = Task(event.task.query, stage, unit)
            self._note(Action.QUEUE, came, started, event.rank, task)
            self._note(Action.COMPUTE, started, stopped, event.rank, task)
        query, stage, _ = event.task
        if stage not in self.dispatcher.segments:  # else the answers are still to come
            self.dispatcher.ranks.cancel([event.rank], query, [stage])
        self._carry_out(self.dispatcher.spoke(event.rank, now), now)

    def alive(self, event: Alive, now: float) -> None:
        """Take in a sign of life; tasks that an idle rank was sent were lost on the way."""
        rank, asked, todo = event
        self._heard[rank] = now
        d = self.dispatcher
        self._carry_out(d.spoke(rank, now) if todo else d.nothing_left(rank, asked, now), now)

    def gone(self, event: Gone, now: float) -> None:
        """Exclude a dead rank and give its units to others."""
        self._note(Action.FAIL, self._heard[event.rank], now, event.rank)
        self._turns.drop(event.rank)
        self._carry_out(self.dispatcher.failed(event.rank, now), now)

    def taken(self, event: Taken, now: float) -> None:
        """Let the next message have the link."""
        self._turns.taken(event.rank, now)

    def replanned(self, event: Replanned, now: float) -> None:
        """Let queries that are not admitted yet go by a new plan; the others end by theirs."""
        assert self.drift is not None, "a plan was asked for"
        plan = event.plan
        self.drift.answered(now, plan is not None)
        if plan is None:
            return
        self.stages, self._its = self.add(plan)
        if self.fallback is not None:
            self.fallback.restart()
        living = tuple(rank.number for rank in self.dispatcher.ranks.living())
        self._do.append(Adopt(living, self.stages.start, plan.handle))
        self._do.append(Say(event.text))
        query = min((flight.query for flight in self._waiting), default=self.dispatcher.next)
        self._note(Action.REPLAN, now, now, 0, NO_TASK._replace(query=query))

    def add(self, plan: NewPlan, beside: bool = False) -> tuple[Range, Range]:
        """Learn another plan, which may go on ``beside`` those before; its stages and segments."""
        start, first = len(self.codes), len(self.segments)
        self.segments += [segment.shift(start) for segment in plan.segments]
        self._starts.add(start, start)
        self.codes += plan.codes
        self.nbytes += plan.nbytes
        self.dispatcher.extend(plan.codes, plan.deadlines, plan.direct(start))
        ranks = self.dispatcher.ranks
        ranks.extend(start, plan.work, plan.homes, plan.planned, plan.traffic, beside)
        self.plans.append((Range(start, len(self.codes)), Range(first, len(self.segments))))
        return self.plans[-1]

    def tick(self, event: Tick, now: float) -> None:
        """Look for silent ranks and for stages whose time is up."""
        if waiting := self._turns.waiting(now):
            self.dispatcher.ranks.defer(waiting, now)
        self._carry_out(self.dispatcher.tick(now), now)

    # ---- what the dispatcher decides

    def _carry_out(self, acts: Sequence[Act], now: float) -> None:
        for act in acts:
            match act:
                case Post():
                    self._post(act, now)
                case Place(stage, layout):
                    for rank in sorted(layout.members):
                        self._turns.add(rank, SendLayout(rank, stage, layout), CONTROL)
                case Ping(rank, asked):
                    self._turns.add(rank, SendPing(rank, asked), CONTROL)
                case Suspect(rank):
                    self._note(Action.SUSPECT, self._heard[rank], now, rank)
                case Return(rank):
                    self._note(Action.RETURN, self._heard[rank], now, rank)
                case Ready():
                    self._ready(act, now)
                case Lost():
                    self._lost(act, now)
                case Late() | Extra():
                    pass  # noted with the answer itself

    def _post(self, post: Post, now: float) -> None:
        flight, (_, stage, unit) = self.flights[post.task.query], post.task
        code, first = self.codes[stage], self.segments[flight.segment].start
        exclusive = unit >= self.codes[first].k  # the last stage may have fewer units
        if flight.coded < flight.segment and (exclusive or not code.systematic):
            flight.unsent.append(post)
            return
        first = stage if exclusive else first
        send = Send(post.rank, post.task, Node(first, unit), post.epoch, post.again)
        self._turns.add(post.rank, send, self.nbytes[first][unit], exclusive)

    def _ready(self, act: Ready, now: float) -> None:
        flight, code = self.flights[act.query], self.codes[act.stage]
        segment = self.segments[flight.segment]
        flight.gather += now - flight.posted
        if segment.size == 1:
            self.dispatcher.ranks.passed(act.stage, now - flight.posted)
        flight.rounds = max(flight.rounds, act.rounds)
        before = flight.stages.start
        flight.arrived[segment.start - before : segment.stop - before, : code.n] = act.arrived
        if not (code.systematic and act.arrived[: code.k].all()):
            flight.degraded |= not code.exact(act.arrived)  # an exact copy is the base model's own
        self._withdraw(act.query, act.stage)
        answers, flight.answers = flight.answers, {}
        self._do.append(Run(Task(act.query, act.stage, GATHER), act.arrived, answers))
        if flight.segment + 1 == flight.stop:
            self._do.append(Run(Task(act.query, act.stage, HEAD)))
        else:
            flight.segment += 1
            self._do.append(Run(Task(act.query, act.stage + 1, CUT)))

    def _withdraw(self, query: int, stage: int) -> None:
        """Send nothing more of a segment that is over: its inputs are about to be replaced."""
        flight = self.flights[query]
        over = self._turns.withdraw(lambda m: isinstance(m, Send) and m.task[:2] == (query, stage))
        for each in (*flight.unsent, *over):
            if isinstance(each, Send | Post):  # a task that is never sent must not count as owed
                self.dispatcher.withdraw(each.rank, each.task)
        flight.unsent = []

    def _lost(self, act: Lost, now: float) -> None:
        self._withdraw(act.query, act.stage)
        flight, n = self.flights[act.query], self.codes[act.stage].n
        flight.arrived[act.stage - flight.stages.start, :n] = act.arrived
        flight.rounds = act.rounds
        if self.alone:  # the leader goes on by itself; what was reconstructed before is not used
            self._run_unsplit(flight)
            return
        self._note(Action.LOST, flight.posted, now, 0, Task(act.query, act.stage, -1))
        self._finish(flight, now, lost=True)

    # ---- the trace

    def sent(self, send: Send, start: float, stop: float, nbytes: int) -> None:
        """Note that a unit's input was posted."""
        action = Action.RESEND if send.again else Action.SEND
        self._note(action, start, stop, send.rank, send.task, nbytes)
        if flight := self.flights.get(send.task.query):
            flight.spend(action, stop - start)

    def injected(
        self, action: Action, rank: int, start: float, stop: float, query: int = -1
    ) -> None:
        """Note an injected fault."""
        self.trace.add(action, start, stop, rank=rank, query=query)

    def _note_answer(self, fate: Action, event: Answered, flight: Flight | None) -> None:
        came, started, stopped = event.clock
        if not event.skipped:
            self._note(Action.QUEUE, came, started, event.rank, event.task)
            self._note(Action.COMPUTE, started, stopped, event.rank, event.task)
        since = came if flight is None else flight.posted
        self._note(fate, since, event.at, event.rank, event.task, event.nbytes)

    def _note(
        self,
        action: Action,
        start: float,
        stop: float,
        rank: int,
        task: Task = NO_TASK,
        nbytes: int = 0,
    ) -> None:
        query, stage, unit = task
        stage = stage if stage < 0 else self._starts.of(stage)[1]
        about = {"query": query, "stage": stage, "unit": unit}
        self.trace.add(action, start, stop, rank=rank, nbytes=nbytes, **about)


HANDLERS: dict[type, Callable[[LeaderRank, Any, float], None]] = {
    Offered: LeaderRank.offered,
    Ran: LeaderRank.ran,
    Answered: LeaderRank.answered,
    Times: LeaderRank.times,
    Alive: LeaderRank.alive,
    Gone: LeaderRank.gone,
    Taken: LeaderRank.taken,
    Replanned: LeaderRank.replanned,
    Tick: LeaderRank.tick,
}
