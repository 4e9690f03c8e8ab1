"""The seal of an HDF5 file: a checksum of all its bytes but those that a run overwrites.

HDF5 trusts what it reads: a byte changed on disk may give other shapes and numbers, or crash it. So
the bytes are checked before it opens a file. The seal lies at the begin, a variable of its own:

    magic | CRC-32 of the sealed bytes | spans | size of the file | (offset, size) ... | CRC-32

A span is what is not sealed: a variable whose rows have checksums of their own
(:mod:`mpicoded.results.checks`), and the seal itself.
"""

import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from mpicoded.paths import open_regular

MAGIC = b"mpicoded\xe5\x1aseal\r\n"  # 16 bytes
HEAD, SPAN, CRC = struct.Struct("<16sIIQ"), struct.Struct("<QQ"), struct.Struct("<I")
SPANS = 64  # at most
SIZE = HEAD.size + SPANS * SPAN.size + CRC.size
BEGIN = 1 << 16  # bytes at the begin of a file among which the seal is
BLOCK = 1 << 20  # bytes that are read at once
MOST = 1 << 30  # bytes that a seal covers at most
SIGNATURE = b"\x89HDF\r\n\x1a\n"
# Bytes of the superblock (version 2) that HDF5 changes while a file is open: a flag, its checksum.
SUPERBLOCK = ((11, 1), (44, 4))

Span = tuple[int, int]  # offset and size


def seal(file: int, at: int, spans: Iterable[Span]) -> None:
    """Write the seal of an open file at offset ``at``; ``spans`` are not sealed."""
    free = sorted([*SUPERBLOCK, *spans, (at, SIZE)])
    size = os.fstat(file).st_size
    head = HEAD.pack(MAGIC, _checksum(file, size, free), len(free), size)
    table = (head + b"".join(SPAN.pack(*span) for span in free)).ljust(SIZE - CRC.size, b"\0")
    os.pwrite(file, table + CRC.pack(zlib.crc32(table)), at)


def broken(path: Path) -> str:
    """Return why HDF5 must not open the file, "" if its seal is whole; OSError if unreadable."""
    with open_regular(path) as opened:
        return _broken(opened.fileno())


def _broken(file: int) -> str:
    size = os.fstat(file).st_size
    if not size:
        return "is empty, not an HDF5 file"
    if os.pread(file, len(SIGNATURE), 0) != SIGNATURE:
        return "is not an HDF5 file, or damaged at its begin"
    begin = os.pread(file, BEGIN, 0)
    at = begin.find(MAGIC)
    if at < 0:
        return _unsealed(file)
    table = begin[at : at + SIZE]
    if len(table) < SIZE or zlib.crc32(table[: -CRC.size]) != CRC.unpack(table[-CRC.size :])[0]:
        return "is damaged: its seal is"
    _, checksum, count, wanted = HEAD.unpack_from(table)
    if size != wanted:
        how = "cut short" if size < wanted else "longer than it was"
        return f"is {how}: {size} bytes are there, {wanted} were written"
    free = [SPAN.unpack_from(table, HEAD.size + i * SPAN.size) for i in range(min(count, SPANS))]
    if sum(length for _, length in _gaps(size, free)) > MOST:
        return "is no results file: it is too large for what it holds"
    if _checksum(file, size, free) != checksum:
        return "is damaged: its plan, labels or structure are not those that were written"
    return ""


def _unsealed(file: int) -> str:
    """Return why a file without a seal is refused."""
    begin = os.pread(file, BLOCK, 0)
    if b"mpicoded " in begin:
        return (
            "has no seal: it was written before results files had checksums, and the version of "
            "mpicoded that wrote it reports it, or it is damaged at its begin"
        )
    return "is HDF5, but no results file of mpicoded"


def _checksum(file: int, size: int, free: Iterable[Span]) -> int:
    """Return the CRC-32 of all bytes outside ``free``."""
    checksum = 0
    for offset, length in _gaps(size, free):
        for start in range(offset, offset + length, BLOCK):
            block = os.pread(file, min(BLOCK, offset + length - start), start)
            checksum = zlib.crc32(block, checksum)
    return checksum


def _gaps(size: int, free: Iterable[Span]) -> Iterator[Span]:
    at = 0
    for offset, length in free:
        if offset > at:
            yield at, min(offset, size) - at
        at = max(at, offset + length)
    if size > at:
        yield at, size - at
