#!/bin/bash
# PBS: qsub jobs/pbs.sh, or qsub -v JOB=my.toml jobs/pbs.sh     (from the repository root)
#PBS -N mpicoded
#PBS -l select=9:ncpus=1:mpiprocs=1
#PBS -l walltime=00:30:00
#PBS -j oe
# Started again by PBS, --resume below finishes exactly the queries that are missing.
#PBS -r y
set -euo pipefail

cd -- "$PBS_O_WORKDIR"
export PATH=$PWD/.venv/bin:$PATH
export OMP_NUM_THREADS=1
# mpirun reads the nodes from PBS and starts its daemons there over ssh.
mpirun --with-ft ulfm --bind-to none -n "$(wc -l <"$PBS_NODEFILE")" \
    python -m mpicoded run "${JOB:-jobs/quickstart.toml}" --resume
