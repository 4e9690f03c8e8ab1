"""Waiting for an accuracy: the table, the policy in any order of arrivals, and real runs of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf, isnan
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from many_jobs import LiveRanks, Outcome
from mpicoded.answer import Mode
from mpicoded.codes.erasures import erasures
from mpicoded.deploy import deploy
from mpicoded.errors import DataError, JobError, MpicodedError, PlanError
from mpicoded.expected_accuracy import AccuracyTable, word
from mpicoded.job import Job
from mpicoded.results import load
from mpicoded.scheduling.accuracy import AccuracyGather, AccuracyTarget
from mpicoded.scheduling.deadline import Deadline
from mpicoded.scheduling.dispatcher import Dispatcher, Lost, Post, Ready
from mpicoded.scheduling.gather import Gather, Verdict
from mpicoded.scheduling.ranks import Ranks, Task
from mpicoded.settings import Settings
from mpicoded.study.calibrate import calibrate
from mpicoded.study.report.table import render, summary
from world import Weather, World

WAIT, DONE, RESEND, LOST = Verdict.WAIT, Verdict.DONE, Verdict.RESEND, Verdict.LOST
ROOT = Path(__file__).parents[1]
Arrived = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ExpectedAccuracy:
    """A made-up code: data units are worth the more, and any unit makes an answer.

    With k = 3, r = 2: all data 0.9; data, data, parity 0.86; data, parity 0.64; one parity 0.4.
    """

    k: int = 3

    def accuracy(self, arrived: Arrived) -> float:
        here, missing = int(arrived.sum()), int((~arrived[: self.k]).sum())
        if not here:
            return float("nan")
        return 0.9 - 0.04 * missing - 0.14 * max(0, self.k - here)


@dataclass(frozen=True)
class Rough:
    """A code without tensors that makes an answer of whatever is here."""

    k: int
    r: int

    @property
    def n(self) -> int:
        return self.k + self.r

    def complete(self, arrived: Arrived) -> bool:
        return bool(arrived[: self.k].all())

    def decodable(self, arrived: Arrived) -> bool:
        return int(arrived.sum()) >= self.k

    systematic = True

    def exact(self, arrived: Arrived) -> bool:
        return self.complete(arrived)

    def copy_of(self, unit: int) -> int | None:
        return unit if unit < self.k else None

    def used(self, arrived: Arrived) -> Arrived:
        return arrived


# ---- the table


def table(k: int = 2, r: int = 1, lost: int = 2, sampled: bool = False) -> AccuracyTable:
    """Every set with at most ``lost`` of the units missing; 100 images, 5 fewer right for each."""
    sets = {
        word(a): (90 - 5 * int((~a).sum()), 100 - int((~a).sum())) for a in erasures(k + r, lost)
    }
    return AccuracyTable(k, k + r, 100, 91, sets, sampled, {"code": "made up"})


def test_table_round_trip() -> None:
    quality = AccuracyTable.parse(table().text())
    assert quality == table()
    assert quality.best == 0.9
    assert quality.accuracy(np.array([True, False, True])) == 0.85
    assert quality.agreement(np.array([True, False, False])) == 0.98
    assert isnan(quality.accuracy(np.zeros(3, bool))), "nobody measured an answer from nothing"


def test_a_set_that_was_not_drawn_is_worth_the_mean_of_its_kind() -> None:
    counts = {"1111": (90, 100), "0111": (80, 90), "1011": (70, 80), "1101": (88, 99)}
    quality = AccuracyTable(3, 4, 100, 90, counts, sampled=True)
    drawn = AccuracyTable(
        3, 4, 100, 90, {k: v for k, v in counts.items() if k != "1101"}, sampled=True
    )
    assert quality.accuracy(np.array([1, 1, 0, 1], bool)) == 0.88
    assert drawn.accuracy(np.array([1, 1, 0, 1], bool)) == pytest.approx(0.75)
    assert isnan(drawn.accuracy(np.array([0, 0, 1, 1], bool))), "nothing of its kind was drawn"


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda d: d.pop("k"), id="a word is missing"),
        pytest.param(lambda d: d.update(n=4), id="sets of another size"),
        pytest.param(lambda d: d["counts"].pop("111"), id="without the whole set"),
        pytest.param(lambda d: d["counts"].update({"110": [101, 3]}), id="more right than images"),
        pytest.param(lambda d: d["counts"].update({"110": [-1, 3]}), id="fewer than none"),
        pytest.param(lambda d: d.update(counts=3), id="no sets"),
        pytest.param(lambda d: d["counts"].clear(), id="no set"),
        pytest.param(lambda d: d.update(images=0, base=0), id="no image"),
        pytest.param(lambda d: d.update(images=1e400), id="endless images"),
        pytest.param(lambda d: d.update(k=1.5), id="half a unit"),
        pytest.param(lambda d: d.update(n=10**30), id="10^30 units"),
        pytest.param(lambda d: d.update(of=[]), id="about nothing"),
        pytest.param(lambda d: d.update(base=None), id="base unknown"),
        pytest.param(lambda d: d["counts"].update({"1x1": [1, 1]}), id="no set of units"),
    ],
)
def test_damaged_tables_are_told(spoil: Callable[[dict[str, object]], object]) -> None:
    given = json.loads(table().text())
    spoil(given)
    with pytest.raises(DataError, match="quality table.*mpicoded calibrate"):
        AccuracyTable.parse(json.dumps(given))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "[" * 9000, "9" * 5000])
def test_what_is_no_table_is_told(text: str) -> None:
    with pytest.raises(DataError, match="mpicoded calibrate"):
        AccuracyTable.parse(text)


def test_what_a_table_is_about_is_compared() -> None:
    assert table().misfits({"code": "made up"}) == []
    assert table().misfits({"code": "learned", "k": "2"}) == [
        "code = made up where the job needs learned",
        "k = not said where the job needs 2",
    ]


# ---- one stage


def aimed(least: float, deadline: float | None = inf, k: int = 3, r: int = 2) -> AccuracyGather:
    """A stage posted at 10 s, every unit to one rank, given up after 2 s."""
    stage = AccuracyGather(
        Rough(k, r), 10.0, 2.0, Deadline(deadline), AccuracyTarget(ExpectedAccuracy(k), least)
    )
    stage.expected[:] = 1
    return stage


def play(stage: Gather, *arrivals: tuple[float, int], until: float = 99.0) -> list[object]:
    """Let units arrive; return what ended the wait: its time and the verdict, or WAIT."""
    for now, unit in [*arrivals, (until, -1)]:
        for at in sorted({min(stage.due, now), now}):
            if at == now and unit >= 0:
                stage.expected[unit] -= 1
                stage.arrive(unit, now)
            if (verdict := stage.verdict(at)) is not WAIT:
                return [at, verdict]
    return [WAIT]


PARITY_FIRST = [(10.1, 3), (10.2, 4), (10.3, 0), (10.9, 1), (11.0, 2)]


@pytest.mark.parametrize(
    ("least", "deadline", "arrivals", "over"),
    [
        pytest.param(0.3, inf, PARITY_FIRST, 10.1, id="one unit will do"),
        pytest.param(0.64, inf, PARITY_FIRST, 10.2, id="two: fewer than k"),
        pytest.param(0.82, inf, PARITY_FIRST, 10.3, id="first decodable"),
        pytest.param(0.86, inf, PARITY_FIRST, 10.9, id="one hole"),
        pytest.param(0.9, inf, PARITY_FIRST, 11.0, id="every data unit"),
        pytest.param(0.9, inf, [(10.1, 0), (10.2, 1), (10.3, 2)], 10.3, id="and no parity unit"),
        pytest.param(0.9, inf, PARITY_FIRST[:4], 12.0, id="decodable: until give_up"),
        pytest.param(0.86, 0.5, PARITY_FIRST, 10.5, id="the deadline, decodable"),
        pytest.param(0.86, 0.25, PARITY_FIRST, 10.25, id="the deadline, beyond r"),
        pytest.param(0.86, 0.05, PARITY_FIRST, 10.1, id="the deadline, then the first"),
        pytest.param(0.3, 0.5, PARITY_FIRST, 10.1, id="before the deadline"),
        pytest.param(0.9, None, [(10.1, 0), (10.2, 3), (10.3, 4)], 10.6, id="adaptive, when cold"),
    ],
)
def test_a_stage_is_done(
    least: float, deadline: float | None, arrivals: list[tuple[float, int]], over: float
) -> None:
    stage = aimed(least, deadline)
    ended = play(stage, *arrivals)
    assert ended == [pytest.approx(over), DONE]


def test_what_will_not_come_is_sent_again_until_the_answer_is_good_enough() -> None:
    stage = aimed(0.86)
    for unit in (0, 3, 4):
        stage.expected[unit] = 0
        stage.arrive(unit, 10.1)
    assert stage.verdict(10.1) is WAIT, (
        "decodable, but not good enough; unit 1 or 2 would make it so"
    )
    stage.expected[:] = 0
    assert stage.verdict(10.2) is RESEND
    assert stage.again(10.2) == [1, 2]
    assert stage.at_last(10.3) is DONE, "0.82 is the best that there is"


def test_at_last_it_waits_for_what_is_owed_and_then_takes_the_best() -> None:
    stage = aimed(0.86)
    stage.expected[:] = [1, 0, 0, 0, 0]
    assert stage.verdict(10.1) is RESEND
    assert stage.at_last(10.1) is WAIT
    assert stage.at_last(12.0) is LOST, "nothing came"
    stage.expected[:] = 0
    stage.arrive(0, 12.1)
    assert stage.at_last(12.1) is DONE


def test_the_deadline_counts_from_the_first_posting() -> None:
    stage = aimed(0.9, deadline=1.0)
    stage.expected[:] = 0
    assert stage.verdict(10.5) is RESEND
    stage.again(10.5)
    stage.expected[:] = 1
    stage.expected[0] = 0
    stage.arrive(0, 10.6)
    assert (stage.due, stage.verdict(10.9), stage.verdict(11.0)) == (11.0, WAIT, DONE)


def test_a_stage_that_did_not_wait_says_nothing_of_waiting() -> None:
    policy = Deadline(None)
    stage = AccuracyGather(Rough(3, 2), 10.0, 2.0, policy, AccuracyTarget(ExpectedAccuracy(), 0.64))
    stage.tried = [{1}, {2}, {3}, {4}, {5}]
    for unit, now in ((3, 10.1), (4, 10.2)):
        stage.arrive(unit, now)
    stage.observe()
    stage.observe_late(0, 10.3, skipped=False)
    assert policy.usual == pytest.approx({3: 0.1, 4: 0.2, 0: 0.3})
    assert (policy.stages, policy.confidence) == (1, 1.0)


ORDERS = st.permutations(range(7))
LEAST = st.sampled_from([0.1, 0.3, 0.5, 0.64, 0.78, 0.82, 0.86, 0.9])


@given(ORDERS, st.integers(1, 7), LEAST, st.sampled_from([0.35, 1.0, inf]))
def test_over_as_soon_as_it_is_good_enough_and_never_after_the_deadline(
    order: list[int], k: int, least: float, deadline: float
) -> None:
    stage = aimed(least, deadline, k, 7 - k)
    arrivals = [(10.1 + 0.1 * i, unit) for i, unit in enumerate(order)]
    at, verdict = play(stage, *arrivals)
    assert verdict is DONE
    assert isinstance(at, float)
    here, first = np.zeros(7, bool), inf
    for now, unit in arrivals:
        here[unit] = True
        if first == inf and (
            ExpectedAccuracy(k).accuracy(here) >= least or stage.code.complete(here)
        ):
            first = now
    assert at == pytest.approx(min(first, 10.0 + deadline))
    assert stage.aim.possible(stage.arrived)


@given(ORDERS, st.integers(1, 7), LEAST, LEAST)
def test_who_asks_for_more_waits_longer(order: list[int], k: int, one: float, other: float) -> None:
    arrivals = [(10.1 + 0.1 * i, unit) for i, unit in enumerate(order)]
    low, high = (play(aimed(x, inf, k, 7 - k), *arrivals)[0] for x in sorted((one, other)))
    plain = Gather(Rough(k, 7 - k), 10.0, 2.0, Deadline(inf))
    plain.expected[:] = 1
    assert low <= high <= play(plain, *arrivals)[0]  # type: ignore[operator]


@given(ORDERS, st.integers(1, 6), LEAST, st.integers(0, 127), st.sampled_from([0.35, inf]))
def test_what_arrived_is_never_lost(
    order: list[int], k: int, least: float, silent: int, deadline: float
) -> None:
    """Units that stay away for ever: at the end the best there is, lost only if nothing came."""
    stage = aimed(least, deadline, k, 7 - k)
    came = [unit for unit in order if not silent >> unit & 1]
    at, verdict = play(stage, *[(10.1 + 0.1 * i, unit) for i, unit in enumerate(came)])
    assert isinstance(at, float)
    assert at <= 12.0
    if verdict is RESEND:
        assert at == 12.0
        verdict = stage.at_last(at)
    assert verdict is (DONE if came else LOST)


# ---- many stages


def dispatcher(
    least: float, workers: int = 5, deadline: float = inf, retries: int = 1
) -> Dispatcher:
    ranks = Ranks(range(1, workers + 1), tuple(1 + i % workers for i in range(5)), 0.5, 6)
    aim = AccuracyTarget(ExpectedAccuracy(), least)
    return Dispatcher([Rough(3, 2)], ranks, [Deadline(deadline)], 2.0, retries, [aim])


def test_a_dead_ranks_unit_is_sent_again_only_where_it_is_needed() -> None:
    leader = dispatcher(0.86)
    leader.open(0, 0, 0.0)
    for rank in (3, 4, 5):
        assert leader.answered(rank, Task(0, 0, rank - 1), 0.1) == []
    assert leader.failed(1, 0.2) == [Post(3, Task(0, 0, 0), again=True)]
    (ready,) = leader.answered(2, Task(0, 0, 1), 0.3)
    assert isinstance(ready, Ready)
    assert word(ready.arrived) == "01111"


def test_when_nobody_lives_the_leader_does_better_alone() -> None:
    leader = dispatcher(0.9)
    leader.open(0, 0, 0.0)
    leader.answered(1, Task(0, 0, 0), 0.1)
    acts = [act for rank in range(1, 6) for act in leader.failed(rank, 0.2)]
    assert isinstance(acts[-1], Lost)


def test_beyond_r_there_is_an_answer_and_not_a_loss() -> None:
    leader = dispatcher(0.9, retries=0)
    leader.open(0, 0, 0.0)
    leader.answered(4, Task(0, 0, 3), 0.1)
    for rank in range(1, 6):
        leader.spoke(rank, 1.9)
    (ready,) = [act for act in leader.tick(2.0) if isinstance(act, Ready | Lost)]
    assert isinstance(ready, Ready)
    assert word(ready.arrived) == "00010"


def weathered(weather: Weather, least: float | None, **how: Any) -> World:
    """A world of 6 + 2 units, run to its end."""
    aim = None if least is None else AccuracyTarget(ExpectedAccuracy(6), least)
    return World(how.pop("seed", 17), weather, aim=aim, code=Rough(6, 2), **how).run()


STORM = Weather(silence=0.1, freezes=10, deaths=4, stragglers=2)


@pytest.mark.parametrize("least", [0.3, 0.78, 0.82, 0.9])
@pytest.mark.parametrize("deadline", [None, 0.03, inf], ids=str)
@pytest.mark.parametrize("group", [{}, {"workers": 3}, {"window": 1}], ids=str)
def test_every_group_weathers_the_storm(
    least: float, deadline: float | None, group: dict[str, int]
) -> None:
    weather = Weather(silence=0.1, freezes=5) if "workers" in group else STORM
    world = weathered(weather, least, queries=100, deadline=deadline, **group)
    assert len(world.ended) == world.total
    assert all(isinstance(act, Ready) for act in world.ended.values())
    assert not world.dispatcher.gathers


def test_without_a_deadline_every_answer_is_good_enough_or_all_there_is() -> None:
    world = weathered(Weather(silence=0.2, stragglers=2), 0.86, deadline=inf)
    worth = [ExpectedAccuracy(6).accuracy(act.arrived) for act in world.ended.values()]  # type: ignore[union-attr]
    assert min(worth) >= 0.86, "units that were lost were sent again"


def test_the_less_is_asked_the_sooner_it_comes() -> None:
    def mean(least: float | None) -> float:
        world = weathered(Weather(stragglers=2), least, seed=1, queries=300, deadline=inf)
        return float(np.mean(list(world.took.values())))

    times = [mean(least) for least in (0.1, 0.5, 0.82, 0.9, None)]
    assert times == sorted(times)
    assert times[0] < times[-1] / 2


# ---- jobs


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits' code with its table: 144 of 1,437 images were held back."""
    file = tmp_path_factory.mktemp("code") / "code.safetensors"
    file.write_bytes((ROOT / "data/learned-digits-k6r2.safetensors").read_bytes())
    calibrate(Job.read(ROOT / "jobs/quickstart.toml", [f'code.weights="{file}"']), 144)
    return file


def job(code: Path, *sets: str) -> Job:
    return Job.read(ROOT / "jobs/quickstart.toml", [f'code.weights="{code}"', *sets])


def test_the_table_comes_with_the_weights(code: Path) -> None:
    deployment = deploy(job(code, "gather.min_accuracy=0.9"), (1, 32, 32))
    (aim,) = deployment.aims(0.9)
    assert aim is not None
    assert aim.met(np.ones(8, bool))
    assert not aim.possible(np.zeros(8, bool))
    quality = deployment.codes[0].expected
    assert quality is not None
    assert quality.best == quality.base / quality.images, "nothing is lost where nothing is missing"
    accuracy, agreement = deployment.expected(np.ones((1, 8), bool))
    assert (accuracy, agreement) == (quality.best, 1.0)
    assert deployment.aims(None) == [None]


BAD: dict[str, tuple[tuple[str, ...], type[MpicodedError], str]] = {
    "a percentage": (
        ("min_accuracy=90",),
        JobError,
        r"min_accuracy = 90: .*less than or equal to 1",
    ),
    "nothing": (("min_accuracy=0.0",), JobError, r"min_accuracy = 0.0: .*greater than 0"),
    "at once": (
        ("min_accuracy=0.9", "deadline=0.0"),
        JobError,
        r"deadline: is 0 s, and min_accuracy = 0.9",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_reached_is_told_before_anything_starts(code: Path, name: str) -> None:
    sets, kind, says = BAD[name]
    with pytest.raises(kind, match=says):
        deploy(job(code, *(f"gather.{each}" for each in sets)), (1, 32, 32))


def test_more_than_the_best_is_told_with_both_numbers(code: Path) -> None:
    quality = AccuracyTable.parse(_about(code)["quality"])
    worse = replace(quality, counts=dict(quality.counts) | {"1" * 8: (139, 144)})
    other = code.with_name("worse.safetensors")
    _rewrite(code, other, {"quality": worse.text()})
    with pytest.raises(PlanError, match=r"min_accuracy = 0.97 is more than the 0.9653 .*lower it"):
        deploy(job(other, "gather.min_accuracy=0.97"), (1, 32, 32))
    deploy(job(other, "gather.min_accuracy=0.96"), (1, 32, 32))


def test_a_code_without_a_table_cannot_be_aimed() -> None:
    plain = Job.read(ROOT / "jobs/quickstart.toml", ["gather.min_accuracy=0.9"])
    with pytest.raises(PlanError, match=r"nobody has measured .* mpicoded calibrate JOB"):
        deploy(plain, (1, 32, 32))
    sets = ('code.name="replication"', "code.weights=x", 'plan.stages=["pool1", "pool2"]')
    staged = Job.read(ROOT / "jobs/quickstart.toml", [*sets, "gather.min_accuracy=0.9"])
    object.__setattr__(staged, "code", staged.code.model_copy(update={"weights": None}))
    with pytest.raises(PlanError, match=r"the plan has 2 stages, .*name one block"):
        deploy(staged, (1, 32, 32))


def test_a_table_of_another_plan_is_not_used(code: Path) -> None:
    """It is told where the job needs it, and is nothing else's business."""
    text = AccuracyTable.parse(_about(code)["quality"]).text().replace("0:6x0:1", "0:6x0:2")
    other = code.with_name("other.safetensors")
    _rewrite(code, other, {"quality": text})
    assert deploy(job(other), (1, 32, 32)).codes[0].expected is None
    with pytest.raises(DataError, match=r"units = .* where the job needs .*mpicoded calibrate"):
        deploy(job(other, "gather.min_accuracy=0.9"), (1, 32, 32))
    _rewrite(code, other, {"quality": "{"})
    with pytest.raises(DataError, match=r"other.safetensors: its quality table cannot be read"):
        deploy(job(other), (1, 32, 32))


def _about(path: Path) -> dict[str, str]:
    from mpicoded.expected_accuracy import read_about

    return read_about(path)


def _rewrite(path: Path, to: Path, more: dict[str, str]) -> None:
    from mpicoded.deploy import read_weights
    from mpicoded.study.checkpoint import write_weights

    tensors, about = read_weights(path)
    write_weights(to, tensors, about | more)


@pytest.mark.parametrize(
    "more", [{"min_accuracy": 1.5}, {"min_accuracy": 0.0}, {"min_accuracy": -1}]
)
def test_settings_check_the_share(more: dict[str, float]) -> None:
    with pytest.raises(JobError, match="min_accuracy = "):
        Settings(**more)
    with pytest.raises(JobError, match="deadline: is 0 s, and min_accuracy = 0.9"):
        Settings(min_accuracy=0.9, deadline=0.0)


# ---- real ranks

FAULTS = (
    'faults=[{kind="delay", rank="all", seconds=0.01, tail="exponential"}, '
    '{kind="silence", rank=1}, {kind="silence", rank=2}, {kind="silence", rank=3}]'
)


def served(ranks: LiveRanks, code: Path, file: Path, *sets: str) -> Outcome:
    """Run 60 of the digits; the first three workers never say a word."""
    words = (f'code.weights="{code}"', "input.limit=60", "runtime.window=1", FAULTS, *sets)
    words = (*words, f'results.file="{file}"', "gather.retries=0", "gather.give_up=1.0")
    args = [text for each in words for text in ("--set", each)]
    ended = ranks.run(9, "run", ROOT / "jobs/quickstart.toml", *args)
    assert ended.status == 0, ended.output
    return ended


def test_answers_beyond_r_say_what_they_are_worth(
    ranks: LiveRanks, code: Path, tmp_path: Path
) -> None:
    """Three of eight are silent and r = 2: with a deadline there is an answer all the same."""
    sets = ("gather.min_accuracy=0.95", "gather.deadline=0.3", "runtime.placement=fixed")
    ended = served(ranks, code, tmp_path / "run.h5", *sets)
    loaded = load(tmp_path / "run.h5")
    queries = loaded.queries
    assert set(queries["mode"].tolist()) <= {Mode.AVAILABLE, Mode.DEGRADED}
    quality = deploy(job(code), (1, 32, 32)).codes[0].expected
    assert quality is not None
    arrived = queries["arrived"][:, 0].astype(bool)
    assert (arrived.sum(1) < 6).any(), "fewer than k"
    expected = [quality.accuracy(units) for units in arrived]
    assert queries["expected"] == pytest.approx(expected, rel=1e-6)
    assert queries["agreement"] == pytest.approx([quality.agreement(u) for u in arrived], rel=1e-6)
    told = summary(loaded).all
    assert told is not None
    assert told.expected == pytest.approx(np.mean(expected), rel=1e-6)
    assert "A_o  expected of what arrived" in ended.output
    assert render(summary(loaded)) is not None


def test_a_low_aim_is_met_without_the_silent(ranks: LiveRanks, code: Path, tmp_path: Path) -> None:
    quality = deploy(job(code), (1, 32, 32)).codes[0].expected
    assert quality is not None
    least = max(quality.accuracy(np.arange(8) != 7) - 0.3, 0.3)
    sets = (f"gather.min_accuracy={least:.3f}", "gather.deadline=inf")
    served(ranks, code, tmp_path / "run.h5", *sets)
    queries = load(tmp_path / "run.h5").queries
    assert queries["expected"].min() >= least - 1e-6
    assert (queries["mode"] != Mode.LOST).all()


PROGRAM = """
from pathlib import Path

import torch

from mpicoded import Group, MpicodedError
from mpicoded.deploy import read_weights
from mpicoded.models import build, load_weights

base = build("lenet5", {{}})
load_weights(base, Path({base!r}))
weights, about = read_weights(Path({code!r}))
how = {{"code": "learned", "k": 6, "r": 2, "stages": ("pool2",), "weights": weights,
       "sharing": True}}
x = torch.randn(1, 32, 32)
with Group(comm, base, (1, 32, 32), **how, about=about,
           min_accuracy=0.5, deadline=float("inf")) as group:
    if group is not None:
        answer = group.infer(x)
        print(answer.mode.name, answer.expected >= 0.5, 0 < answer.agreement <= 1)
try:
    about.pop("quality")
    with Group(comm, base, (1, 32, 32), **how, about=about,
               min_accuracy=0.5):
        pass
except MpicodedError as error:
    print("error:", error)
"""


def test_the_python_api_waits_for_an_accuracy_too(ranks: LiveRanks, code: Path) -> None:
    base = ROOT / "data/lenet5-digits.safetensors"
    ended = ranks.run(4, "-c", PROGRAM.format(code=str(code), base=str(base)))
    assert ended.status == 0, ended.output
    told, error = ended.stdout.splitlines()
    assert told in ("AVAILABLE True True", "DEGRADED True True")
    assert error.startswith("error: [gather] min_accuracy = 0.5: nobody has measured")
