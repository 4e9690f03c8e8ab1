"""Schedules of an open loop: drawn from the seed, or read from a file that is checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mpicoded.arrivals import schedule
from mpicoded.errors import JobError
from mpicoded.job import Job

JOB = '[model]\nname = "lenet5"\n[input]\ndata = "digits"\n'


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    """A job in ``tmp_path`` with these overrides."""
    (tmp_path / "job.toml").write_text(JOB)
    return lambda *sets: Job.read(tmp_path / "job.toml", sets)


def test_poisson_has_exponential_gaps_of_that_rate(job: Callable[..., Job]) -> None:
    seconds = job("input.arrivals=poisson", "input.rate=50.0").schedule(20_000)
    assert seconds is not None
    gaps = np.diff(seconds, prepend=0.0)
    assert (gaps > 0).all()
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03), "of an exponential it is the mean"
    assert (gaps > 1 / 50).mean() == pytest.approx(np.exp(-1), abs=0.02)


def test_the_seed_makes_the_schedule_and_a_longer_run_begins_alike(job: Callable[..., Job]) -> None:
    drawn = ("input.arrivals=poisson", "input.rate=3.0")
    first, again, longer = (job(*drawn).schedule(count) for count in (50, 50, 80))
    other = job(*drawn, "seed=1").schedule(50)
    assert first is not None and longer is not None and other is not None
    assert (first == again).all() and (longer[:50] == first).all()
    assert (first != other).all()


def test_constant_and_closed(job: Callable[..., Job]) -> None:
    seconds = job("input.arrivals=constant", "input.rate=4.0").schedule(5)
    assert seconds is not None and seconds.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert job().schedule(5) is None


def test_a_file_is_taken_as_it_is_as_text_and_as_an_array(
    job: Callable[..., Job], tmp_path: Path
) -> None:
    seconds = [0.0, 0.5, 0.5, 2.25, 1e3]
    (tmp_path / "a.txt").write_text("\n".join(map(str, seconds)) + "\n")
    np.save(tmp_path / "a.npy", np.array(seconds))
    for name in ("a.txt", "a.npy"):
        for count in (5, 3):
            found = job(f"input.arrivals={name}").schedule(count)
            assert found is not None and found.tolist() == seconds[:count]


WRONG = {
    "too few": ("1\n2\n", "has 2 seconds, and 3 queries are asked: add some"),
    "empty": ("", "line 1 is '': should be a second"),
    "blank line": ("1\n\n2\n", "line 2 is '': should be a second"),
    "a word": ("1\nsoon\n2\n", "line 2 is 'soon': should be a second"),
    "falling": ("1\n3\n2\n", "line 3 is 2, before 3 above it: sort the lines"),
    "negative": ("-1\n2\n3\n", "line 1 is -1: give finite seconds from 0 on"),
    "nan": ("1\nnan\n3\n", "line 2 is nan: give finite"),
    "for ever": ("1\n2\ninf\n", "line 3 is inf: give finite"),
    "two a line": ("1 2\n3\n4\n", "line 1 is '1 2': should be a second"),
    "long": ("9" * 10_000 + "x\n2\n3\n", "line 1 is '99999"),
    "bytes": (b"\xff\xfe1\n", "is not text in UTF-8"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_refused_in_one_line(
    job: Callable[..., Job], tmp_path: Path, case: str
) -> None:
    text, says = WRONG[case]
    path = tmp_path / "arrivals.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(JobError) as error:
        job("input.arrivals=arrivals.txt").schedule(3)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and says in message
    assert "\n" not in message and len(message) < 300


def test_wrong_arrays_and_what_is_no_file(job: Callable[..., Job], tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    np.save(tmp_path / "flat.npy", np.ones((3, 2)))
    np.save(tmp_path / "words.npy", np.array(["1", "2", "3"]))
    whole = tmp_path / "whole.npy"
    np.save(whole, np.arange(100.0))
    (tmp_path / "cut.npy").write_bytes(whole.read_bytes()[:-8])
    (tmp_path / "text.npy").write_text("1\n2\n3\n")
    says = {
        "objects.npy": "is not a whole .npy array of numbers",
        "flat.npy": r"has shape \(3, 2\) of float64: give one number a query",
        "words.npy": r"has shape \(3,\) of <U1",
        "cut.npy": "is not a whole .npy array",
        "text.npy": "is not a whole .npy array",
        "poison": r"\[input\] arrivals = 'poison': there is no such file \(did you mean 'poisson'",
        ".": "cannot be read: it is a folder, not a file",
    }
    for name, why in says.items():
        with pytest.raises(JobError, match=why):
            job(f'input.arrivals="{name}"').schedule(3)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(JobError, match="has more than the 268,435,456 bytes"):
        schedule("large.txt", None, 3, 0, path)


def test_keys_go_together_or_are_refused(job: Callable[..., Job]) -> None:
    wrong = {
        ("input.arrivals=poisson",): r'\[input\] rate: is missing; arrivals = "poisson" needs it',
        ("input.rate=3.0",): r'rate: = 3 is of arrivals = "poisson" or "constant", and arrivals',
        ("input.arrivals=a.txt", "input.rate=3.0"): r'arrivals = "a.txt": leave one of them out',
        ("input.arrivals=poisson", "input.rate=0.0"): r"rate = 0.0: should be greater than",
        ("runtime.queue=3",): r'\[runtime\] queue: = 3 is of an open loop, and arrivals = "closed"',
        ("runtime.queue=0",): "queue = 0: should be greater than 0",
    }
    for sets, why in wrong.items():
        with pytest.raises(JobError, match=why):
            job(*sets)
    fits = job("input.arrivals=poisson", "input.rate=2.0", "runtime.queue=3")
    assert (fits.settings.queue, fits.input.rate) == (3, 2.0)
