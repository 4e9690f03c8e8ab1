"""A dry run of a schedule, before the first message: does everything come, and does it fit?

Rendezvous, the strictest way of MPI: a message is taken only when its receiver has come to it. All
that stands between two runs of a rank is posted together, and the next run waits for all of it.
What ends so ends where messages are buffered too.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, zip_longest

from mpicoded.errors import PlanError
from mpicoded.geometry import Box, around
from mpicoded.plan import Plan
from mpicoded.steps import GATHER, Kind, Node, Step

Steps = Mapping[int, Sequence[Step]]
Place = tuple[int, int]  # rank, number of the step
Boxes = Mapping[str, list[Box]]  # what comes of each value
WAY_OUT = "derive the steps from the plan, with schedule()"


def check(steps: Steps, plan: Plan | None = None, limit: int | None = None) -> dict[int, int]:
    """Return the most bytes of messages that each rank holds at a time.

    With the ``plan``, units must also get all that it says; without, a position counts as a byte.
    ``limit`` is how many bytes a rank may hold. Raises PlanError if a message is sent and not
    received, or received and not sent; if ranks wait for one another for ever; if a unit's input
    has a hole or comes twice; if a rank holds too much.
    """
    _walk(steps, _pairs(steps))
    for rank, own in steps.items():
        _check_inputs(rank, own, plan)
    widths = {} if plan is None else plan.widths
    held = {rank: _most_held(rank, own, widths) for rank, own in steps.items()}
    for rank, (most, i) in held.items():
        if limit is not None and most > limit:
            raise PlanError(
                f"rank {rank} holds {most} bytes of messages at step {i}, {steps[rank][i]!r}, and "
                f"may hold {limit}: use more units (k), end stages where maps are smaller, send "
                "fewer images a query, or raise the limit"
            )
    return {rank: most for rank, (most, _) in held.items()}


def _pairs(steps: Steps) -> dict[Place, Place]:
    """Return the other end of every message; those from one rank to another come in order."""
    ends = defaultdict[Place, tuple[list[Place], list[Place]]](lambda: ([], []))
    for rank, own in steps.items():
        for i, step in enumerate(own):
            if step.kind is Kind.SEND:
                ends[rank, step.peer][0].append((rank, i))
            elif step.kind is Kind.RECV and step.peer != rank:
                ends[step.peer, rank][1].append((rank, i))
    pairs: dict[Place, Place] = {}
    for (source, target), (sent, received) in ends.items():
        for a, b in zip_longest(sent, received):
            if a is None or b is None or _message(steps, a) != _message(steps, b):
                raise PlanError(
                    f"rank {source} {_told(steps, a, 'sends nothing more')} to rank {target}, and "
                    f"that {_told(steps, b, 'receives nothing more')} from it: {WAY_OUT}, or give "
                    "both ranks the same messages in the same order"
                )
            pairs[a], pairs[b] = b, a
    return pairs


def _message(steps: Steps, place: Place) -> tuple[Node, str, Box | None]:
    step = steps[place[0]][place[1]]
    return step.node, step.value, step.box


def _told(steps: Steps, place: Place | None, nothing: str = "") -> str:
    return f"has step {place[1]}, {steps[place[0]][place[1]]!r}," if place else nothing


def _walk(steps: Steps, pairs: Mapping[Place, Place]) -> None:
    """Let all ranks go on until they have ended, or wait for one another."""
    begun = dict.fromkeys(steps, 0)  # the first step behind the last run
    posted = {rank: _next_run(own, 0) for rank, own in steps.items()}

    def untaken(rank: int) -> Iterator[Place]:
        places = ((rank, i) for i in range(begun[rank], posted[rank]))
        return (p for p in places if p in pairs and posted[pairs[p][0]] <= pairs[p][1])

    going = True
    while going:
        going = False
        for rank, own in steps.items():
            while begun[rank] <= len(own) and not any(untaken(rank)):
                begun[rank] = posted[rank] + 1
                posted[rank] = _next_run(own, begun[rank])
                going = True
    stuck = {rank: next(untaken(rank)) for rank, own in steps.items() if begun[rank] <= len(own)}
    if stuck:
        raise PlanError(
            f"{_circle(steps, stuck, pairs)}, and so on for ever: {WAY_OUT}, which puts what ranks "
            "exchange for a stage between the same two runs"
        )


def _next_run(own: Sequence[Step], start: int) -> int:
    runs = (i for i in range(start, len(own)) if own[i].kind is Kind.RUN)
    return next(runs, len(own))


def _circle(steps: Steps, stuck: dict[int, Place], pairs: Mapping[Place, Place]) -> str:
    """Say who waits for whom, along those that are waited for until one comes again."""
    rank, waits = next(iter(stuck)), list[str]()
    while rank in stuck:
        place = stuck.pop(rank)
        rank = pairs[place][0]
        waits.append(f"rank {place[0]} {_told(steps, place)} and waits for rank {rank}")
    return "; ".join(waits)


def _check_inputs(rank: int, own: Sequence[Step], plan: Plan | None) -> None:
    """Check that what comes for every node is what it reads, once and without a hole."""
    came = defaultdict[Node, dict[str, list[Box]]](lambda: defaultdict(list))
    for i, step in enumerate(own):
        where = f"rank {rank}, step {i}, {step!r},"
        if step.kind is Kind.RECV and step.box is not None:
            came[step.node][step.value].append(step.box)
        elif step.kind is Kind.RUN and step.node.unit == GATHER:
            _check_answers(where, step.node, came, plan)
            came.clear()
        elif step.kind is Kind.RUN and step.node.unit >= 0:
            _check_unit(where, step.node, came.pop(step.node, {}), plan)
    if came:
        node = next(iter(came))
        raise PlanError(f"rank {rank} receives for {node}, which never runs after that: {WAY_OUT}")


def _check_unit(where: str, node: Node, came: Boxes, plan: Plan | None) -> None:
    wanted = {value: around(boxes) for value, boxes in came.items()}
    if plan is not None and not plan.coded(node.unit, node.stage):
        wanted = {part.value: part.box for part in plan.stages[node.stage].reads(node.unit)}
    for value in dict.fromkeys([*wanted, *came]):
        boxes, box = came.get(value, []), wanted.get(value)
        twice = any(a.meet(b) for a, b in combinations(boxes, 2))
        if not boxes or twice or box != around(boxes) or box.area != sum(b.area for b in boxes):
            raise PlanError(
                f"{where} reads {box or 'nothing'} of {value}, and what comes is "
                f"{' '.join(map(str, boxes)) or 'nothing'}{', some of it twice' * twice}: {WAY_OUT}"
            )


def _check_answers(where: str, gather: Node, came: Mapping[Node, Boxes], plan: Plan | None) -> None:
    twice = [str(n) for n, values in came.items() for boxes in values.values() if len(boxes) > 1]
    units = 0 if plan is None else plan.units_of(gather.stage)
    missing = [str(n) for i in range(units) if (n := Node(gather.stage, i)) not in came]
    if twice or missing or not came:
        raise PlanError(
            f"{where} has {len(came)} answers, twice of {', '.join(twice) or 'none'}, not at all "
            f"of {', '.join(missing) or 'none'}: {WAY_OUT}"
        )


def _most_held(rank: int, own: Sequence[Step], widths: Mapping[str, int]) -> tuple[int, int]:
    """Return the most bytes of messages held at a time, inputs until their run, and where."""
    came, goes, most = dict[Node, int](), 0, (0, 0)
    for i, step in enumerate(own):
        if step.kind is Kind.RUN:
            came.pop(step.node, None)
            came, goes = ({} if step.node.unit == GATHER else came), 0
            continue
        size = widths.get(step.value, 1) * step.box.area if step.box and step.peer != rank else 0
        if step.kind is Kind.SEND:
            goes += size
        else:
            came[step.node] = came.get(step.node, 0) + size
        most = max(most, (sum(came.values()) + goes, -i))
    return most[0], -most[1]
