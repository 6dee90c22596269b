#!/usr/bin/env bash
# One run of an experiment in each task of a Slurm array. From the project's root:
#
#   python -m experiments.run infoscale_table --size=gpu --dry-run     # how many runs there are
#   sbatch --array=0-20 launch/slurm_array.sh infoscale_table --size=gpu
#   python -m experiments.run infoscale_table --size=gpu               # then: the table
#
# Options before the script's name (--partition, --time, …) are sbatch's. PYTHON names the
# interpreter, .venv's by default. A task that is stopped goes on when it is submitted again.
#SBATCH --job-name=lenext
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --output=runs/slurm-%A_%a.log
set -euo pipefail

if [[ $# -lt 1 || -z ${SLURM_ARRAY_TASK_ID:-} ]]; then
  echo "error: should be submitted as sbatch --array=0-N launch/slurm_array.sh EXPERIMENT [--size=SIZE]" >&2
  exit 2
fi
cd "${SLURM_SUBMIT_DIR:-.}"
exec "${PYTHON:-.venv/bin/python}" -m experiments.run "$@" --only="$SLURM_ARRAY_TASK_ID"
