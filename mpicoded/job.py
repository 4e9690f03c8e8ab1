"""Job: the strict model of a job file, jobs/*.toml. A misspelt key is an error with the near miss.

Every section is one small model below; its fields are the keys, with their types, limits and
defaults. What depends on two keys is in :func:`_conflicts`.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    ValidationError,
)
from pydantic_core import ErrorDetails

from mpicoded.codes import CODES
from mpicoded.errors import JobError
from mpicoded.partition import PARTITIONS

Finite = Annotated[float, Field(gt=0, allow_inf_nan=False)]  # seconds of a wait: never for ever
Share = Annotated[float, Field(ge=0, le=1)]
# TOML has arrays only, and they are lists: let them in as tuples, their elements stay strict
Sizes = Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)]
Numbers = Annotated[tuple[float, ...], Field(strict=False, min_length=1)]
Weights = Annotated[tuple[PositiveFloat, ...], Field(strict=False, min_length=1)]
Names = Annotated[tuple[str, ...], Field(strict=False)]


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class ModelSpec(_Section):
    """[model]: the network that is served, one of ours or ``package.module:factory``."""

    name: str
    args: dict[str, Any] = {}
    weights: str | None = None


class InputSpec(_Section):
    """[input]: where the images come from; ``mean`` and ``std`` are of values scaled to 0..1."""

    data: str
    split: Literal["all", "train", "test"] = "all"
    size: Sizes | None = None  # (rows, columns) to resize to
    limit: PositiveInt | None = None
    repeat: PositiveInt = 1
    batch: PositiveInt = 1  # images a query
    mean: Numbers = (0.0,)
    std: Weights = (1.0,)


class PlanSpec(_Section):
    """[plan]: how the work is cut. ``stages`` names the last block of each stage."""

    split: str = "height"
    stages: Names = ()
    tiles: Sizes | None = None  # (down, across)
    weights: Weights | None = None  # the k shares


class CodeSpec(_Section):
    """[code]: k data units and r parity units."""

    name: str = "uncoded"
    k: PositiveInt = 1
    r: NonNegativeInt = 0
    weights: str | None = None


class GatherSpec(_Section):
    """[gather]: how long to wait, in seconds. ``patience`` multiplies what is measured."""

    deadline: Literal["adaptive"] | NonNegativeFloat = "adaptive"
    patience: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0
    give_up: Finite = 2.0
    retries: NonNegativeInt = 2


class RuntimeSpec(_Section):
    """[runtime]: queries in flight, what travels, and the limits of every wait in seconds."""

    window: PositiveInt = 4
    wire: Literal["float32", "float16", "uint8"] = "float32"
    sharing: bool = False
    threads: PositiveInt = 1
    start_limit: Finite = 120.0
    end_limit: Finite = 10.0
    suspect_after: Finite = 0.5


class FaultSpec(_Section):
    """[[faults]]: one injected fault; ``start`` and ``stop`` are fractions of the queries."""

    kind: Literal["slow", "crash", "silence", "delay"]
    rank: PositiveInt | None = None  # drawn from the seed
    start: Share = 0.0
    stop: Share = 1.0
    factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 10.0
    seconds: Finite = 0.05
    probability: Share = 1.0


class ResultsSpec(_Section):
    """[results]: the file, how often it is flushed (seconds), and whether to run F unsplit too."""

    file: str | None = None
    flush: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    unsplit: bool = True


class TrainSpec(_Section):
    """[train]: what ``mpicoded train`` makes: the base model's weights, or a code's."""

    kind: Literal["base", "code"]
    out: str
    epochs: PositiveInt = 30
    batch: PositiveInt = 64
    rate: Finite = 1e-3
    weight_decay: NonNegativeFloat = 1e-5


class Job(_Section):
    """A whole job file. Sections that are left out have their defaults."""

    seed: NonNegativeInt = 0
    model: ModelSpec
    input: InputSpec
    plan: PlanSpec = PlanSpec()
    code: CodeSpec = CodeSpec()
    gather: GatherSpec = GatherSpec()
    runtime: RuntimeSpec = RuntimeSpec()
    faults: Annotated[tuple[FaultSpec, ...], Field(strict=False)] = ()
    results: ResultsSpec = ResultsSpec()
    train: TrainSpec | None = None
    _file: Path = PrivateAttr()
    _text: str = PrivateAttr()

    @classmethod
    def read(
        cls, path: str | Path, overrides: Sequence[str] = (), *, training: bool = False
    ) -> Job:
        """Read a job file; ``overrides`` are ``section.key=value``, the value in TOML.

        ``training`` is for the verb train: it needs [train], and a code without weights is fine.

        Raises
        ------
        JobError
            One line: the file, the key, its value and what is allowed.
        """
        path = Path(path)
        text = _text_of(path)
        data = _parse(path, text)
        where = dict(_override(data, override) for override in overrides)
        try:
            job = cls.model_validate(data)
        except ValidationError as error:
            raise JobError(_explain(path, where, error)) from None
        for key, why in _conflicts(job, training):
            raise JobError(f"{where.get(key, path)}: {_spell(key)}: {why}")
        job._file = path.absolute()
        job._text = text + "".join(f"\n# --set {override}" for override in overrides)
        return job

    @property
    def file(self) -> Path:
        """The job file."""
        return self._file

    @property
    def text(self) -> str:
        """The job file word for word, and each override as a comment after it."""
        return self._text

    def path(self, name: str) -> Path:
        """Return a path of the job file, which is relative to the job file's folder."""
        return (self._file.parent / Path(name).expanduser()).resolve()

    @property
    def results_path(self) -> Path:
        """The results file; where the job names none, ``<job>.h5`` beside the job file."""
        return self.path(self.results.file or f"{self._file.stem}.h5")


Key = tuple[str | int, ...]


def _conflicts(job: Job, training: bool) -> Iterator[tuple[Key, str]]:
    """Yield (key, what is wrong) for all that one key alone does not show."""
    yield from _plan_conflicts(job.plan, job.code, job.input)
    yield from _code_conflicts(job.code, training)
    if training and job.train is None:
        yield ("train",), 'is missing; it says what to train: kind = "base" or "code", and out'
    if training and job.train and job.train.kind == "code" and job.code.r == 0:
        yield ("code", "r"), 'r = 0 leaves nothing to train; set r, and name = "learned"'
    mean, std = len(job.input.mean), len(job.input.std)
    if mean != std and 1 not in (mean, std):
        yield ("input", "std"), f"has {std} values and mean has {mean}; give one a channel each"
    gather = job.gather
    if gather.deadline != "adaptive" and gather.give_up < gather.deadline < float("inf"):
        yield (
            ("gather", "deadline"),
            f"{gather.deadline} s is after give_up = {gather.give_up} s; "
            "lower it, raise give_up, or say inf (wait for every data unit until give_up)",
        )
    for number, fault in enumerate(job.faults):
        yield from _fault_conflicts(number, fault)


def _plan_conflicts(plan: PlanSpec, code: CodeSpec, given: InputSpec) -> Iterator[tuple[Key, str]]:
    if plan.split not in PARTITIONS:
        yield ("plan", "split"), _unknown_name(plan.split, list(PARTITIONS))
    if (plan.tiles is not None) != (plan.split == "tiles"):
        yield ("plan", "tiles"), 'goes with split = "tiles" and only with it: tiles = [down, across]'
    if plan.tiles and plan.tiles[0] * plan.tiles[1] != code.k:
        product = plan.tiles[0] * plan.tiles[1]
        yield ("plan", "tiles"), f"{list(plan.tiles)} makes {product} tiles and k = {code.k} in [code]"
    if plan.weights and len(plan.weights) != code.k:
        yield ("plan", "weights"), f"has {len(plan.weights)} shares and k = {code.k} in [code]"
    if plan.split == "batch" and given.batch % code.k:
        yield (
            ("input", "batch"),
            f"{given.batch} images a query cannot be dealt out to k = {code.k} units; "
            f"set a multiple of {code.k}",
        )


def _code_conflicts(code: CodeSpec, training: bool) -> Iterator[tuple[Key, str]]:
    if code.name not in CODES:
        yield ("code", "name"), _unknown_name(code.name, list(CODES))
    if code.name == "uncoded" and code.r:
        yield ("code", "r"), f"is {code.r}, but uncoded means r = 0; name another code or set r = 0"
    if code.name != "uncoded" and not code.r:
        yield ("code", "r"), f'is 0, which is no redundancy; set r, or name = "uncoded"'
    if code.name == "learned" and not (code.weights or training):
        yield (
            ("code", "weights"),
            "is missing: a learned code needs trained weights; make them with "
            "`mpicoded train` and name the file here",
        )


# what belongs to which kind of fault, beside rank and start
FAULT_KEYS = {
    "slow": {"stop", "factor"},
    "crash": set[str](),
    "silence": {"stop", "probability"},
    "delay": {"stop", "seconds", "probability"},
}


def _fault_conflicts(number: int, fault: FaultSpec) -> Iterator[tuple[Key, str]]:
    foreign = fault.model_fields_set - FAULT_KEYS[fault.kind] - {"kind", "rank", "start"}
    for key in sorted(foreign):
        allowed = ", ".join(["rank", "start", *sorted(FAULT_KEYS[fault.kind])])
        yield ("faults", number, key), f'does not belong to kind = "{fault.kind}", which has {allowed}'
    if fault.start >= fault.stop:
        yield ("faults", number, "start"), f"{fault.start} is not before stop = {fault.stop}"


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise JobError(f"{path}: there is no such job file") from None
    except IsADirectoryError:
        raise JobError(f"{path}: is a folder; name a job file in it, such as {path}/job.toml") from None
    except UnicodeDecodeError as error:
        raise JobError(f"{path}: is not text in UTF-8 (byte {error.start}); is it a job file?") from None
    except OSError as error:
        raise JobError(f"{path}: cannot be read: {error.strerror}") from None


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        lines = text.splitlines() or [""]
        end = f"(at line {len(lines)}, column {len(lines[-1]) + 1})"
        why = str(error).replace("(at end of document)", end)
        raise JobError(f"{path}: is not TOML: {why}") from None


def _override(data: dict[str, Any], override: str) -> tuple[Key, str]:
    """Put one ``section.key=value`` into ``data``; return its key and how to name it in an error."""
    where = f"--set {override}"
    dotted, equals, value = override.partition("=")
    if not equals or not dotted.strip():
        raise JobError(f"{where}: should be section.key=value, such as gather.deadline=0.1")
    keys: Key = tuple(int(k) if k.isdecimal() else k for k in dotted.strip().split("."))
    target: Any = data
    for key in keys[:-1]:
        target = _inside(target, key, where)
    if isinstance(target, dict):
        target[keys[-1]] = _value(value.strip(), where)
    else:
        raise JobError(f"{where}: {_spell(keys[:-1])} is a value, not a section")
    return keys, where


def _inside(target: Any, key: str | int, where: str) -> Any:
    if isinstance(target, list) and isinstance(key, int):
        if key < len(target):
            return target[key]
        raise JobError(f"{where}: number {key} is not there; there are {len(target)}, from 0")
    if isinstance(target, dict):
        return target.setdefault(key, {})
    raise JobError(f"{where}: {key!r} cannot be looked up there; [[faults]] count from 0: faults.0.rank")


def _value(text: str, where: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        if re.fullmatch(r"[A-Za-z./~][\w./:~-]*", text):  # a bare word: spares quotes in the shell
            return text
        raise JobError(f"{where}: the value is not TOML; a string with spaces needs quotes") from None


def _explain(path: Path, where: dict[Key, str], error: ValidationError) -> str:
    """Return one line for the worst of pydantic's errors: an unknown key first, it hides others."""
    errors = error.errors()
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    key = _real(first["loc"])
    about = [e for e in errors if _real(e["loc"]) == key]
    others = len({_real(e["loc"]) for e in errors}) - 1
    more = f" (and {others} more)" if others else ""
    return f"{where.get(key, path)}: {_spell(key)}{_judge(key, about)}{more}"


def _judge(key: Key, about: list[ErrorDetails]) -> str:
    kind, given = about[0]["type"], about[0]["input"]
    if kind == "extra_forbidden":
        return f" is not a key; {_near_miss(key)}"
    if kind == "missing":
        return " is missing"
    allowed = " or ".join(dict.fromkeys(e["msg"].removeprefix("Input ") for e in about))
    return f" = {given!r}: {allowed.replace(' or should be ', ' or ')}"


def _real(loc: Key) -> Key:
    """Drop what pydantic adds to a place: the member of a union that was tried."""
    return tuple(part for part in loc if isinstance(part, int) or re.fullmatch(r"[\w-]+", part))[:3]


def _spell(key: Key) -> str:
    """('gather', 'deadline') -> '[gather] deadline'; ('faults', 0, 'rank') -> '[[faults]] 0 rank'."""
    if key[0] == "faults" and len(key) > 1:
        return " ".join(["[[faults]]", *map(str, key[1:])])
    if len(key) == 1:
        section = key[0] in Job.model_fields and key[0] != "seed"
        return f"[{key[0]}]" if section else str(key[0])
    return " ".join([f"[{key[0]}]", *map(str, key[1:])])


def _sections() -> dict[str, type[BaseModel]]:
    sections: dict[str, type[BaseModel]] = {"faults": FaultSpec, "train": TrainSpec}
    for name, field in Job.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            sections[name] = field.annotation
    return sections


def _near_miss(key: Key) -> str:
    """Say which key was meant: the same word in another section, or the nearest one here."""
    sections, word = _sections(), str(key[-1])
    home = sections.get(str(key[0])) if len(key) > 1 else Job
    known = list(home.model_fields) if home else []
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"did you mean {close[0]}?"
    elsewhere = [name for name, model in sections.items() if word in model.model_fields]
    if elsewhere:
        return f"it belongs to {' or '.join(f'[{name}]' for name in elsewhere)}"
    return f"the keys here are {', '.join(known)}"


def _unknown_name(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{name!r} is not one of {', '.join(known)}{hint}"
