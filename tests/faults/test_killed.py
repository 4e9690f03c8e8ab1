"""Workers are killed with SIGKILL in the middle of a run under ULFM: nothing is lost."""

from __future__ import annotations

from digits import Digits
from mpicoded.trace import Action

PACE = 0.01


def detection(run: Digits, killed: float, ranks: set[int]) -> list[float]:
    """Seconds from the kill to the event FAIL, for each of these ranks."""
    fails = run.events(Action.FAIL)
    stops = {int(event["rank"]): float(event["stop"]) for event in fails}
    return sorted(run.began + stops[rank] - killed for rank in ranks)


def test_one_worker_and_then_another(start, tmp_path):
    run = Digits(start, tmp_path, "input.limit=400", small=True, pace=PACE)
    run.start()
    run.wait_until(80)
    first = run.kill([2])
    run.wait_until(200)
    second = run.kill([4])
    ended = run.end(timeout=60)
    assert {int(rank) for rank in run.events(Action.FAIL)["rank"]} == {2, 4}
    last = {int(rank) for rank in run.events(Action.ARRIVE)[-200:]["rank"]}
    assert last >= {1, 3}, "the others work to the end"
    assert ended.output.count("failed at") == 2
    seconds = detection(run, first, {2}) + detection(run, second, {4})
    assert min(seconds) <= 0.2, seconds


def test_three_at_once_and_then_all(start, tmp_path):
    run = Digits(start, tmp_path, "input.limit=400", pace=PACE)
    run.start()
    run.wait_until(80)
    killed = run.kill([2, 4, 7])
    run.wait_until(200)
    run.kill([1, 3, 5, 6, 8])
    run.end(timeout=60)
    assert {int(rank) for rank in run.events(Action.FAIL)["rank"]} == set(range(1, 9))
    seconds = detection(run, killed, {2, 4, 7})
    assert seconds[1] <= 0.2, seconds
    again = run.events(Action.RESEND)
    soon = again["start"] < killed - run.began + 1.0
    assert soon.any(), "units of the dead were sent to the living"
    assert not set(again["rank"][soon].tolist()) & {2, 4, 7}
