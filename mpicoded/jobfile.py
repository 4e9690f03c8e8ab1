"""A job file as text: reading TOML, overrides from the command line, errors in one line."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mpicoded import paths
from mpicoded.errors import SHOWN, JobError, near, short

Key = tuple[str | int, ...]  # ("gather", "deadline"), ("faults", 0, "rank")
Places = Mapping[Key, str]  # the keys that the command line set, and how an error names that
NOWHERE: Places = {}

MOST = 4 << 20  # bytes of a file; a cluster of 4,096 ranks has as many
LARGEST = 2**63 - 1
LONGEST = 8192  # characters of a string
DEEPEST = 12  # keys and places on the way to a value
NESTING = f"at most {DEEPEST} of them hold one another"
EXTREMES = (
    (re.compile(r"(?<![0-9_])[0-9_]{640}"), "a number of 640 digits or more; all are below 2^63"),
    (re.compile(r"(?:[\[{]\s*+){64}"), f"arrays nested too deep: {NESTING}"),
    (
        re.compile(r"(?<![\w'\"-])(?:[\w'\"-]++[ \t]*+\.[ \t]*+){64}"),
        f"a key of too many parts: {NESTING}",
    ),
)


def read_text(path: Path, kind: str = "job file") -> str:
    """Return the text of a file of that ``kind``; JobError if there is none."""
    try:
        return paths.read_text(path, MOST)
    except FileNotFoundError:
        why = f"there is no such {kind}"
    except UnicodeDecodeError as error:
        why = f"is not text in UTF-8 (byte {error.start}); is it a {kind}?"
    except OSError as error:
        why = f"cannot be read: {error.strerror}"
        if path.is_dir():
            why = f"is a folder; name a {kind} in it, such as {path / 'job.toml'}"
    raise JobError(f"{path}: {why}")


def parse(path: Path, text: str) -> dict[str, Any]:
    """Parse TOML text; JobError with line and column if it is not TOML."""
    try:
        return _load(text, str(path))
    except tomllib.TOMLDecodeError as error:
        lines = text.splitlines() or [""]
        end = f"(at line {len(lines)}, column {len(lines[-1]) + 1})"
        why = str(error).replace("(at end of document)", end)
        raise JobError(f"{path}: is not TOML: {why}") from None


def _load(text: str, where: str) -> dict[str, Any]:
    """Load TOML text; JobError for what no file of ours has."""
    for pattern, what in EXTREMES:  # Python's reader fails at them, or takes hours
        if found := pattern.search(text):
            line = text[: found.end()].split("\n")[-1]
            number = text.count("\n", 0, found.end()) + 1
            raise JobError(f"{where}: line {number}, {short(line)}: {what}")
    try:
        data = tomllib.loads(text)
    except RecursionError:
        raise JobError(f"{where}: holds arrays or tables nested too deep: {NESTING}") from None
    _check_values(where, data)
    return data


def _check_values(where: str, value: Any, key: Key = ()) -> None:
    """Refuse values that TOML allows and nothing that comes after can take."""
    why = None
    if len(key) > DEEPEST:
        why, key = f"is nested too deep: {NESTING}", key[:2]
    elif isinstance(value, dict):
        for name, each in value.items():
            _check_values(where, name, (*key, short(name)))
            _check_values(where, each, (*key, name))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            _check_values(where, each, (*key, number))
    elif isinstance(value, str):
        why = _unfit(value)
    elif isinstance(value, int) and abs(value) > LARGEST:
        why = f"= {short(value)}: is beyond every limit, 2^63"
    if why:
        raise JobError(f"{where}: {spell(key)} {why}")


def _unfit(text: str) -> str | None:
    """Say why a string cannot be meant."""
    if "\0" in text:
        return f"= {short(text)}: holds a NUL character; leave it out"
    if len(text) > LONGEST:
        return f"= {short(text)}: has {len(text):,} characters, more than {LONGEST:,}"
    if any("\ud800" <= c <= "\udfff" for c in text):
        return f"= {short(text)}: is not text in UTF-8"
    return None


def override(data: dict[str, Any], text: str) -> tuple[Key, str]:
    """Put one ``section.key=value`` into ``data``; return its key and how an error names it."""
    where = f"--set {text if text.isprintable() and len(text) <= SHOWN else short(text)}"
    dotted, equals, value = text.partition("=")
    if not equals or not dotted.strip():
        raise JobError(f"{where}: should be section.key=value, such as gather.deadline=0.1")
    *above, last = dotted.strip().split(".")
    keys: Key = ()
    target: Any = data
    for part in above:
        keys = (*keys, int(part) if part.isdecimal() and len(part) < 10 else part)
        target = _inside(target, keys[-1], where)
    if not isinstance(target, dict):
        raise JobError(f"{where}: {spell(keys)} is not a section")
    keys = (*keys, last)
    target[last] = _value(value.strip(), where)
    _check_values(where, last)
    _check_values(where, target[last], keys)
    return keys, where


def _inside(target: Any, key: str | int, where: str) -> Any:
    if isinstance(target, dict) and isinstance(key, str):
        return target.setdefault(key, {})
    if isinstance(target, list) and isinstance(key, int) and key < len(target):
        return target[key]
    count = len(target) if isinstance(target, list) else 0
    raise JobError(
        f"{where}: {short(key)} is not there: there are {count}, counted from 0 (faults.0.rank is "
        "the first's rank)"
    )


def _value(text: str, where: str) -> Any:
    if not text:
        raise JobError(f"{where}: has no value; section.key=value")
    try:
        return _load(f"value = {text}", where)["value"]
    except tomllib.TOMLDecodeError:
        if re.fullmatch(r"[A-Za-z./~][\w./:~-]*", text):  # a bare word: spares quotes in the shell
            return text
        why = "the value is not TOML; a string with spaces needs quotes"
        raise JobError(f"{where}: {why}") from None


def explain(
    model: type[BaseModel],
    error: ValidationError,
    path: Path | None = None,
    places: Places = NOWHERE,
) -> str:
    """Return one line for the first of pydantic's errors, or an unknown key: it hides others."""
    errors = error.errors()
    keys = [_real(model, e["loc"]) for e in errors]
    first = next((i for i, e in enumerate(errors) if e["type"] == "extra_forbidden"), 0)
    key, owner = keys[first]
    about = [e for e, (k, _) in zip(errors, keys, strict=True) if k == key]
    others = len({k for k, _ in keys}) - 1
    more = f" (and {others} more)" if others else ""
    where = place(path, places, key)
    if about[0]["type"] == "extra_forbidden":
        return f"{where}{spell(key)} is not a key{_near_miss(model, owner, str(key[-1]))}{more}"
    return f"{where}{spell(key)}{_judge(key, about)}{more}"


def place(path: Path | None, places: Places, key: Key) -> str:
    """Name the override that set ``key`` or something in it, else the file if there is one."""
    set_by = next((text for k, text in places.items() if k[: len(key)] == key), path)
    return f"{set_by}: " if set_by else ""


def spell(key: Key) -> str:
    """('gather', 'deadline') -> '[gather] deadline'; ('faults', 0) -> '[[faults]] 0'."""
    if len(key) == 1:
        return str(key[0])
    if not key:
        return "the file"
    section = f"[[{key[0]}]]" if isinstance(key[1], int) else f"[{key[0]}]"
    return " ".join([section, *map(str, key[1:])])


def _judge(key: Key, about: list[ErrorDetails]) -> str:
    kind, given = about[0]["type"], about[0]["input"]
    if kind == "missing":
        return " is missing" if about[0]["loc"] == key else f" = {list(given)}: has too few numbers"
    if kind == "value_error":  # one of ours
        return f" = {short(given)}: {about[0]['msg'].removeprefix('Value error, ')}"
    about = [e for e in about if e["type"] != "too_short"] or about  # of what is left of an array
    wanted = dict.fromkeys(e["msg"].removeprefix("Input should be ") for e in about)
    return f" = {short(given)}: should be {_plain(' or '.join(wanted))}"


def _plain(wanted: str) -> str:
    """Put Python's and pydantic's words into those of a job file."""
    wanted = re.sub(r"a valid dictionary( or instance of \w+)?", "a section", wanted)
    wanted = wanted.replace("a valid tuple", "an array").replace("a valid integer", "an integer")
    return wanted.replace("a valid ", "a ")


def _real(model: type[BaseModel], loc: Key) -> tuple[Key, type[BaseModel]]:
    """Return the key a place is about, without what pydantic adds, and the model that has it."""
    owner, named = model, False
    for count, part in enumerate(loc, 1):
        if isinstance(part, int) or named:  # a table of an array, or one that is named
            named = False
            continue
        owner, tables = model, _tables(model, part)
        if not tables:
            return loc[:count], owner
        model, named = tables[0], get_origin(model.model_fields[part].annotation) is dict
    return loc, owner


def _near_miss(model: type[BaseModel], owner: type[BaseModel], word: str) -> str:
    """Say which key was meant: the nearest one of ``owner``, or the same word elsewhere."""
    if hint := near(word, owner.model_fields):
        return hint
    tables = [(name, table) for name in model.model_fields for table in _tables(model, name)]
    if elsewhere := [f"[{name}]" for name, table in tables if word in table.model_fields]:
        return f"; it belongs to {' or '.join(elsewhere)}"
    return f"; the keys here are {', '.join(owner.model_fields)}"


def _tables(model: type[BaseModel], name: str) -> list[type[BaseModel]]:
    """Return the model of a field that is a table, also `X | None`, `tuple[X, ...]`, `dict`."""
    kind = model.model_fields[name].annotation if name in model.model_fields else None
    kinds = (kind, *get_args(kind))
    return [each for each in kinds if isinstance(each, type) and issubclass(each, BaseModel)]
