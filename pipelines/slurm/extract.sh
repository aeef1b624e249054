#!/usr/bin/env bash
# Features by all GPUs of a job, on any number of machines that share a file system.
#
#   sbatch pipelines/slurm/extract.sh IMAGES [options of leokit extract]
#   RANKS=2 bash pipelines/slurm/extract.sh IMAGES [options]      # without Slurm: so many processes on this machine
#
# The files of the result are divided among the ranks and are the same however many there are. A job that is preempted or
# runs out of time is queued again: finished files are kept, and what was in the making is made anew. Copy and edit.
#SBATCH --job-name=leokit-extract
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -euo pipefail

IMAGES=${1:?usage: extract.sh IMAGES [options of leokit extract]}
shift

if [[ -n ${SLURM_JOB_ID:-} ]]; then
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    export MASTER_ADDR
    code=0
    srun --kill-on-bad-exit=1 leokit extract "$IMAGES" "$@" || code=$? # a rank that dies must not leave others waiting
    if [[ $code == 130 || $code == 143 ]]; then scontrol requeue "$SLURM_JOB_ID"; fi
    exit "$code"
else
    python -m torch.distributed.run --standalone --nproc-per-node "${RANKS:-2}" -m leokit extract "$IMAGES" "$@"
fi
