"""Settings of the runtime: how it waits, sends and shares. Every wait has a limit, in seconds.

They are the sections [gather] and [runtime] of a job file, and the keyword arguments of a Group.
"""

from collections.abc import Iterator
from math import inf
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from mpicoded.errors import JobError
from mpicoded.formats import FORMATS
from mpicoded.jobfile import explain
from mpicoded.processes import START_LIMIT
from mpicoded.scheduling.deadline import Deadline
from mpicoded.section import Count, Factor, Finite, OneOf, Section, key

Wire = Annotated[str, OneOf(FORMATS)]
Maps = Annotated[str, OneOf(name for name, each in FORMATS.items() if each.maps)]


class GatherSpec(Section):
    """[gather]: how long the leader waits for the units of a stage."""

    deadline: Literal["adaptive"] | Annotated[float, Field(ge=0)] = key(
        "Seconds from which decoding may start: 0 takes the first decodable set of units, inf waits"
        ' for every data unit; "adaptive" learns when answers usually come.',
        "adaptive",
    )
    patience: Factor = key("Limit of an adaptive deadline, in usual times until decodable.", 2.0)
    min_accuracy: Annotated[float, Field(gt=0, le=1)] | None = key(
        "Expected accuracy of the answer at which a stage waits for no more units; needs the table"
        " of `mpicoded calibrate`.",
        None,
    )
    give_up: Finite = key("Seconds after which missing units are sent again.", 30.0)
    retries: int = key("Times that they are sent again before the query is lost.", 2, ge=0, le=1000)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Yield (key, why) for values that do not go together."""
        if self.deadline == "adaptive":
            return
        if self.give_up < self.deadline < inf:
            yield (
                "deadline",
                f"{self.deadline} s is after give_up = {self.give_up} s; lower it or raise give_up",
            )
        if self.min_accuracy is not None and self.deadline == 0:
            yield (
                "deadline",
                f"is 0 s, and min_accuracy = {self.min_accuracy:g}: at the deadline any answer "
                "will do, so nothing would be waited for; raise the deadline or leave it out",
            )


class RuntimeSpec(Section):
    """[runtime]: queries in flight, formats of messages, and the limits of all other waits."""

    window: int = key("Queries in flight.", 4, gt=0, le=4096)
    queue: Count | None = key(
        "Queries that may wait in an open loop; further ones are refused. Default: no limit; the"
        " inputs of all that wait are in memory.",
        None,
    )
    wire: Wire = key(
        'Format of inputs on the wire; "uint8" is of 8-bit images, maps are float16 then, or'
        ' float32 with "uint8-float32".',
        "float32",
    )
    parity: Maps | None = key("Format of the inputs of coded parity units. Default: wire.", None)
    answers: Maps = key("Format of outputs on the wire.", "float32")
    sharing: bool = key("Whether a worker may take several units, if workers are few.", False)
    placement: Literal["adaptive", "fixed"] = key(
        '"adaptive" gives parity units to slow ranks; "fixed" keeps every unit on its own rank, so'
        " that the same faults hit the same units.",
        "adaptive",
    )
    threads: Annotated[int, Field(gt=0, le=1024)] | Literal["auto"] = key(
        'Threads of a rank; "auto" is its share of the cores of its node.', 1
    )
    start_limit: Finite = key(
        "Seconds for all ranks to meet, and of the leader's silence until a worker leaves.",
        START_LIMIT,
    )
    end_limit: Finite = key("Seconds for all ranks to leave.", 10.0)
    suspect_after: Finite = key("Seconds of silence until a rank with a task is suspected.", 0.5)


class Settings(GatherSpec, RuntimeSpec):
    """Both sections in one; JobError for a wrong value or an unknown key, as of a job file."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise JobError(explain(type(self), error)) from None
        for name, why in self.conflicts():
            raise JobError(f"{name}: {why}")

    def new_deadline(self) -> Deadline:
        """Return a deadline policy of its own for one stage."""
        fixed = None if self.deadline == "adaptive" else self.deadline
        return Deadline(fixed, self.patience)
