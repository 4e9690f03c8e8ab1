"""The results file: what it holds, how it opens elsewhere, and that it survives a kill."""

from __future__ import annotations

import os
import random
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import xarray

from mpicoded.answer import Answer, Mode
from mpicoded.errors import ResultsError
from mpicoded.results import Layout, Results, load
from mpicoded.results.file import build
from mpicoded.trace import EVENT, Action, Trace

QUERIES, STAGES, UNITS = 40, 2, 4
LAYOUT = Layout(QUERIES, STAGES, UNITS, outputs=(10,), ranks=5, has_labels=True)
JOB = "seed = 7\n[model]\nname = 'lenet5'\n"
HOSTS = ["pi0", "pi1", "pi1", "pi2", "pi2"]
OF_OUTPUTS = {"finite", "base_finite", "apart"}
GROUPS = ("plan", "cluster", "queries", "predictions", "labels", "trace")


def answer(query: int, mode: Mode = Mode.AVAILABLE, images: int = 1) -> Answer:
    """Return an answer all of whose numbers follow from ``query``, so that a row can be checked."""
    output = torch.full((images, 10), float(query))
    output[:, query % 10] += 1
    arrived = np.ones((STAGES, UNITS), bool)
    arrived[:, 1] = mode != Mode.DEGRADED
    return Answer(
        query=query,
        output=None if mode == Mode.LOST else output,
        mode=mode,
        arrived=arrived,
        seconds=np.full((STAGES, UNITS), query, np.float32),
        submitted=query,
        answered=query + 0.5,
        encode=query + 0.01,
        gather=query + 0.02,
        decode=query + 0.03,
        head=query + 0.04,
        own=query + 0.05,
        attempts=1,
    )


def events(count: int, start: float = 0.0) -> np.ndarray[Any, Any]:
    trace = Trace()
    for i in range(count):
        trace.add(
            Action.SEND, start + i, start + i + 0.5, rank=1, query=i, stage=0, unit=0, nbytes=8
        )
    return trace.drain()


def create(path: Path, layout: Layout = LAYOUT, flush: float = 60.0, **how: Any) -> Results:
    images = layout.queries * layout.batch
    plan = [
        {
            "stage": s,
            "unit": u,
            "rank": u + 1,
            "output": (0, 4, u, u + 1),
            "input": (0, 4, u, u + 3),
        }
        | {"flops": 100, "bytes_in": 8, "bytes_out": 4}
        for s in range(layout.stages)
        for u in range(layout.units)
    ]
    given: dict[str, Any] = {
        "labels": np.arange(images) % 10,
        "held_out": np.arange(images) % 5 == 0,
    }
    given |= {"job_text": JOB, "seed": 7, "attrs": {"mpi_library": "Open MPI v5.0.11"}}
    given |= {"plan": plan, "plan_table": "rank x stage", "hosts": HOSTS, "flush": flush}
    return Results.create(path, layout, **given | how)


def resume(path: Path, layout: Layout = LAYOUT, text: str = JOB, hosts: Any = HOSTS) -> Results:
    return Results.resume(path, layout, job_text=text, hosts=hosts, flush=60.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.h5"


def test_rows_come_back_as_they_were_added(path: Path) -> None:
    with create(path) as results:
        for query in (3, 0, 7, 8, 1):
            results.add(answer(query))
        results.add(answer(5, Mode.DEGRADED))
        results.add(answer(6, Mode.LOST))
        results.add_events(events(3))
    loaded = load(path)
    done = np.flatnonzero(loaded.queries["mode"])
    assert done.tolist() == [0, 1, 3, 5, 6, 7, 8]
    assert loaded.queries["mode"][[0, 5, 6, 9]].tolist() == [1, 2, 3, 0]
    np.testing.assert_array_equal(loaded.queries["submitted"][done], done)
    np.testing.assert_allclose(loaded.queries["latency"][done], 0.5)
    np.testing.assert_allclose(loaded.queries["own"][done], done + 0.05)
    assert loaded.queries["arrived"][5].tolist() == [[1, 0, 1, 1]] * STAGES
    assert loaded.predictions["class"][[0, 3, 5, 6, 9], 0].tolist() == [0, 3, 5, -1, -1]
    assert loaded.predictions["output"].shape == (QUERIES, 1, 10)
    assert np.isnan(loaded.predictions["output"][[6, 9]]).all()
    np.testing.assert_array_equal(loaded.events, events(3))
    assert loaded.labels["label"][:12, 0].tolist() == [*range(10), 0, 1]
    assert not loaded.finished  # 33 queries are pending


def test_attributes_say_where_the_file_comes_from(path: Path) -> None:
    create(path).close(finished=False)
    attrs = load(path).attrs
    assert attrs["job"] == JOB
    assert attrs["seed"] == 7
    assert attrs["hosts"] == "pi0, pi1, pi2"
    assert attrs["mpi_library"] == "Open MPI v5.0.11"
    assert attrs["clock"] == "wall"
    assert attrs["torch_version"] == torch.__version__
    assert attrs["created"][:2] == "20"
    assert {"python_version", "numpy_version", "h5py_version", "mpi4py_version"} <= attrs.keys()


@pytest.mark.parametrize("group", GROUPS)
def test_xarray_reads_every_group_with_dimensions_and_units(path: Path, group: str) -> None:
    with create(path) as results:
        results.add(answer(2, Mode.DEGRADED))
        results.add_events(events(2))
        results.write_base(torch.eye(10).repeat(4, 1))
    with xarray.open_dataset(path, engine="h5netcdf", group=group) as dataset:
        for name, variable in dataset.variables.items():
            assert {"units", "long_name"} <= variable.attrs.keys(), name
            assert not any(str(dim).startswith("phony") for dim in variable.dims), name


def test_xarray_has_the_same_numbers(path: Path) -> None:
    with create(path) as results:
        results.add(answer(2, Mode.DEGRADED))
        results.add_events(events(2))
    with xarray.open_dataset(path, engine="h5netcdf", group="queries") as queries:
        assert queries["arrived"].dims == ("query", "stage", "unit")
        assert queries["mode"].attrs["flag_meanings"] == "pending available degraded lost refused"
        assert queries["mode"].attrs["flag_values"].tolist() == [0, 1, 2, 3, 4]
        assert queries["latency"].attrs["units"] == "s"
        assert float(queries["latency"].sel(query=2)) == 0.5
        assert queries.sizes == {"query": QUERIES, "stage": STAGES, "unit": UNITS}
    with xarray.open_dataset(path, engine="h5netcdf", group="trace") as trace:
        assert trace["start"].dims == ("event",)
        used = trace.isel(event=slice(int(trace["events"])))
        assert used["action"].values.tolist() == [Action.SEND] * 2
    with xarray.open_dataset(path, engine="h5netcdf", group="plan") as plan:
        assert plan["output"].sel(stage=0, unit=2, edge="w0") == 2
        assert str(plan["table"].values) == "rank x stage"
    with xarray.open_dataset(path, engine="h5netcdf") as root:
        assert root.attrs["job"] == JOB
        assert int(root["status"]) == 0


def test_several_images_a_query_and_fewer_in_the_last(path: Path) -> None:
    layout = Layout(2, STAGES, UNITS, (10,), ranks=5, batch=3, has_labels=True)
    with create(path, layout, labels=np.arange(5), held_out=None) as results:
        results.add(answer(0, images=3))
        results.add(answer(1, Mode.DEGRADED, images=2))
        results.write_base(torch.eye(10)[:5])
        assert results.base_pending.size == 0
    loaded = load(path)
    assert loaded.predictions["class"].tolist() == [[0, 0, 0], [1, 1, -1]]
    assert loaded.predictions["mode"].tolist() == [[1, 1, 1], [2, 2, 0]]
    assert loaded.predictions["base_class"].tolist() == [[0, 1, 2], [3, 4, -1]]
    assert loaded.labels["label"].tolist() == [[0, 1, 2], [3, 4, -1]]


def test_only_the_missing_image_is_degraded_where_units_are_images(path: Path) -> None:
    layout = Layout(2, STAGES, UNITS, (10,), ranks=5, batch=3, owner=(0, 1, 2))
    with create(path, layout, labels=None, held_out=None) as results:
        results.add(answer(0, Mode.DEGRADED, images=3))
    assert load(path).predictions["mode"].tolist() == [[1, 2, 1], [0, 0, 0]]


def test_outputs_that_are_no_scores_have_no_classes(path: Path) -> None:
    layout = Layout(2, STAGES, UNITS, outputs=(2, 5), ranks=5)
    with create(path, layout, labels=None, held_out=None) as results:
        filled = {**vars(answer(0)), "output": torch.ones(1, 2, 5)}
        results.add(Answer(**filled))
    loaded = load(path)
    assert loaded.predictions.keys() - OF_OUTPUTS == {"mode", "output", "base_output"}
    assert load(path, outputs=False).predictions.keys() - OF_OUTPUTS == {"mode"}
    with xarray.open_dataset(path, engine="h5netcdf", group="predictions") as dataset:
        assert dataset["output"].dims == ("query", "image", "axis_0", "axis_1")


def test_base_outputs_are_pending_until_written(path: Path) -> None:
    with create(path) as results:
        results.write_base(torch.eye(10), first=5)
        assert results.base_pending.tolist() == [*range(5), *range(15, QUERIES)]


def test_nothing_is_on_disk_before_the_interval_and_all_after_it(path: Path) -> None:
    results = create(path, flush=60.0)
    results.add(answer(0))
    assert not load(path).queries["mode"].any()
    results.interval = 0.0
    results.add(answer(1))
    assert load(path).queries["mode"][:3].tolist() == [1, 1, 0]
    assert results.pending.tolist() == list(range(2, QUERIES))
    results.close(finished=False)


def test_a_run_with_an_error_is_not_finished(path: Path) -> None:
    layout = Layout(1, STAGES, UNITS, (10,), ranks=5)
    with (
        pytest.raises(KeyError),
        create(path, layout, labels=None, held_out=None) as results,
    ):
        results.add(answer(0))
        raise KeyError
    loaded = load(path)
    assert loaded.queries["mode"].tolist() == [1]
    assert not loaded.finished


def test_the_trace_grows_beyond_its_first_size(path: Path) -> None:
    layout = Layout(QUERIES, STAGES, UNITS, (10,), ranks=5, has_labels=True, events=10)
    with create(path, layout) as results:
        results.add(answer(4))
        results.flush(now=True)
        for start in (0, 100, 200):
            results.add_events(events(25, start))
            results.flush(now=True)
        results.add(answer(5))
    loaded = load(path)
    np.testing.assert_array_equal(
        loaded.events, np.concatenate([events(25, s) for s in (0, 100, 200)])
    )
    assert np.flatnonzero(loaded.queries["mode"]).tolist() == [4, 5]
    assert loaded.plan["table"] == "rank x stage"
    assert [p.name for p in path.parent.iterdir()] == ["run.h5"]
    with xarray.open_dataset(path, engine="h5netcdf", group="trace") as trace:
        assert trace["action"].dims == ("event",)


class TestResume:
    def test_goes_on_with_exactly_the_rest(self, path: Path) -> None:
        with create(path) as results:
            results.add(answer(0))
            results.add(answer(2))
            results.add_events(events(4))
        fewer = replace(LAYOUT, ranks=3)  # its plan names ranks that are gone
        with resume(path, fewer, hosts=["pi0", "pi1", "pi2"]) as results:
            assert results.pending.tolist() == [1, *range(3, QUERIES)]
            assert results.offset == 3.5  # the end of the last event
            for query in results.pending:
                results.add(answer(int(query)))
            results.add_events(events(1))
            results.write_base(torch.eye(10).repeat(4, 1))
        loaded = load(path)
        assert loaded.finished
        assert (loaded.queries["mode"] == Mode.AVAILABLE).all()
        assert loaded.queries["submitted"][:3].tolist() == [0.0, 1 + 3.5, 2.0]
        assert loaded.queries["latency"][1] == 0.5
        assert loaded.events["start"].tolist() == [0, 1, 2, 3, 3.5]
        assert loaded.cluster["began"].tolist() == [0.0, 3.5]
        assert loaded.cluster["host"].tolist() == [HOSTS, ["pi0", "pi1", "pi2", "", ""]]

    def test_of_a_finished_run_has_nothing_to_do(self, path: Path) -> None:
        layout = Layout(1, STAGES, UNITS, (10,), ranks=5, base=False)
        with create(path, layout, labels=None, held_out=None) as results:
            results.add(answer(0))
        with resume(path, layout) as results:
            assert results.pending.size == 0
        assert load(path).finished
        assert load(path).cluster["began"].tolist() == [0.0]

    def test_tells_another_job_by_its_lines(self, path: Path) -> None:
        create(path).close(finished=False)
        with pytest.raises(ResultsError, match=r"line 1: 'seed = 7' there, 'seed = 8' here"):
            resume(path, text=JOB.replace("7", "8"))
        resume(path).close(finished=False)  # nothing was damaged and nothing stays open

    def test_tells_that_the_data_changed(self, path: Path) -> None:
        create(path).close(finished=False)
        layout = Layout(41, STAGES, UNITS, (10,), ranks=5, has_labels=True)
        with pytest.raises(ResultsError, match="queries = 40 there, 41 here"):
            resume(path, layout)


def spoil_missing(path: Path) -> None:
    pass


def spoil_foreign(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = 1


def spoil_text(path: Path) -> None:
    path.write_text("no HDF5 at all, but some text")


def spoil_empty(path: Path) -> None:
    path.touch()


def spoil_truncated(path: Path) -> None:
    create(path).close(finished=False)
    os.truncate(path, path.stat().st_size // 2)


def spoil_newer(path: Path) -> None:
    build(path, LAYOUT, {"format": "mpicoded results 3"}, {})


def spoil_older(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["format"] = "mpicoded results 1"


def spoil_changed(path: Path) -> None:
    create(path).close(finished=False)
    with h5py.File(path, "r+") as file:
        file["labels/label"][7, 0] = 3


def spoil_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("reader", [load, resume])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_missing, "there is no such results file"),
        (spoil_foreign, "no results file of mpicoded"),
        (spoil_text, "is not an HDF5 file"),
        (spoil_empty, "is empty, not an HDF5 file"),
        (spoil_truncated, r"is cut short: \d+ bytes are there, \d+ were"),
        (spoil_newer, "has the format 'mpicoded results 3'; expected 'mpicoded results 2'"),
        (spoil_older, "was written before results files had checksums"),
        (spoil_changed, "is damaged: its plan, labels or structure"),
        (spoil_folder, "Is a directory"),
    ],
)
def test_what_is_no_results_file_is_named(
    path: Path, reader: Any, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(ResultsError, match=message) as error:
        reader(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not path.is_file() or path.read_bytes() == before


class TestCreate:
    def test_makes_the_folder(self, tmp_path: Path) -> None:
        create(tmp_path / "a" / "b" / "run.h5").close(finished=False)
        assert load(tmp_path / "a" / "b" / "run.h5").layout == LAYOUT

    def test_does_not_replace_a_file_unasked(self, path: Path) -> None:
        path.write_text("precious")
        with pytest.raises(ResultsError, match="exists; give --resume .* or --overwrite"):
            create(path)
        assert path.read_text() == "precious"
        create(path, overwrite=True).close(finished=False)
        assert load(path).layout == LAYOUT

    def test_on_a_full_disk_leaves_the_old_file(self, path: Path) -> None:
        path.write_text("precious")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        try:
            with pytest.raises(ResultsError, match=r"run\.h5: cannot be written .*File too large"):
                create(path, overwrite=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, old)
        assert path.read_text() == "precious"
        assert [p.name for p in path.parent.iterdir()] == ["run.h5"]

    def test_in_a_file_instead_of_a_folder(self, path: Path) -> None:
        path.touch()
        with pytest.raises(ResultsError, match=r"File exists \(.*run\.h5\)"):
            create(path / "run.h5")

    def test_without_permission(self, ordinary_user: Path) -> None:
        with pytest.raises(ResultsError, match=r"run\.h5: no permission; name another file"):
            create(ordinary_user / "run.h5")
        with pytest.raises(ResultsError, match="no permission"):
            create(ordinary_user / "new" / "run.h5")


@pytest.fixture
def ordinary_user() -> Iterator[Path]:
    """A folder that may be read but not written, also where the tests run as root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        yield folder
        os.seteuid(user)
        folder.chmod(0o755)


def fork(job: Callable[[], None]) -> int:
    """Run ``job`` in a child process that is expected to be killed; return its id."""
    child = os.fork()
    if not child:
        try:
            job()
        finally:
            os._exit(1)
    return child


def wait_until(condition: Callable[[], bool]) -> None:
    limit = time.perf_counter() + 20
    while not condition() and time.perf_counter() < limit:
        time.sleep(0.001)
    assert condition()


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def write_without_end(path: Path) -> None:
    """Create the file anew, answer all queries in a random order, flush after each; again."""
    layout = Layout(QUERIES, STAGES, UNITS, (10,), ranks=5, has_labels=True, events=30)
    order = random.Random(os.getpid())
    while True:
        with create(path, layout, flush=0.0, overwrite=True) as results:
            for query in order.sample(range(QUERIES), QUERIES):
                results.add_events(events(1, query))
                results.add(answer(query))


def test_a_killed_writer_leaves_a_file_with_every_flushed_row(path: Path) -> None:
    moments, rows = random.Random(0), []
    for _ in range(20):
        path.unlink(missing_ok=True)
        child = fork(lambda: write_without_end(path))
        wait_until(path.exists)
        time.sleep(moments.uniform(0, 0.15))
        kill(child)
        rows.append(check_rows(path))
    with resume(path) as results:
        assert len(results.pending) == QUERIES - rows[-1]
    assert len(set(rows)) > 3, "the moments should differ"


def test_a_reader_of_a_live_file_never_takes_it_for_damaged(path: Path) -> None:
    child = fork(lambda: write_without_end(path))
    try:
        wait_until(path.exists)
        for _ in range(100):
            load(path)
    finally:
        kill(child)


def check_rows(path: Path) -> int:
    """Assert that every row that counts is complete; return how many there are."""
    loaded = load(path)
    done = np.flatnonzero(loaded.queries["mode"])
    for name, more in {"submitted": 0, "answered": 0.5, "encode": 0.01, "own": 0.05}.items():
        np.testing.assert_allclose(loaded.queries[name][done], done + more)
    assert (loaded.queries["seconds"][done] == done[:, None, None]).all()
    assert loaded.queries["arrived"][done].all()
    assert (loaded.predictions["class"][done, 0] == done % 10).all()
    assert not np.isnan(loaded.predictions["output"][done]).any()
    assert (loaded.events["action"] == Action.SEND).all()
    assert set(done) <= set(loaded.events["start"])  # each was added before its query
    with (
        h5py.File(path) as file,
        xarray.open_dataset(path, engine="h5netcdf", group="queries") as q,
    ):
        there = (file["queries/mode"][:] > 0).sum()
        assert there == (q["mode"] > 0).sum()
        assert len(done) - 1 <= there <= len(done)  # the kill may lie between checksum and mode
    return len(done)


def hold(path: Path) -> None:
    with create(path, flush=0.0) as results:
        results.add(answer(3))
        time.sleep(60)


def test_a_live_file_can_be_read_but_not_written_by_another(path: Path) -> None:
    child = fork(lambda: hold(path))
    try:
        wait_until(lambda: path.exists() and bool(load(path).queries["mode"].any()))
        with xarray.open_dataset(path, engine="h5netcdf", group="queries") as queries:
            assert int(queries["mode"].sel(query=3)) == Mode.AVAILABLE
        with pytest.raises(ResultsError, match="another process is writing it"):
            resume(path)
        with pytest.raises(ResultsError, match="another process is writing it"):
            create(path, overwrite=True)
        assert load(path).queries["mode"][3] == Mode.AVAILABLE
    finally:
        kill(child)
    resume(path).close(finished=False)


def test_of_many_starts_at_once_one_makes_the_file(path: Path) -> None:
    """Each holds what it made for a while, as a run does; the others are refused at once."""

    def start(gate: int) -> None:
        os.read(gate, 1)
        try:
            with create(path, overwrite=True) as results:
                time.sleep(0.5)
                results.add(answer(1))
        except ResultsError as error:
            os._exit(2 if "another process is writing it" in str(error) else 3)
        os._exit(0)

    for _ in range(3):
        gate, opener = os.pipe()
        children = [fork(lambda gate=gate: start(gate)) for _ in range(4)]  # type: ignore[misc]
        os.write(opener, b"xxxx")
        ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert sorted(ends) == [0, 2, 2, 2]
        assert np.flatnonzero(load(path).queries["mode"]).tolist() == [1]
        assert [p.name for p in path.parent.iterdir()] == ["run.h5"]


@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_a_file_that_lost_its_name_is_no_success(path: Path, how: str) -> None:
    results = create(path)
    results.add(answer(1))
    if how == "removed":
        path.unlink()
    else:
        other = path.with_name("other.h5")
        create(other).close(finished=False)
        other.replace(path)
    with pytest.raises(ResultsError, match="another program has replaced or removed it"):
        results.close(finished=True)
    assert how == "removed" or not load(path).queries["mode"].any()


def test_a_damaged_answer_is_told_and_answered_again(path: Path) -> None:
    with create(path) as results:
        for query in range(5):
            results.add(answer(query))
        results.add_events(events(9))
        results.write_base(torch.eye(10).repeat(4, 1))
    with h5py.File(path, "r+") as file:
        file["queries/own"][3] += 1e-9
        file["predictions/base_output"][7, 0, 0] = 0.5
        file["trace/start"][4] = 3.5
        file["queries/mode"][1] = 0  # is told by its checksum
    with pytest.raises(ResultsError) as error:
        load(path)
    told = "answers of queries 3, unsplit outputs of queries 7, events 4"
    assert told in str(error.value)
    with resume(path) as results:
        assert results.damage == told
        assert results.pending.tolist() == [3, *range(5, QUERIES)]
        assert results.base_pending.tolist() == [7]
        results.add(answer(3))
    loaded = load(path)
    assert np.flatnonzero(loaded.queries["mode"]).tolist() == [0, 1, 2, 3, 4]
    assert loaded.events["start"].tolist() == [0, 1, 2, 3, 5, 6, 7, 8]


def test_the_layout_of_events_has_every_field_of_the_trace(path: Path) -> None:
    create(path).close(finished=False)
    with h5py.File(path) as file:
        assert set(EVENT.names or ()) <= file["trace"].keys()
        for name in EVENT.names or ():
            assert file["trace"][name].dtype == EVENT[name]
