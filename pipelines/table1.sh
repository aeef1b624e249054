#!/usr/bin/env bash
# The paper's Table 1 on features of your own, our numbers beside the published ones.
#
#   bash pipelines/table1.sh FEATURES
#
# FEATURES is what `leokit extract` or `leokit import` made. At each number of shots and for each seed, LEO with the
# published hyper-parameters, and ours (anchored, preset own-images), is trained on train and selected on val; then anew on
# train+val for as many steps as it had taken when it was best, as the paper's authors did. Nothing is chosen on test.
# The table says which ± is the 95 % interval over episodes and which the standard deviation over seeds.
#
# Where a search is there, its best options are taken in place of the preset's: WORK/search/leo-5way-1shot/best.toml, as
# `leokit search --shots 1` in the same WORK leaves it (for anchored with --preset own-images). Search before: runs that
# are there with other options are refused. TRAIN_ONLY=1 leaves out the test and the table, for machines that share work.
# Copy and edit. Run it again after an interruption: finished stages are recognised and the others go on. Further
# options are variables too, as LEOKIT_DEVICE=cpu. table2.sh in the same WORK uses the runs of LEO that are there.
set -euo pipefail
stopped=
trap 'stopped=1' TERM # where a cluster stops a job: wait for leokit, which keeps the state of its run, and leave

# Run a command, unless a signal has come since the last one.
unless_stopped() {
    [ -z "$stopped" ] || exit 130
    "$@"
}

FEATURES=${1:?usage: table1.sh FEATURES}
WORK=${WORK:-leokit-work/paper}
DATASET=${DATASET:-miniimagenet} # whose hyper-parameters, and whose published numbers: or tieredimagenet
VARIANTS=${VARIANTS:-leo anchored}
SHOTS=${SHOTS:-1 5}
SEEDS=${SEEDS:-0 1 2}            # the paper: five
STEPS=${STEPS:-100000}           # at most
VAL_EVERY=${VAL_EVERY:-1000}
PATIENCE=${PATIENCE:-20}         # validations without a better one, after which training stops
OWN_STEPS=${OWN_STEPS:-}         # of anchored, at most; steps, patience and validations are otherwise its preset's
EPISODES=${EPISODES:-10000}      # DeepMind's code: 10,000; the paper: 50,000
QUERIES=${QUERIES:-rest600}      # all 600 - K other images of a class; `all` where classes have other numbers of images
METHODS=${METHODS:-class-mean,centred-class-mean,ridge,logistic}

export LEOKIT_WORK=$WORK LEOKIT_FEATURES=$FEATURES

runs=()
for variant in $VARIANTS; do
    for shots in $SHOTS; do
        for seed in $SEEDS; do
            preset=$DATASET-${shots}shot
            [ "$variant" = anchored ] && preset=own-images
            options=(--variant "$variant" --preset "$preset" --shots "$shots" --seed "$seed")
            best_options=$WORK/search/$variant-5way-${shots}shot/best.toml
            if [ -f "$best_options" ] && [ -f "${best_options%best.toml}manifest.json" ]; then # of a finished search
                options=(--config "$best_options" --seed "$seed")
                echo "Options of $variant, $shots shots, from $best_options" >&2
            fi
            long=(--steps "$STEPS" --patience "$PATIENCE")
            if [ "$variant" = anchored ]; then long=(${OWN_STEPS:+--steps "$OWN_STEPS"}); else options+=(--val-every "$VAL_EVERY"); fi
            run=$WORK/runs/$variant-5way-${shots}shot
            [ "$seed" = 0 ] || run+=-seed$seed
            unless_stopped leokit meta-train "${options[@]}" "${long[@]}"
            runs+=("$run")
            found=$(unless_stopped leokit inspect "$run" --json)
            best=$(python3 -c 'import json, sys; print(json.load(sys.stdin)["facts"]["best_step"])' <<< "$found")
            if [ "$best" = 0 ]; then
                echo "$run was best before its first step: it is left out of the rows of train+val." >&2
            else
                unless_stopped leokit meta-train "${options[@]}" --train-on-val --steps-from "$run"
                runs+=("$run-trainval")
            fi
        done
    done
done

[ -z "${TRAIN_ONLY:-}" ] || exit 0

unless_stopped leokit eval "${runs[@]}" --queries "$QUERIES" --episodes "$EPISODES" --methods "$METHODS"
unless_stopped leokit table 1 "${runs[@]/#"$WORK/runs/"/"$WORK/eval/"}" --dataset "$DATASET" --overwrite
