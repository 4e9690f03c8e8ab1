"""jobs/venv.sh: which build of PyTorch it makes pip take."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CPU = "https://download.pytorch.org/whl/cpu"
SCRIPT = """
set -euo pipefail
source jobs/venv.sh
venv=$FOLDER stamps=$FOLDER/stamps
uname() { echo "$MACHINE"; }
choose_torch
echo "index=${PIP_EXTRA_INDEX_URL:-}"
"""
PIWHEELS = "global.extra-index-url='https://www.piwheels.org/simple'"


@pytest.mark.parametrize(
    ("machine", "config", "index", "warns"),
    [
        ("aarch64", "", CPU, False),
        ("aarch64", PIWHEELS, CPU, False),
        ("aarch64", "global.index-url='https://mirror/simple'", "", False),
        ("x86_64", "", "", True),
        ("x86_64", "global.find-links='/wheels'", "", False),
    ],
)
def test_build_of_torch(tmp_path, machine, config, index, warns):
    python = tmp_path / "bin/python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\n[ "$*" = "-m pip config list" ] && echo "{config}"\n')
    python.chmod(0o755)
    env = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    env |= {"MACHINE": machine, "FOLDER": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-c", SCRIPT], cwd=ROOT, env=env, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"index={index}"
    assert (f"set PIP_EXTRA_INDEX_URL={CPU}" in done.stdout) == warns
