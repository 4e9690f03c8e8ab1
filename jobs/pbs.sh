#!/bin/bash
# PBS: qsub jobs/pbs.sh, or qsub -v JOB=my.toml jobs/pbs.sh     (from the repository root)
#PBS -N mpicoded
#PBS -l select=9:ncpus=1:mpiprocs=1
# In Torque: -l nodes=9:ppn=1 instead. For a node each add: -l place=scatter
#PBS -l walltime=00:30:00
#PBS -j oe
# Should PBS start the whole job again, --resume finishes exactly the queries that are missing.
#PBS -r y
set -euo pipefail

cd -- "$PBS_O_WORKDIR"
export PATH=$PWD/.venv/bin:$PATH
# mpirun reads the nodes from PBS and starts its daemons there over ssh, which must not ask for a
# password; launch leaves out those that died when it has to start again.
ranks=$(wc -l <"$PBS_NODEFILE")
exec python -m mpicoded launch "${JOB:-jobs/quickstart.toml}" -n "$ranks" --resume
