#!/usr/bin/env bash
# Features by all GPUs of a job, on any number of machines that share a file system.
#
#   sbatch pipelines/slurm/extract.sh IMAGES [options of leokit extract]
#   RANKS=2 bash pipelines/slurm/extract.sh IMAGES [options]      # without Slurm: so many processes on this machine
#
# The files of the result are divided among the ranks and are the same however many there are. Killed or out of time?
# Submit it again: finished files are kept, and what was in the making is made anew. Copy and edit.
#SBATCH --job-name=leokit-extract
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
set -euo pipefail

IMAGES=${1:?usage: extract.sh IMAGES [options of leokit extract]}
shift

if [[ -n ${SLURM_JOB_ID:-} ]]; then
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    export MASTER_ADDR
    srun --kill-on-bad-exit=1 leokit extract "$IMAGES" "$@" # a rank that dies must not leave the others waiting
else
    python -m torch.distributed.run --standalone --nproc-per-node "${RANKS:-2}" -m leokit extract "$IMAGES" "$@"
fi
