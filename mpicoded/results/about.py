"""The origin of a results file: versions of all software, and the job."""

from __future__ import annotations

import itertools
import platform
from datetime import datetime
from importlib import metadata

import h5py
import numpy as np
import torch

SHARING = "# --set runtime.sharing="  # a run goes on so with fewer nodes; its answers are the same


def differences(old: str, new: str) -> str:
    """Return the first lines in which two job texts differ, "" if they do not."""
    kept = ([x for x in text.splitlines() if not x.startswith(SHARING)] for text in (old, new))
    pairs = itertools.zip_longest(*kept, fillvalue="")
    differing = [(i, a.strip(), b.strip()) for i, (a, b) in enumerate(pairs, 1) if a != b]
    first = [f"line {i}: {a!r} there, {b!r} here" for i, a, b in differing[:3]]
    more = [f"{len(differing) - 3} more"] if len(differing) > 3 else []
    return "; ".join(first + more)


def versions() -> dict[str, str]:
    """Return the root attributes that the run itself need not know."""
    packages = {f"{name}_version": _version(name) for name in ("mpicoded", "mpi4py")}
    return packages | {
        "Conventions": "CF-1.8",
        "python_version": platform.python_version(),
        "torch_version": str(torch.__version__),
        "numpy_version": np.__version__,
        "h5py_version": h5py.__version__,
        "hdf5_version": h5py.version.hdf5_version,
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "clock": "wall",  # or "simulated"
        "mpi_library": "unknown",
        "commit": "unknown",
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
