"""Codes: which redundancy. One file a code, one line here."""

from __future__ import annotations

from collections.abc import Callable

from mpicoded.codes import (
    berrut,
    kosaian,
    learned,
    mds,
    nercc,
    parity,
    replication,
    uncoded,
    zerofill,
)
from mpicoded.codes.code import Arrived, Code
from mpicoded.codes.request import CodeRequest
from mpicoded.codes.trainable import Trainable

CODES: dict[str, Callable[[CodeRequest], Code]] = {
    "uncoded": uncoded.build,
    "zerofill": zerofill.build,
    "replication": replication.build,
    "mds": mds.build,
    "learned": learned.build,
    "kosaian": kosaian.build,
    "parity": parity.build,
    "berrut": berrut.build,
    "nercc": nercc.build,
}

__all__ = ["CODES", "Arrived", "Code", "CodeRequest", "Trainable"]
