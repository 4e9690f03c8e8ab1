"""Steps as text and back, and the drawings of schedules."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import nn

from mpicoded.errors import PlanError
from mpicoded.geometry import Box, Range
from mpicoded.moves import schedule
from mpicoded.network.graph import trace
from mpicoded.plan import Plan
from mpicoded.steps import CUT, ENCODE, EXIT, GATHER, HEAD, Kind, Node, Step, draw
from networks import plan_of

STAR = """\
0  cut>1,2 enc>3  gather head
1  <0 run 0.0 >0
2  <0 run 0.1 >0
3  <0 run 0.2 >0"""

HALO = """\
0  cut>1,2                      gather head
1  <0 run 0.0 >2 <2 run 1.0 >0
2  <0 run 0.1 >1 <1 run 1.1 >0"""

# The kernel of two rows reaches down: unit 1.1 needs nothing of unit 0.0.
PIPELINE = """\
0  cut>1,2                          gather head
1  <0 run 0.0 >3
2  <0 run 0.1 >3,4
3,4                <1,2 run 1.x >0"""

CODED_SEGMENT = """\
0  cut>1,2 enc>3                gather head
1  <0 run 0.0 >2 <2 run 1.0 >0
2  <0 run 0.1 >1 <1 run 1.1 >0
3                <0 run 1.2 >0"""

TWO_STARS = """\
0  cut>1,2 enc>3  gather cut>1,2 enc>3  gather head
1  <0 run 0.0 >0         <0 run 1.0 >0
2  <0 run 0.1 >0         <0 run 1.1 >0
3  <0 run 0.2 >0         <0 run 1.2 >0"""

SHARED = """\
0  cut>1,2                gather head
1  <0 run 0.0 run 0.2 >0
2  <0 run 0.1 run 0.3 >0"""

LEADER_TOO = """\
0  cut>1 run 0.0 >1 <1 run 1.0     gather head
1  <0 run 0.1 >0    <0 run 1.1 >0"""


def plan(k: int = 2, r: int = 0, kernel: int = 3, stages: int = 2, direct: bool = False) -> Plan:
    """Two convolutions, the last of ``kernel`` rows, in one stage or two."""
    second = nn.Conv2d(2, 2, (kernel, 3), padding=1)
    chain = trace(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), second), (1, 8, 8))
    names = [block.name for block in chain.blocks][-stages:]
    return plan_of(chain, "height", k, r, *names, direct=direct)


def on(its_plan: Plan, *ranks: tuple[int, ...]) -> Plan:
    pairs = zip(its_plan.stages, ranks, strict=True)
    return replace(its_plan, stages=tuple(replace(stage, ranks=own) for stage, own in pairs))


DRAWINGS = {
    "star": (plan(r=1, stages=1), STAR),
    "halo exchange": (plan(direct=True), HALO),
    "pipeline": (on(plan(kernel=2, direct=True), (1, 2), (3, 4)), PIPELINE),
    "coded segment": (plan(r=1, direct=True), CODED_SEGMENT),
    "two stars": (plan(r=1), TWO_STARS),
    "several units a rank": (on(plan(k=4, stages=1), (1, 2, 1, 2)), SHARED),
    "the leader computes too": (on(plan(direct=True), (0, 1), (0, 1)), LEADER_TOO),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawing(name: str) -> None:
    its_plan, drawing = DRAWINGS[name]
    assert draw(schedule(its_plan)) == drawing


# As they are drawn on paper, where blanks have no meaning.
ON_PAPER = {
    "star": """
        0  cut>1,2 enc>3  gather head
        1  <0 run 0.0 >0
        2  <0 run 0.1 >0
        3  <0 run 0.2 >0""",
    "halo exchange": """
        0  cut>1,2              gather head
        1  <0 run 0.0 >2 <2 run 1.0 >0
        2  <0 run 0.1 >1 <1 run 1.1 >0""",
    "pipeline": """
        0  cut>1,2              gather head
        1  <0 run 0.0 >3
        2  <0 run 0.1 >3,4
        3,4      <1,2 run 1.x >0""",
}


@pytest.mark.parametrize("name", ON_PAPER)
def test_drawing_on_paper(name: str) -> None:
    lines = draw(schedule(DRAWINGS[name][0])).splitlines()
    assert [line.split() for line in lines] == [
        line.split() for line in ON_PAPER[name].splitlines()[1:]
    ]


def test_ranks_of_two_digits_stand_in_one_column() -> None:
    lines = draw(schedule(on(plan(direct=True), (8, 9), (10, 11)))).splitlines()
    assert [line[:4] for line in lines] == ["0   ", "8   ", "9   ", "10,1"]
    assert lines[-1].split() == ["10,11", "<8,9", "run", "1.x", ">0"]
    assert lines[-1].index("<8,9") == lines[1].index(">10,11") + 7 == len(lines[1]) + 1


STEPS = {
    "<0 0.0 x 0:5,0:6": Step(Kind.RECV, Node(0, 0), 0, "x", Box.of(5, 6)),
    ">12 1.3 relu_1 -4:2,3:9": Step(
        Kind.SEND, Node(1, 3), 12, "relu_1", Box(Range(-4, 2), Range(3, 9))
    ),
    "run 2.10": Step(Kind.RUN, Node(2, 10)),
    "run 0.cut": Step(Kind.RUN, Node(0, CUT)),
    "run 0.enc": Step(Kind.RUN, Node(0, ENCODE)),
    "run 1.gather": Step(Kind.RUN, Node(1, GATHER)),
    "run 1.head": Step(Kind.RUN, Node(1, HEAD)),
    "run 1.exit": Step(Kind.RUN, Node(1, EXIT)),
}


@pytest.mark.parametrize("text", STEPS)
def test_repr_parses_back(text: str) -> None:
    assert repr(STEPS[text]) == text and Step.parse(text) == STEPS[text]


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_step_of_a_schedule_parses_back(name: str) -> None:
    for own in schedule(DRAWINGS[name][0]).values():
        assert tuple(Step.parse(repr(step)) for step in own) == own


@pytest.mark.parametrize("text", ["", "run", "run 1", "run 0.stop", "<0 0.0 x", ">x 0.0 x 0:1,0:1"])
def test_text_that_is_no_step(text: str) -> None:
    with pytest.raises(PlanError, match=r"is no step: write <PEER NODE VALUE ROWS,COLUMNS"):
        Step.parse(text)
