"""Reference of the job file, docs/job.md, made from its model: it cannot drift.

python -m mpicoded.reference > docs/job.md
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from mpicoded import arrivals, datasets, models
from mpicoded.codes import CODES
from mpicoded.faults import KINDS
from mpicoded.job import Job
from mpicoded.planners import PLANNERS
from mpicoded.split import SPLITS

HEAD = """\
# The job file

Every key, made from the model: `python -m mpicoded.reference > docs/job.md`. A job is TOML; paths
are relative to its file. A misspelt key is refused with the nearest one, a value beyond its limits
with those. `--set section.key=value` overrides a key. `jobs/` has a job of each kind.
"""
# Names that are known by tables, not by the model; …: others too.
NAMES: dict[tuple[str, str], Sequence[str]] = {
    ("model", "name"): [*models.MODELS, "…"],
    ("input", "data"): [*datasets.CLASSES, "…"],
    ("input", "arrivals"): [*arrivals.NAMES, "…"],
    ("plan", "planner"): list(PLANNERS),
    ("plan", "split"): list(SPLITS),
    ("code", "name"): list(CODES),
}
TYPES = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false",
         "object": "table"}  # fmt: skip
LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
RULE = "| --- | --- | --- | --- |"


def reference() -> str:
    """Return the text of docs/job.md."""
    schema = Job.model_json_schema()
    lines = [HEAD, *_table("", {"seed": schema["properties"].pop("seed")}, [])]
    for name, field in schema["properties"].items():
        members = [each.get("items", each) for each in field.get("anyOf", [field])]
        section = schema["$defs"][members[0]["$ref"].rsplit("/", 1)[-1]]
        title, _, about = section["description"].partition("\n")[0].partition(": ")
        lines += ["", f"## {title}", "", about[0].upper() + about[1:], ""]
        lines += _table(name, section["properties"], section.get("required", []))
    lines += ["", "### Kinds of faults", ""]
    lines += ["| kind | keys (default), beside start | done by | meaning |", RULE]
    for name, kind in KINDS.items():
        keys = ", ".join(f"`{key}`" for key in sorted(kind.keys))
        if kind.seconds:
            keys = keys.replace("`seconds`", f"`seconds` ({kind.seconds:g})")
        lines.append(f"| `{name}` | {keys} | {'lab' if kind.by_lab else 'worker'} | {kind.doc} |")
    return "\n".join(lines) + "\n"


def _table(section: str, keys: dict[str, Any], required: list[str]) -> Iterator[str]:
    yield "| key | type | default | meaning |"
    yield RULE
    for key, schema in keys.items():
        kind = _type(schema)
        if names := NAMES.get((section, key)):
            kind = ", ".join(f"`{name}`" for name in names).replace("`…`", f"or another {kind}")
        default = "required" if key in required else _default(schema.get("default"))
        yield f"| `{key}` | {kind} | {default} | {schema['description']} |"


def _default(value: Any) -> str:
    return "" if value is None else f"`{json.dumps(value)}`"


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"] if each.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{json.dumps(v)}`" for v in schema.get("enum", [schema.get("const")]))
    if "prefixItems" in schema:
        return f"array of {len(schema['prefixItems'])} × {_type(schema['prefixItems'][0])}"
    if schema["type"] == "array":
        return f"array of {_type(schema['items'])}"
    limits = [f"{sign} {_number(schema[each])}" for each, sign in LIMITS.items() if each in schema]
    return ", ".join([schema.get("format") or TYPES[schema["type"]], *limits])


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


if __name__ == "__main__":
    print(reference(), end="")
