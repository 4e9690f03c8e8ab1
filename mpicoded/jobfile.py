"""A job file as text: reading TOML, overrides from the command line, errors in one line.

What the sections and keys are is said in :mod:`mpicoded.job`.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mpicoded.errors import JobError

Key = tuple[str | int, ...]  # ("gather", "deadline"), ("faults", 0, "rank")
Places = Mapping[Key, str]  # the keys that the command line set, and how an error names that


def read_text(path: Path) -> str:
    """Return the text of a job file; JobError if there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        why = "there is no such job file"
    except IsADirectoryError:
        why = f"is a folder; name a job file in it, such as {path / 'job.toml'}"
    except UnicodeDecodeError as error:
        why = f"is not text in UTF-8 (byte {error.start}); is it a job file?"
    except OSError as error:
        why = f"cannot be read: {error.strerror}"
    raise JobError(f"{path}: {why}")


def parse(path: Path, text: str) -> dict[str, Any]:
    """Return what TOML text holds; JobError with line and column if it is not TOML."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        lines = text.splitlines() or [""]
        end = f"(at line {len(lines)}, column {len(lines[-1]) + 1})"
        why = str(error).replace("(at end of document)", end)
        raise JobError(f"{path}: is not TOML: {why}") from None


def override(data: dict[str, Any], text: str) -> tuple[Key, str]:
    """Put one ``section.key=value`` into ``data``; return its key and how an error names it."""
    where = f"--set {text}"
    dotted, equals, value = text.partition("=")
    if not equals or not dotted.strip():
        raise JobError(f"{where}: should be section.key=value, such as gather.deadline=0.1")
    keys: Key = tuple(int(k) if k.isdecimal() else k for k in dotted.strip().split("."))
    target: Any = data
    for key in keys[:-1]:
        target = _inside(target, key, where)
    if not isinstance(target, dict):
        raise JobError(f"{where}: {spell(keys[:-1])} is not a section")
    target[keys[-1]] = _value(value.strip(), where)
    return keys, where


def _inside(target: Any, key: str | int, where: str) -> Any:
    if isinstance(target, dict) and isinstance(key, str):
        return target.setdefault(key, {})
    if isinstance(target, list) and isinstance(key, int) and key < len(target):
        return target[key]
    count = len(target) if isinstance(target, list) else 0
    raise JobError(
        f"{where}: {key!r} is not there: there are {count}, counted from 0 (faults.0.rank is the "
        "first's rank)"
    )


def _value(text: str, where: str) -> Any:
    if not text:
        raise JobError(f"{where}: has no value; section.key=value")
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        if re.fullmatch(r"[A-Za-z./~][\w./:~-]*", text):  # a bare word: spares quotes in the shell
            return text
        why = "the value is not TOML; a string with spaces needs quotes"
        raise JobError(f"{where}: {why}") from None


def explain(job: type[BaseModel], path: Path, places: Places, error: ValidationError) -> str:
    """Return one line for the first of pydantic's errors, or an unknown key: it hides others."""
    errors = error.errors()
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    key = _real(first["loc"])
    about = [e for e in errors if _real(e["loc"]) == key]
    others = len({_real(e["loc"]) for e in errors}) - 1
    more = f" (and {others} more)" if others else ""
    return f"{place(path, places, key)}: {spell(key)}{_judge(job, key, about)}{more}"


def place(path: Path, places: Places, key: Key) -> str:
    """Name the override that set ``key`` or something in it, else the file."""
    return next((text for k, text in places.items() if k[: len(key)] == key), str(path))


def spell(key: Key) -> str:
    """('gather', 'deadline') -> '[gather] deadline'; ('faults', 0) -> '[[faults]] 0'."""
    if len(key) == 1:
        return str(key[0])
    section = "[[faults]]" if key[0] == "faults" else f"[{key[0]}]"
    return " ".join([section, *map(str, key[1:])])


def unknown_name(name: str, known: Iterable[str]) -> str:
    """Say that ``name`` is none of ``known``, and which is the nearest."""
    close = difflib.get_close_matches(name, known := list(known), n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{name!r} is not one of {', '.join(known)}{hint}"


def _judge(job: type[BaseModel], key: Key, about: list[ErrorDetails]) -> str:
    kind, given = about[0]["type"], about[0]["input"]
    if kind == "extra_forbidden":
        return f" is not a key; {_near_miss(job, key)}"
    if kind == "missing":
        return " is missing" if about[0]["loc"] == key else f" = {list(given)}: has too few numbers"
    wanted = dict.fromkeys(e["msg"].removeprefix("Input should be ") for e in about)
    return f" = {given!r}: should be {_plain(' or '.join(wanted))}"


def _plain(wanted: str) -> str:
    """Put Python's and pydantic's words into those of a job file."""
    wanted = re.sub(r"a valid dictionary( or instance of \w+)?", "a section", wanted)
    wanted = wanted.replace("a valid tuple", "an array").replace("a valid integer", "an integer")
    return wanted.replace("a valid ", "a ")


def _real(loc: Key) -> Key:
    """Drop what pydantic adds to a place: the member of a union that was tried, an element."""
    return loc[:3] if loc[0] == "faults" else loc[:2]


def _near_miss(job: type[BaseModel], key: Key) -> str:
    """Say which key was meant: the nearest one here, or the same word in another section."""
    sections, word = dict(_sections(job)), str(key[-1])
    known = list((sections[str(key[0])] if len(key) > 1 else job).model_fields)
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"did you mean {close[0]}?"
    elsewhere = [f"[{name}]" for name, model in sections.items() if word in model.model_fields]
    if elsewhere:
        return f"it belongs to {' or '.join(elsewhere)}"
    return f"the keys here are {', '.join(known)}"


def _sections(job: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield (name, model) of every field that is a section, also `X | None` and `tuple[X, ...]`."""
    for name, field in job.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield name, kind
