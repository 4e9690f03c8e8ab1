"""Cluster files, units, and what is refused: nothing here touches the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mpicoded.cluster_tools.lab import machine
from mpicoded.cluster_tools.lab.fault import Fault, check, condition
from mpicoded.cluster_tools.lab.spec import Node, Spec, equal, from_plain, read_spec
from mpicoded.cluster_tools.lab.state import Home, Look, State
from mpicoded.cluster_tools.lab.units import rate, show_rate, show_size, size
from mpicoded.errors import LabError

CLUSTERS = Path(__file__).parents[1] / "data" / "clusters"


@pytest.mark.parametrize(
    ("text", "bits"), [("50mbit", 50_000_000), ("1.5 Gbit", 1_500_000_000), (9600, 9600)]
)
def test_rates_are_read(text, bits):
    assert rate(text) == bits


@pytest.mark.parametrize("text", ["50", "fast", "0mbit", "-1mbit", "1gb", True, "50mbit; reboot"])
def test_what_is_no_rate_is_refused(text):
    with pytest.raises(LabError, match="is not a rate, such as 50mbit"):
        rate(text)


def test_sizes_and_how_they_are_shown():
    assert size("1gb") == 2**30 and size("512mb") == 2**29
    assert (show_size(2**30), show_size(1536), show_size(None)) == ("1 GB", "1.5 kB", "free")
    assert (show_rate(5e7), show_rate(None)) == ("50 Mbit/s", "free")


@pytest.mark.parametrize("file", sorted(CLUSTERS.glob("*.toml")), ids=lambda file: file.stem)
def test_bundled_clusters_can_be_read_and_kept(file, tmp_path):
    spec, home = read_spec(file), Home("test", tmp_path)
    assert len(spec.nodes) >= 5
    with home.lock():
        home.write(State(spec, True))
    assert home.need().spec == spec


def test_network_rate_is_for_links_without_their_own():
    nodes = [{"name": "a"}, {"name": "b", "rate": "10mbit"}]
    spec = from_plain({"nodes": nodes, "network": {"rate": "50mbit"}})
    assert [node.rate for node in spec.nodes] == [50_000_000, 10_000_000]
    shared = from_plain({"nodes": nodes, "network": {"rate": "50mbit", "medium": "shared"}})
    assert [node.rate for node in shared.nodes] == [None, 10_000_000]
    assert shared.rate == 50_000_000


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"nodes": [{"nmae": "a"}]}, r"\[\[nodes\]\] 0 nmae is not a key \(did you mean 'name'"),
        ({"nodes": [{}], "netwerk": {}}, r"netwerk is not a key \(did you mean 'network'"),
        ({"nodes": [{"cpu": "0.2"}]}, "cpu a share of a core"),
        ({"nodes": [{"cpu": 0.0}]}, "node n0: cpu = 0"),
        ({"nodes": [{"name": "a;reboot"}]}, "'a;reboot' is not a name of a node"),
        ({"nodes": [{"name": "sw"}]}, "'sw' is not a name"),
        ({"nodes": [{"name": "a"}, {"name": "a"}]}, "node 'a' is there 2 times"),
        ({"nodes": [{"memory": "1mb"}]}, "node n0: memory = 1048576 bytes: at least 64mb"),
        ({"nodes": [{"rate": "fast"}]}, r"\[\[nodes\]\] 0: 'fast' is not a rate"),
        ({"nodes": [{}], "network": {"medium": "shared"}}, "a shared medium needs a rate"),
        ({"nodes": [{}], "network": {"medium": "air", "rate": 10000}}, "medium 'air' is not one"),
        ({"nodes": [{}], "vectors": 64}, "vectors of 64 bits: should be one of 128, 256, 512"),
        ({"nodes": []}, "0 nodes: a lab has from 1 to 250"),
        ({"nodes": 9}, r"nodes: should be tables, \[\[nodes\]\]"),
    ],
)
def test_bad_cluster_is_one_line(data, message):
    with pytest.raises(LabError, match=message) as caught:
        from_plain(data)
    assert "\n" not in str(caught.value)


def test_bad_cluster_file_is_named(tmp_path):
    file = tmp_path / "pis.toml"
    file.write_text("nodes = 1 2")
    with pytest.raises(LabError, match="pis.toml: is not TOML"):
        read_spec(file)
    with pytest.raises(LabError, match="none.toml: there is no such cluster file"):
        read_spec(tmp_path / "none.toml")


def test_node_is_found_by_name_number_and_address():
    spec = equal(3, 0.2, 10**7, None, "switched", 512)
    assert [spec.index(name) for name in ("n1", "1", "10.77.0.2")] == [1, 1, 1]
    with pytest.raises(LabError, match="'n3' is not a node of the lab; there are n0, n1, n2"):
        spec.index("n3")


@pytest.mark.parametrize(
    ("count", "cpu", "cores", "message"),
    [
        (11, 0.2, 2, "11 nodes ask for 2.2 cores and .* has 2: .* 10 nodes of 0.2, or 11 of 0.18"),
        (3, 1.0, 2, "it can honestly emulate 2 nodes of 1, or 3 of 0.66"),
        (2, 3.0, 2, "it can honestly emulate no nodes of 3, or 2 of 1"),
    ],
)  # fmt: skip
def test_too_few_cores_say_how_many_nodes_there_can_be(count, cpu, cores, message):
    with pytest.raises(LabError, match=message):
        machine.check_cores(equal(count, cpu, 10**7, None, "switched", 512), cores)


def test_uneven_nodes_that_ask_for_too_much():
    spec = Spec((Node("a", 1.5), Node("b", 0.5), Node("c", 0.5)))
    with pytest.raises(LabError, match="the 2 smallest of them, or all with their cpu times 0.80"):
        machine.check_cores(spec, 2)
    machine.check_cores(spec, 3)


def test_just_enough_cores_are_enough():
    machine.check_cores(equal(10, 0.2, 10**7, None, "switched", 512), 2)


def test_too_little_memory():
    spec = equal(9, 0.2, 10**7, 2**30, "switched", 512)
    with pytest.raises(LabError, match="9 nodes ask for 9 GB of memory and this machine has 8 GB"):
        machine.check_memory(spec, 2**33)


def test_without_root_or_tools(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match="the lab needs root"):
        machine.check_tools()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LabError, match="there is no 'ip' here: install iproute2"):
        machine.check_tools()


def test_several_faults_of_a_node():
    faults = [
        Fault("a", "cpu", 1, 0.5, 0.0),
        Fault("b", "cpu", 1, 0.1, 0.0),
        Fault("c", "rate", 1, 1e6, 0.0),
        Fault("d", "rate", 1, 2e6, 0.0),
        Fault("e", "link", 1, None, 0.0),
        Fault("f", "loss", 1, 0.2, 0.0),
    ]
    one = condition(faults)
    assert (one.cpu, one.rate, one.link, one.loss) == (0.05, 1e6, False, 0.2)
    assert not one.rebooting and not one.frozen
    assert condition([]).link


@pytest.mark.parametrize(
    ("kind", "value", "seconds", "message"),
    [
        ("flood", None, None, "'flood' is not a fault of the lab; there are reboot"),
        ("cpu", None, None, "fault cpu needs a value: the share"),
        ("cpu", "x", None, "fault cpu: value x: should be the share"),
        ("loss", 1.5, None, "fault loss: value 1.5: should be the share of packets"),
        ("rate", "10", None, "fault rate: 10 bit/s: at least 1kbit"),
        ("link", None, -1, "fault link: seconds = -1.0: more than 0"),
        ("link", None, "soon", "fault link: seconds = nan: more than 0"),
    ],
)
def test_bad_fault_is_one_line(kind, value, seconds, message):
    with pytest.raises(LabError, match=message):
        check(kind, value, seconds)


def test_fault_values_of_jobs_and_of_people():
    assert check("rate", "5mbit", 2) == (5e6, 2.0)
    assert check("rate", 5e6, None) == (5e6, None)
    assert check("reboot", 0.0, None) == (None, 10.0)


def test_state_is_kept_and_checked(tmp_path):
    home = Home("test", tmp_path)
    assert home.read() is None
    with pytest.raises(LabError, match="no lab is up"):
        home.need()
    spec = equal(2, 0.2, 10**7, 2**30, "shared", 128)
    state = State(
        spec, True, (7, 8), False, (Fault("a", "cpu", 1, 0.5, 1.0, 2.0),), Look(1, (2, 3))
    )
    with home.lock():
        home.write(state)
    assert home.need() == state
    assert home.change(run=None).run is None
    home.write(State(spec))
    with pytest.raises(LabError, match="half built; .* lab down"):
        home.need()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:-20],
        lambda text: text.replace('"version": 1', '"version": 2'),
        lambda text: text.replace("n1", "../n1"),
        lambda text: text.replace('"node": 1', '"node": 5'),
        lambda text: "[]",
    ],
    ids=["cut off", "version", "name", "node", "list"],
)
def test_damaged_state_is_said(tmp_path, spoil):
    home = Home("test", tmp_path)
    with home.lock():
        spec = equal(2, 0.2, 10**7, None, "switched", 512)
        home.write(State(spec, True, None, True, (Fault("a", "link", 1, None, 1.0),)))
    home.file.write_text(spoil(home.file.read_text()))
    with pytest.raises(LabError, match="state.json is damaged .*; `lab down` clears it away"):
        home.read()


@pytest.mark.parametrize("name", ["", "../x", "a-b", "A", "a" * 13])
def test_name_of_a_lab_is_checked(name):
    with pytest.raises(LabError, match="is not a name of a lab"):
        Home(name)
