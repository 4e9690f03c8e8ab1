"""Formats in which numbers travel between ranks; one line each. Light: torch is only named."""

from typing import NamedTuple


class Format(NamedTuple):
    """``dtype`` is torch's name of a computed map's type, ``nbytes`` are a number's in it."""

    dtype: str
    nbytes: int
    image: int  # bytes of a number of an 8-bit image
    maps: bool = True  # may be named for maps alone, as [runtime] parity and answers are


FORMATS = {
    "float32": Format("float32", 4, 4),
    "float16": Format("float16", 2, 2),
    "uint8": Format("float16", 2, 1, maps=False),
    "uint8-float32": Format("float32", 4, 1, maps=False),
    "int8": Format("quint8", 1, 1),
}
