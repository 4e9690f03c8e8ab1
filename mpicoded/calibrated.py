"""Where the quality table of a job's code is kept, and whether it is about this very job.

It is made by :mod:`mpicoded.study.training.calibration`. A code with weights has it in the
metadata of their file, so that new weights come without an old table; another code has it in a
.json file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mpicoded.codes import Code
from mpicoded.codes.quality import AGAIN, KEY, Quality, about_code
from mpicoded.errors import DataError
from mpicoded.paths import check_regular, read_text
from mpicoded.plan import Plan

if TYPE_CHECKING:
    from mpicoded.job import Job

MOST = 16 << 20  # bytes of a table; one of 12 units has 0.1 MB


def path_of(job: Job) -> Path | None:
    """Return the file that has, or may have, the table of the job's code."""
    name = job.code.weights or job.code.quality
    return None if name is None else job.path(name)


def table(job: Job) -> Quality | None:
    """Return the table of the job's code, None if nobody has made one.

    Raises
    ------
    DataError
        If it is damaged, or the job names a file that is not there.
    """
    path = path_of(job)
    if path is None:
        return None
    try:
        text = read_text(path, MOST) if job.code.quality else read_about(path).get(KEY)
        return None if text is None else Quality.parse(text)
    except OSError as error:
        raise DataError(
            f"quality table {path}: {error.strerror}; make it: python -m mpicoded calibrate JOB"
        ) from error
    except UnicodeDecodeError:
        raise DataError(f"{path}: its quality table is no text; {AGAIN}") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def read_about(path: Path) -> dict[str, str]:
    """Return what a safetensors file says of itself; nothing if it is none."""
    from safetensors import SafetensorError, safe_open

    try:
        check_regular(path)
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError:
        return {}


def subject(job: Job, code: Code, plan: Plan, base: str) -> dict[str, str]:
    """Return what a table of the job's code is about; ``base`` is the base model's fingerprint."""
    about = about_code(code.name, code.k, code.r, plan.stages[0]) | {"base_weights": base}
    if job.code.args and job.code.weights is None:  # a weights file says its own
        about["args"] = json.dumps(job.code.args, sort_keys=True)
    return about


def fitting(job: Job, table: Quality, about: Mapping[str, str]) -> Quality | None:
    """Return the table if it is about this job; a table that nobody asked for may be another's.

    Raises
    ------
    DataError
        If it is about something else and the job needs it.
    """
    misfits = table.misfits(about)
    if misfits and (job.code.quality is not None or job.gather.min_accuracy is not None):
        raise DataError(
            f"{path_of(job) or 'about'}: its quality table does not fit the job: it has "
            f"{'; '.join(misfits[:3])}. {AGAIN[0].upper()}{AGAIN[1:]}"
        )
    return None if misfits else table
