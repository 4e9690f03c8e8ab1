"""Check that there is memory for the declared content of a file, before it is read."""

import re
from pathlib import Path

MUCH = 1 << 30  # bytes that a file may hold, however small it is
TIGHTEST = 256  # times that they shrink in a file, at the most


def lack(things: str, nbytes: int, stored: int) -> str:
    """Return why ``nbytes`` from a file of ``stored`` bytes must not be read, "" if they may."""
    if nbytes > max(MUCH, TIGHTEST * stored):
        return (
            f"{_size(stored)} hold {things} of {_size(nbytes)}, and real ones do not shrink "
            f"{TIGHTEST} times"
        )
    if nbytes > (free := _free()):
        return f"its {things} take {_size(nbytes)}, and {_size(free)} of memory are free"
    return ""


def _free() -> int:
    """Return the bytes of memory that are free on this machine."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return 1 << 62
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return int(found[1]) << 10 if found else 1 << 62


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:,.1f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:,.3g} MB"
