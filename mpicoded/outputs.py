"""Files that are written whole, and the lock of a file that is written for long.

There is the old one or the new one, never a part; nothing that others prepared under a temporary
name is opened, and a name that is a symbolic link is refused.
"""

import errno
import fcntl
import glob
import os
import secrets
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from mpicoded.errors import OutputError

NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
LEFT = 3600.0  # s after which a part that nobody writes any more is left over from a killed process
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)  # of a file system
WHOLE_FILE = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


@contextmanager
def whole(path: Path, overwrite: bool = True) -> Iterator[Path]:
    """Write the file that is given beside ``path``; at the end of the block it is named ``path``.

    OutputError if the name is a link or no regular file. OSError if it cannot be written;
    FileExistsError if it exists and ``overwrite`` is False.
    """
    check_output(path)
    _sweep(path)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        descriptor = os.open(part, NEW, 0o666)
        with suppress(FileNotFoundError):  # who may read the old one may read the new one
            os.fchmod(descriptor, stat.S_IMODE(path.stat().st_mode))
        os.close(descriptor)
        yield part
        _sync(part)
        if overwrite:
            part.replace(path)
        else:
            _claim(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in one go; errors are those of ``whole``."""
    with whole(path) as part:
        part.write_bytes(content)


def check_output(path: Path) -> None:
    """Raise OutputError if ``path`` is something else than a file, or nothing."""
    if path.is_symlink():
        raise OutputError(
            f"{path}: is a symbolic link to {os.readlink(path)}; name that file itself, or "
            "remove the link"
        )
    if path.exists() and not path.is_dir() and not path.is_file():
        raise OutputError(f"{path}: is no regular file; name another")


def check_place(path: Path) -> None:
    """Raise OutputError unless ``path`` is, or can become, a file in a folder that exists."""
    check_output(path)
    if not path.parent.is_dir() or path.is_dir():
        raise OutputError(f"{path} cannot be written: name a file in a folder that exists")


class Lock(AbstractContextManager["Lock"]):
    """Keeps other processes out of ``path``, from before it is there until ``release``.

    A lock of the kernel on a file beside it, in a folder that is made if need be, which lasts when
    ``path`` is replaced and ends with the process however that ends. On a file system without locks
    it keeps nobody out. Errors are those of ``whole``; OutputError if another process has it.
    """

    def __init__(self, path: Path) -> None:
        check_output(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._name = path.with_name(path.name + ".lock")
        self._descriptor = self._acquire(path)

    def _acquire(self, path: Path) -> int:
        while True:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                descriptor = os.open(self._name, flags, 0o666)
            except OSError as error:
                if error.errno == errno.ELOOP:
                    raise OutputError(f"{self._name}: is a symbolic link; remove it") from None
                raise
            try:
                # of the open file: a lock of the process would go when any descriptor is closed
                fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, WHOLE_FILE)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):  # others: there are no locks
                    os.close(descriptor)
                    raise OutputError(
                        f"{path}: another process is writing it; wait for its end"
                    ) from None
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.lstat(self._name)):
                    return descriptor
            os.close(descriptor)  # its holder has just removed it

    def release(self) -> None:
        """Let others write; no harm if that was done."""
        if self._descriptor >= 0:
            self._name.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1

    def __exit__(self, *_: object) -> None:
        """Release it."""
        self.release()


def _claim(part: Path, path: Path) -> None:
    """Give the file its name if nothing has it; FileExistsError if something has."""
    try:
        os.link(part, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        part.replace(path)


def _sync(part: Path) -> None:
    descriptor = os.open(part, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(path: Path) -> None:
    """Remove parts that killed processes have left."""
    with suppress(OSError):  # it may be another user's
        for part in path.parent.glob(f"{glob.escape(path.name)}.????????.part"):
            if not part.is_symlink() and time.time() - part.stat().st_mtime > LEFT:
                part.unlink(missing_ok=True)
