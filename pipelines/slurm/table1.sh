#!/usr/bin/env bash
# The paper's Table 1 on a cluster: a search for each method and number of shots, its gathering, all runs, and the table.
#
#   bash pipelines/slurm/table1.sh FEATURES      # submits a chain of jobs, each after those that it needs
#
# Without Slurm (no `sbatch` here) the same jobs run one after the other on this machine. FEATURES is what `leokit extract`
# or `leokit import` made, on a file system that all machines share. The training and the table are those of
# pipelines/table1.sh, whose variables (SEEDS, STEPS, …) hold here too. A job that is preempted or runs out of time is
# queued again and goes on where it was. Run this again after a failure: what is finished is recognised. Copy and edit.
set -euo pipefail

FEATURES=${1:?usage: table1.sh FEATURES}
export WORK=${WORK:-leokit-work/paper}
VARIANTS=${VARIANTS:-leo anchored}
SHOTS=${SHOTS:-1 5}
SEEDS=${SEEDS:-0 1 2}
DATASET=${DATASET:-miniimagenet}
TRIALS=${TRIALS:-40}               # of each search
SEARCH_STEPS=${SEARCH_STEPS:-5000} # of each trial
TASKS=${TASKS:-8}                  # of each search's array
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PIPELINES=${PIPELINES:-$HERE/..}
mkdir -p "$WORK/logs"

# submit DEPENDENCIES ARRAY SCRIPT ARGUMENTS…: queue a script, or run it here; prints the job's number.
submit() {
    local after=$1 array=$2
    shift 2
    if command -v sbatch > /dev/null; then
        sbatch --parsable ${after:+--dependency=afterok:$after} ${array:+--array=$array} \
            --output="$WORK/logs/%x-%A-%a.txt" "$@" | cut -d ';' -f 1
    elif [[ -n $array ]]; then # search.sh runs all shares by itself
        TASKS=$TASKS bash "$@" >&2
    else
        bash "$@" >&2
    fi
}

trained=()
for variant in $VARIANTS; do
    for shots in $SHOTS; do
        preset=$DATASET-${shots}shot
        [[ $variant != anchored ]] || preset=own-images
        options=(--variant "$variant" --preset "$preset" --shots "$shots" --trials "$TRIALS" --steps "$SEARCH_STEPS")
        searched=$(submit "" "0-$((TASKS - 1))" "$HERE/search.sh" "$FEATURES" "${options[@]}")
        gathered=$(submit "$searched" "" "$HERE/search.sh" "$FEATURES" "${options[@]}")
        for seed in $SEEDS; do
            export TRAIN_ONLY=1
            trained+=("$(VARIANTS=$variant SHOTS=$shots SEEDS=$seed submit "$gathered" "" "$HERE/train.sh" "$FEATURES")")
            unset TRAIN_ONLY
        done
    done
done
after=$(IFS=:; echo "${trained[*]}")
export VARIANTS SHOTS SEEDS DATASET
last=$(submit "$after" "" "$HERE/train.sh" "$FEATURES")
[[ -z $last ]] || echo "Submitted; the table is made by job $last: $WORK/tables/table1, log in $WORK/logs." >&2
