"""Rates and sizes as people write them: 50mbit, 1gb."""

import re

from mpicoded.errors import LabError

RATES = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
SIZES = {"kb": 2**10, "mb": 2**20, "gb": 2**30}


def rate(text: str | int) -> int:
    """Return bit/s: ``50mbit`` is 50,000,000."""
    return _number(text, RATES, "a rate, such as 50mbit")


def size(text: str | int) -> int:
    """Return bytes: ``1gb`` is 2**30."""
    return _number(text, SIZES, "a size, such as 512mb or 1gb")


def _number(text: str | int, units: dict[str, int], wanted: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z]+)", str(text).strip().lower())
    if isinstance(text, int) and not isinstance(text, bool) and text > 0:
        return text
    if not found or found[2] not in units or not (value := float(found[1]) * units[found[2]]):
        raise LabError(f"{text!r} is not {wanted} (units: {', '.join(units)})")
    return round(value)


def show_rate(bits: float | None) -> str:
    """50,000,000 -> '50 Mbit/s'; None -> 'free'."""
    if bits is None:
        return "free"
    for name, unit in (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)):
        if bits >= unit:
            return f"{bits / unit:.3g} {name}"
    return f"{bits:.3g} bit/s"


def show_size(count: float | None) -> str:
    """2**30 -> '1 GB'; None -> 'free'."""
    if count is None:
        return "free"
    for name, unit in (("GB", 2**30), ("MB", 2**20), ("kB", 2**10)):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} B"
