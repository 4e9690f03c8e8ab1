"""Read a code's own options: of a job's [code] args, a weights file's metadata, or defaults.

    options = read("parity", request, {"encoder": "addition", "hidden": 64})

What the job says counts first, then what the weights file says, then the default; if job and file
differ, :meth:`Trainable.load` tells.
"""

from collections.abc import Mapping
from typing import Any

from mpicoded.codes.code import CodeRequest
from mpicoded.errors import DataError, PlanError, near

Value = str | int | float | bool | tuple[int, ...]
KINDS = {
    str: "a text", int: "a whole number", float: "a number", bool: "true or false",
    tuple: "a list",
}  # fmt: skip


def read(name: str, request: CodeRequest, defaults: Mapping[str, Value]) -> dict[str, Any]:
    """Return every option of ``defaults``; PlanError, DataError for what job or file say wrong."""
    for key in request.args:
        if key not in defaults:
            raise PlanError(
                f"[code] args.{key}: the code {name!r} has no such option"
                f"{near(key, defaults)}; it has {', '.join(defaults) or 'none'}"
            )
    return {key: _value(key, default, request) for key, default in defaults.items()}


def choice(name: str, key: str, value: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    """Return ``value`` if it is one of ``known``; PlanError if not."""
    if value not in known:
        raise PlanError(
            f"[code] args.{key} = {value!r} of the code {name!r} is not known"
            f"{near(value, known)}; choose one of {', '.join(known)}"
        )
    return value


def needs_parity(name: str, request: CodeRequest) -> None:
    """Raise PlanError unless there is a parity unit."""
    if request.r < 1:
        raise PlanError(f'the code {name!r} needs r >= 1, got r = {request.r}: use code "uncoded"')


def spelled(value: Value) -> str:
    """Return an option as a weights file's metadata has it."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _value(key: str, default: Value, request: CodeRequest) -> Value:
    if key in request.args:
        return _of_job(key, default, request.args[key])
    return _of_file(key, default, request.metadata[key]) if key in request.metadata else default


def _of_job(key: str, default: Value, value: Any) -> Value:
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        if all(type(each) is int and each > 0 for each in value):
            return tuple(value)
        raise PlanError(f"[code] args.{key} = {value!r}: give positive whole numbers, as [16, 32]")
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(default):
        example = str(default).lower() if isinstance(default, bool) else repr(default)
        raise PlanError(f"[code] args.{key} = {value!r}: give {KINDS[type(default)]}, as {example}")
    result: Value = value
    return result


def _of_file(key: str, default: Value, text: str) -> Value:
    try:
        if isinstance(default, tuple):
            return tuple(int(word) for word in text.split())
        if isinstance(default, bool):
            return {"True": True, "False": False}[text]
        return type(default)(text)
    except (ValueError, KeyError) as error:
        raise DataError(f"{key} = {text!r} in the code's weights file is damaged") from error
