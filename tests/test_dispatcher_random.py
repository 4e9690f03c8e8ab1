"""A random world drives the dispatcher through thousands of queries.

Whatever happens, every query ends once, in bounded time, and nothing is kept.
"""

from __future__ import annotations

from math import inf

import pytest

from mpicoded.scheduling.dispatcher import Lost, Ready
from world import Weather, World

WEATHERS = {
    "calm": Weather(),
    "stragglers": Weather(stragglers=2),
    "many stragglers": Weather(stragglers=5),
    "silence": Weather(silence=0.1),
    "much silence": Weather(silence=0.5),
    "freezes": Weather(freezes=8),
    "freezes of most": Weather(freezes=40),
    "deaths": Weather(deaths=2),
    "deaths of all but one": Weather(deaths=7),
    "untold deaths": Weather(deaths=7, known=False),
    "storm": Weather(silence=0.1, freezes=10, deaths=4, stragglers=2),
    "untold storm": Weather(silence=0.1, freezes=10, deaths=4, known=False, stragglers=2),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("weather", WEATHERS.values(), ids=WEATHERS)
def test_nothing_is_lost_while_somebody_lives(weather: Weather, seed: int) -> None:
    world = World(seed, weather).run()
    assert set(world.ended) == set(range(world.total))
    assert [act for act in world.ended.values() if isinstance(act, Lost)] == []
    assert not world.dispatcher.gathers
    assert not world.dispatcher.queries


@pytest.mark.parametrize("deadline", [None, 0.0, 0.03, inf], ids=str)
@pytest.mark.parametrize(
    "group",
    [
        pytest.param({"k": 6, "r": 2, "workers": 10}, id="spares"),
        pytest.param({"k": 6, "r": 2, "workers": 3}, id="sharing"),
        pytest.param({"k": 8, "r": 0}, id="uncoded"),
        pytest.param({"k": 1, "r": 7}, id="replication"),
        pytest.param({"k": 3, "r": 1, "workers": 4, "stages": 3}, id="three stages"),
        pytest.param({"window": 1}, id="one by one"),
    ],
)
def test_every_group_and_policy_weathers_the_storm(
    group: dict[str, int], deadline: float | None
) -> None:
    weather = Weather(silence=0.05, freezes=5, deaths=2, stragglers=1)
    world = World(17, weather, queries=100, deadline=deadline, **group).run()
    assert all(isinstance(act, Ready) for act in world.ended.values())
    assert len(world.ended) == world.total


@pytest.mark.parametrize("known", [True, False], ids=["told", "untold"])
def test_when_all_die_what_is_left_is_lost_in_bounded_time(known: bool) -> None:
    weather = Weather(deaths=8, known=known)
    world = World(5, weather, queries=60, retries=2).run()
    assert len(world.ended) == world.total
    assert {type(act) for act in world.ended.values()} == {Ready, Lost}


def test_the_same_world_goes_the_same_way() -> None:
    def log() -> list[tuple[float, str]]:
        return World(3, WEATHERS["storm"]).run().log

    assert log() == log()


def test_stragglers_do_not_slow_the_others() -> None:
    def mean(weather: Weather) -> float:
        world = World(1, weather, queries=300).run()
        return world.now / world.total

    assert mean(Weather(stragglers=2)) < 2.5 * mean(Weather())
