"""Real labs for the tests: built under a name of their own, and gone afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launching import environment
from mpicoded.cluster_tools.lab import cgroup, machine, network, up
from mpicoded.cluster_tools.lab.lab import Lab
from mpicoded.cluster_tools.lab.spec import Spec, equal
from mpicoded.cluster_tools.lab.state import Home
from mpicoded.errors import LabError


def reason() -> str:
    """Why no lab can be built here; "" if it can."""
    try:
        machine.check_tools()
        cgroup.find()
        machine.check_kernel("mpicoded-try", shared=True)
    except LabError as error:
        return str(error)
    finally:
        if os.geteuid() == 0:
            network.remove("mpicoded-try")
    return ""


WHY_NOT = reason()


def traces_of_all() -> dict[str, Any]:
    """Everything that a lab could leave behind: namespaces, links, control groups, folders."""
    links = subprocess.run(["ip", "-j", "link"], capture_output=True, text=True, check=True).stdout
    groups = cgroup.find().roots.values()
    return {
        "namespaces": sorted(path.name for path in Path("/run/netns").glob("*")),
        "links": sorted(link["ifname"] for link in json.loads(links)),
        "groups": sorted(str(p) for root in groups for p in root.glob("mpicoded*/**")),
        "folders": sorted(map(str, Path("/run").glob("mpicoded-*"))),
    }


def mine(traces: dict[str, Any], home: Home) -> dict[str, Any]:
    """Leave out what belongs to labs of others, which may come and go meanwhile."""
    others = {"namespaces": [], "groups": [], "folders": []}
    for kind in others:
        others[kind] = [name for name in traces[kind] if home.lab in name]
    return {**traces, **others}


def new_home() -> Iterator[Home]:
    """A name that no other lab has; afterwards nothing of it is left."""
    if WHY_NOT:
        pytest.skip(f"no lab can be built here: {WHY_NOT}")
    home = Home(f"t{os.getpid()}")
    before = mine(traces_of_all(), home)
    yield home
    up.down(home)
    assert mine(traces_of_all(), home) == before


home = pytest.fixture(new_home)
shared_home = pytest.fixture(new_home, scope="module")


@pytest.fixture
def build(home: Home) -> Callable[..., Lab]:
    """``build(nodes=, cpu=, rate=, …)`` builds a lab whose agent lifts no limits."""

    def build(
        nodes: int = 2,
        cpu: float = 0.2,
        rate: int = 50_000_000,
        memory: int | None = None,
        medium: str = "switched",
        spec: Spec | None = None,
    ) -> Lab:
        spec = spec or equal(nodes, cpu, rate, memory, medium, 128)
        up.up(home, spec)
        home.change(lift=False)
        return Lab.of(home, spec)

    return build


@pytest.fixture
def on(home: Home) -> Callable[..., subprocess.Popen[str]]:
    """``on(node, program, *args)`` starts a Python program on a node, through the agent."""

    def on(node: int, program: str, *args: object) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", program, *map(str, args)]
        return subprocess.Popen(
            ["/bin/sh", str(home.agent), "--exec", str(node), *words],
            stdout=subprocess.PIPE,
            text=True,
        )

    return on


@pytest.fixture
def lab_verb(home: Home) -> Callable[..., subprocess.Popen[str]]:
    """``lab_verb("status", …)`` starts `python -m mpicoded lab status …` for this lab."""

    def start(*words: object) -> subprocess.Popen[str]:
        verb, *rest = map(str, words)
        return subprocess.Popen(
            [sys.executable, "-m", "mpicoded", "lab", verb, "--name", home.name, *rest],
            env=environment("openmpi", {"PYTHONPATH": str(Path(__file__).parents[2])}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    return start
