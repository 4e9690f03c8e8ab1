"""Files are written whole under names of one's own, and by one process at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from pathlib import Path

import pytest

from mpicoded.errors import OutputError
from mpicoded.outputs import Lock, whole, write_whole


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out [1].bin"


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_there_is_the_old_file_or_the_new_one(path: Path) -> None:
    write_whole(path, b"old")
    with pytest.raises(KeyError), whole(path) as part:
        part.write_bytes(b"half of the n")
        raise KeyError
    assert path.read_bytes() == b"old"
    with whole(path) as part:
        part.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert names(path.parent) == [path.name]


def test_names_that_others_prepared_are_not_opened(path: Path) -> None:
    precious = path.with_name("precious")
    precious.write_bytes(b"precious")
    path.with_name(path.name + ".part").symlink_to(precious)
    write_whole(path, b"new")
    assert precious.read_bytes() == b"precious"
    assert not path.is_symlink()


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_refused(path: Path, there: bool) -> None:
    precious = path.with_name("precious")
    if there:
        precious.write_bytes(b"precious")
    path.symlink_to(precious)
    with pytest.raises(OutputError, match=r"is a symbolic link to .*precious; name that file"):
        write_whole(path, b"new")
    assert precious.exists() == there
    assert path.is_symlink()


def test_what_is_no_file_is_refused(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(OutputError, match="is no regular file"):
        write_whole(path, b"new")
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_permissions_are_those_of_the_system_or_of_the_file_before(path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_whole(path, b"new")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o600)
        write_whole(path, b"newer")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(old)


@pytest.mark.parametrize("links", [True, False])
def test_of_two_that_make_a_file_one_does(
    path: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    if not links:
        monkeypatch.setattr("os.link", none)
    with pytest.raises(FileExistsError), whole(path, overwrite=False) as part:
        part.write_bytes(b"second")
        with whole(path, overwrite=False) as other:
            other.write_bytes(b"first")
    assert path.read_bytes() == b"first"
    assert names(path.parent) == [path.name]


def test_parts_of_killed_processes_go_and_those_of_others_stay(path: Path) -> None:
    left, new, other = (path.with_name(path.name + end) for end in (".01234567.part",
                        ".89abcdef.part", ".part"))  # fmt: skip
    for part in (left, new, other):
        part.touch()
    os.utime(left, (0, 0))
    write_whole(path, b"new")
    assert names(path.parent) == sorted([path.name, new.name, other.name])


def test_a_lock_keeps_others_out_and_ends_with_its_process(path: Path) -> None:
    end, told = os.pipe()
    child = os.fork()
    if not child:
        lock = Lock(path)
        os.write(told, b"x")
        signal.pause()
        lock.release()
    os.read(end, 1)
    with pytest.raises(OutputError, match="another process is writing it; wait for its end"):
        Lock(path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert names(path.parent) == [path.name + ".lock"], "left over, and no harm"
    with Lock(path), pytest.raises(OutputError, match="another process"):
        Lock(path)
    assert names(path.parent) == []


def test_the_name_of_a_lock_that_is_a_link_is_refused(path: Path) -> None:
    path.with_name(path.name + ".lock").symlink_to("precious")
    with pytest.raises(OutputError, match="is a symbolic link; remove it"):
        Lock(path)
    assert not path.with_name("precious").exists()


def test_without_locks_of_the_file_system_work_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "fcntl", none)
    with Lock(path):
        write_whole(path, b"new")
    assert names(path.parent) == [path.name]
