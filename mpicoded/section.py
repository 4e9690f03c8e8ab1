"""Section: one table of a TOML file as a strict model. A field is a key with its one sentence."""

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic_core import core_schema

from mpicoded import paths


class Section(BaseModel):
    """Keys are strict and known, values do not change."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def key(doc: str, default: Any = ..., **limits: Any) -> Any:
    """Return the field of a key: its sentence in docs/job.md, its default (none: required)."""
    return Field(default, description=doc, **limits)


class OneOf:
    """Names of a table as a type: as Literal, which takes no names that are computed."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        """Return the schema that pydantic validates with."""
        return core_schema.literal_schema(self.names)


# Every number has an upper limit, far above what is of use and below where something would break.
UNITS = 4096  # of a plan: each is a rank's
# seconds of a wait: never for ever
Finite = Annotated[float, Field(gt=0, le=1e7, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=1, le=1e6, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Positive = Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0, le=2**31 - 1)]
Units = Annotated[int, Field(gt=0, le=UNITS)]
PathName = Annotated[
    str, AfterValidator(paths.check_name), WithJsonSchema({"type": "string", "format": "path"})
]
