"""Zero-fill: waits for every unit until the deadline, then goes on with what came."""

from __future__ import annotations

from math import inf
from pathlib import Path

import numpy as np
import pytest
import torch

from digits import TRAINED
from many_jobs import LiveRanks
from mpicoded.answer import Mode
from mpicoded.codes.uncoded import Uncoded
from mpicoded.codes.zerofill import ZeroFill
from mpicoded.errors import JobError
from mpicoded.job import Job
from mpicoded.results import load
from mpicoded.scheduling.deadline import COLD, Deadline
from mpicoded.scheduling.gather import Gather, Verdict
from mpicoded.trace import Action

WAIT, DONE, RESEND = Verdict.WAIT, Verdict.DONE, Verdict.RESEND


def stage(deadline: Deadline, give_up: float = 2.0, posted: float = 10.0) -> Gather:
    """Four units, each at one rank."""
    gather = Gather(ZeroFill(4, 0), posted, give_up, deadline)
    gather.expected[:] = 1
    for unit, tried in enumerate(gather.tried):
        tried.add(unit)
    return gather


def arrive(gather: Gather, unit: int, now: float) -> Verdict:
    """A unit comes; what is to be done then?"""
    gather.expected[unit] -= 1
    gather.arrive(unit, now)
    return gather.verdict(now)


@pytest.mark.parametrize(("fixed", "due"), [(0.5, 10.5), (inf, 12.0), (9.0, 12.0)])
def test_it_waits_until_the_deadline(fixed: float, due: float) -> None:
    gather = stage(Deadline(fixed))
    assert [arrive(gather, unit, 10.1 + 0.1 * unit) for unit in (0, 1, 2)] == [WAIT] * 3
    assert gather.due == due
    assert gather.verdict(due - 0.01) is WAIT
    assert gather.verdict(due) is DONE
    assert arrive(gather, 3, 10.45) is DONE, "nothing is left to wait for"


def test_one_shard_is_enough_and_none_is_not() -> None:
    gather = stage(Deadline(0.5))
    assert gather.verdict(11.9) is WAIT, "of nothing there is no answer, however late"
    assert gather.verdict(12.0) is RESEND
    assert arrive(gather, 2, 12.0) is DONE


def test_what_cannot_come_any_more_is_not_waited_for() -> None:
    gather = stage(Deadline(5.0))
    gather.expected[:] = [1, 0, 0, 0]
    assert arrive(gather, 0, 10.1) is DONE


def test_before_times_are_known_the_last_arrival_counts() -> None:
    """Else a stage would be over twice as long after its posting as the first shard took."""
    gather = stage(Deadline(patience=2.0, cold=0.2), give_up=30.0)
    dues = []
    for unit in range(4):
        arrive(gather, unit, 10.5 + 0.4 * unit)
        dues.append(gather.due - 10.0)
    assert dues == pytest.approx([1.0, 1.8, 2.6, 3.4])


def test_an_adaptive_deadline_covers_what_is_usual() -> None:
    deadline = Deadline(patience=2.0)
    for query in range(3 * COLD):
        gather = stage(deadline, give_up=30.0, posted=10.0 * query)
        for unit in range(4):
            assert arrive(gather, unit, gather.posted + 0.1 + 0.05 * unit) is (
                DONE if unit == 3 else WAIT
            )
        gather.complete = True
        gather.observe()
    gather = stage(deadline, give_up=30.0)
    for unit in range(3):
        assert arrive(gather, unit, 10.1 + 0.05 * unit) is WAIT
    assert 0.25 < gather.due - 10.0 < 0.5, "a little longer than the last shard usually takes"
    assert gather.verdict(gather.due) is DONE


def test_zeros_for_what_is_missing() -> None:
    y = torch.randn(4, 2, 3)
    arrived = np.array([True, False, True, False])
    here = torch.from_numpy(arrived)[:, None, None]
    code = ZeroFill(4, 0)
    assert torch.equal(code.decode(y.where(here, torch.nan), arrived), y * here)
    assert not code.exact(arrived)
    assert code.exact(np.ones(4, bool))
    assert not code.decodable(np.zeros(4, bool))
    assert not Uncoded(4, 0).decodable(arrived)


JOB = f"""\
seed = 7
{TRAINED}
split = "test"
limit = 40
[plan]
split = "width"
stages = ["pool2"]
[code]
name = "zerofill"
k = 4
[gather]
deadline = 0.3
[runtime]
window = 1
placement = "fixed"
suspect_after = 20.0
[[faults]]
kind = "silence"
rank = 2
start = 0.8
"""


def test_a_silent_worker_on_real_ranks(ranks: LiveRanks, tmp_path: Path) -> None:
    """It is waited for until the deadline, then there is an answer without its shard."""
    job = tmp_path / "job.toml"
    job.write_text(JOB)
    ended = ranks.run(5, "run", job)
    assert ended.status == 0, ended.output
    results = load(tmp_path / "job.h5")
    queries = results.queries
    arrived = queries["arrived"][:, 0].astype(bool)  # (40, 4)
    assert not arrived[32:, 1].any()
    assert arrived[32:, [0, 2, 3]].all()
    assert (queries["mode"][32:] == Mode.DEGRADED).all()
    assert (queries["gather"][32:] >= 0.299).all()
    assert np.median(queries["gather"][:32]) < 0.3, "complete: no wait"
    assert ((queries["mode"] == Mode.AVAILABLE) == arrived.all(1)).all()
    assert (results.events["action"] == Action.LOST).sum() == 0


@pytest.mark.parametrize("r", [1, 2])
def test_it_has_no_parity(tmp_path: Path, r: int) -> None:
    job = tmp_path / "job.toml"
    job.write_text(JOB)
    with pytest.raises(JobError, match=f"is {r}, but zerofill means r = 0"):
        Job.read(job, [f"code.r={r}"])
