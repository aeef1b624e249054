#!/usr/bin/env bash
# A random search of hyper-parameters as an array job, a share of the trials for each of its tasks, and their gathering.
#
#   sbatch --array=0-7 pipelines/slurm/search.sh FEATURES [options of leokit search]
#   TASKS=8 sbatch --array=3 pipelines/slurm/search.sh FEATURES [the same options]             # share 3 of 0-7 again
#   sbatch --dependency=afterok:JOB pipelines/slurm/search.sh FEATURES [the same options]      # gathers, trains nothing
#   TASKS=2 bash pipelines/slurm/search.sh FEATURES [options]      # without Slurm: shares one after the other, gathered
#
# A task that is preempted or runs out of time keeps the state of its trials, is queued again, and goes on from there.
# pipelines/slurm/table1.sh submits both jobs, and all that follows. --halving needs Dask: docs/how-to/dask.md. Copy and
# edit.
#SBATCH --job-name=leokit-search
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -euo pipefail

FEATURES=${1:?usage: search.sh FEATURES [options of leokit search]}
shift
export LEOKIT_WORK=${WORK:-leokit-work/paper} LEOKIT_FEATURES=$FEATURES
gpus=${SLURM_GPUS_ON_NODE:-${CUDA_VISIBLE_DEVICES:-}}
cores=${SLURM_CPUS_PER_TASK:-1}
export LEOKIT_JOBS=${JOBS:-$([[ -n $gpus ]] && echo 1 || echo "$cores")} # trials at a time, a core each; one on a GPU

# Run a command; where it was stopped by a signal, with its state kept, queue this job again.
restartable() {
    local code=0
    ${SLURM_JOB_ID:+srun} "$@" || code=$?
    if [[ $code == 130 || $code == 143 ]] && [[ -n ${SLURM_JOB_ID:-} ]]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
    return "$code"
}

if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
    first=${SLURM_ARRAY_TASK_MIN:-0}
    if [[ -n ${TASKS:-} ]]; then
        share=$SLURM_ARRAY_TASK_ID/$TASKS
    else
        share=$((SLURM_ARRAY_TASK_ID - first))/$((${SLURM_ARRAY_TASK_MAX:-SLURM_ARRAY_TASK_COUNT - 1} - first + 1))
    fi
    restartable leokit search "$@" --only "$share"
    exit
fi
if [[ -z ${SLURM_JOB_ID:-} ]]; then
    tasks=${TASKS:-2}
    for ((task = 0; task < tasks; task++)); do restartable leokit search "$@" --only "$task/$tasks"; done
fi
restartable leokit search "$@"
