#!/usr/bin/env bash
# Features of several backbones, or of several image trees, as an array job: a line of a file for each task.
#
#   sbatch --array=1-4 pipelines/slurm/extract-array.sh LIST
#   bash pipelines/slurm/extract-array.sh LIST      # without Slurm: line after line
#
# Each line of LIST is what follows `leokit extract`, with an --out of its own; words are divided by spaces. For one set
# of features on many GPUs see extract.sh. A task that is preempted or runs out of time keeps its finished files, is
# queued again, and goes on from there. Copy and edit.
#SBATCH --job-name=leokit-extract-array
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -euo pipefail

LIST=${1:?usage: extract-array.sh LIST}

# Run a command; where it was stopped by a signal, with its files kept, queue this job again.
restartable() {
    local code=0
    ${SLURM_JOB_ID:+srun} "$@" || code=$?
    if [[ $code == 130 || $code == 143 ]] && [[ -n ${SLURM_JOB_ID:-} ]]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
    return "$code"
}

mapfile -t lines < <(grep -v '^[[:space:]]*\(#\|$\)' "$LIST")
if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then lines=("${lines[SLURM_ARRAY_TASK_ID - 1]}"); fi
for line in "${lines[@]}"; do
    read -ra options <<< "$line"
    restartable leokit extract "${options[@]}"
done
