#!/usr/bin/env bash
# The paper's Table 2 on features of your own: what each part of LEO is good for, beside the published numbers.
#
#   bash pipelines/table2.sh FEATURES
#
# FEATURES is what `leokit extract` or `leokit import` made. Each variant is trained at each number of shots and for each
# seed with LEO's published hyper-parameters (the paper searched for each variant's own) and selected on val; all are
# tested on the same episodes. Nothing is chosen on test.
# Copy and edit. Run it again after an interruption: finished stages are recognised and the others go on. Further
# options are variables too, as LEOKIT_DEVICE=cpu. table1.sh in the same WORK uses the runs of LEO that are there.
set -euo pipefail

FEATURES=${1:?usage: table2.sh FEATURES}
WORK=${WORK:-leokit-work/paper}
DATASET=${DATASET:-miniimagenet} # whose hyper-parameters, and whose published numbers: or tieredimagenet
VARIANTS=${VARIANTS:-leo no-finetuning deterministic random-prior generator generator-finetuning meta-sgd}
SHOTS=${SHOTS:-1 5}
SEEDS=${SEEDS:-0 1 2}            # the paper: five
STEPS=${STEPS:-100000}           # at most
VAL_EVERY=${VAL_EVERY:-1000}
PATIENCE=${PATIENCE:-20}         # validations without a better one, after which training stops
EPISODES=${EPISODES:-10000}      # DeepMind's code: 10,000; the paper: 50,000
QUERIES=${QUERIES:-rest600}      # all 600 - K other images of a class; `all` where classes have other numbers of images
METHODS=${METHODS:-class-mean,centred-class-mean,ridge,logistic}

export LEOKIT_WORK=$WORK LEOKIT_FEATURES=$FEATURES

runs=()
for variant in $VARIANTS; do
    for shots in $SHOTS; do
        for seed in $SEEDS; do
            leokit meta-train --variant "$variant" --preset "$DATASET-${shots}shot" --seed "$seed" \
                --steps "$STEPS" --val-every "$VAL_EVERY" --patience "$PATIENCE"
            run=$WORK/runs/$variant-5way-${shots}shot
            [ "$seed" = 0 ] || run+=-seed$seed
            runs+=("$run")
        done
    done
done

leokit eval "${runs[@]}" --queries "$QUERIES" --episodes "$EPISODES" --methods "$METHODS"
leokit table 2 "${runs[@]/#"$WORK/runs/"/"$WORK/eval/"}" --dataset "$DATASET" --overwrite
