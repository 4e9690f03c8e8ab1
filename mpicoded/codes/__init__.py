"""Codes: which redundancy. One file a code, one line here."""

from collections.abc import Callable

from mpicoded.codes import kosaian, learned, mds, parity
from mpicoded.codes.berrut import Berrut
from mpicoded.codes.code import Arrived, Code, CodeRequest
from mpicoded.codes.nercc import Nercc
from mpicoded.codes.replication import Replication
from mpicoded.codes.trainable import Trainable
from mpicoded.codes.uncoded import Uncoded
from mpicoded.codes.zerofill import ZeroFill

CODES: dict[str, Callable[[CodeRequest], Code]] = {
    "uncoded": Uncoded.build,
    "zerofill": ZeroFill.build,
    "replication": Replication.build,
    "mds": mds.build,
    "learned": learned.build,
    "kosaian": kosaian.build,
    "parity": parity.build,
    "berrut": Berrut.build,
    "nercc": Nercc.build,
}

__all__ = ["CODES", "Arrived", "Code", "CodeRequest", "Trainable"]
