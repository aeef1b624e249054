#!/usr/bin/env bash
# A part of pipelines/table1.sh as a job: which runs, and whether to stop before the table, say its variables.
#
#   VARIANTS=leo SHOTS=1 SEEDS=0 TRAIN_ONLY=1 sbatch pipelines/slurm/train.sh FEATURES
#   VARIANTS=leo SHOTS=1 SEEDS=0 TRAIN_ONLY=1 bash pipelines/slurm/train.sh FEATURES      # without Slurm
#
# A job that is preempted or runs out of time keeps the state of its run, is queued again, and goes on from there. Copy
# and edit; PIPELINES names the folder of table1.sh, as Slurm runs a copy of this file.
#SBATCH --job-name=leokit-train
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -euo pipefail

FEATURES=${1:?usage: train.sh FEATURES}
PIPELINES=${PIPELINES:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}

code=0
${SLURM_JOB_ID:+srun} bash "$PIPELINES/table1.sh" "$FEATURES" || code=$?
if [[ $code == 130 || $code == 143 ]] && [[ -n ${SLURM_JOB_ID:-} ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
