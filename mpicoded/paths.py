"""Files that a user names: only regular ones are read, and no more of them than makes sense.

Anything else is an OSError, whose ``strerror`` says why in words.
"""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

LONGEST_NAME = 255  # bytes, as in every file system of Linux
LONGEST_PATH = 4095
KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISDIR, "a folder"),
)


def check_name(name: str) -> str:
    """Return ``name``; ValueError if it can be no path."""
    raw = os.fsencode(name)
    if b"\0" in raw:
        raise ValueError("holds a NUL character; a path has none")
    if len(raw) > LONGEST_PATH or max(map(len, raw.split(b"/"))) > LONGEST_NAME:
        raise ValueError(
            f"has {len(raw)} bytes; a path has at most {LONGEST_PATH}, and {LONGEST_NAME} between "
            "two slashes"
        )
    if name.startswith("~") and os.path.expanduser(name) == name:
        raise ValueError(f"there is no user {name[1:].split('/')[0]!r} here with a home folder")
    return name


def locate(folder: Path, name: str) -> Path:
    """Return the path ``name``, relative to ``folder``, without links; it need not be there."""
    try:
        path = (folder / os.path.expanduser(check_name(name))).resolve()
        if path.is_symlink():  # resolve() gave up
            raise RuntimeError
        return path
    except RuntimeError:
        raise OSError(errno.ELOOP, "its links lead in a circle", name) from None
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error), name) from None


def check_regular(path: Path, found: os.stat_result | None = None) -> int:
    """Return the size in bytes of a regular file; OSError for any other."""
    found = found or os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for test, name in KINDS if test(found.st_mode)), "no file")
        number = errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.EINVAL
        raise OSError(number, f"it is {kind}, not a file", str(path))
    return found.st_size


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read bytes; never waits, as opening a FIFO does."""
    check_regular(path)  # first: opening a device may do something
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        check_regular(path, os.fstat(handle))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_text(path: Path, most: int) -> str:
    """Return the text of a file of at most ``most`` bytes of UTF-8, with or without a mark."""
    with open_regular(path) as file:
        raw = file.read(most + 1)
    if len(raw) > most:
        raise OSError(errno.EFBIG, f"it has more than the {most:,} bytes that are read", str(path))
    return raw.decode("utf-8-sig").replace("\r\n", "\n")
