"""Codes: which redundancy. One file a code, one line here."""

from __future__ import annotations

from collections.abc import Callable

from mpicoded.codes import learned, replication, uncoded
from mpicoded.codes.code import Arrived, Code
from mpicoded.codes.request import CodeRequest

CODES: dict[str, Callable[[CodeRequest], Code]] = {
    "uncoded": uncoded.build,
    "replication": replication.build,
    "learned": learned.build,
}

__all__ = ["CODES", "Arrived", "Code", "CodeRequest"]
