#!/usr/bin/env bash
# From nothing to few-shot accuracy on unseen alphabets, in minutes on a laptop, without a download.
#
#   bash pipelines/quickstart.sh
#
# Copy and edit. Run it again after an interruption: finished stages are recognised and the others go on.
set -euo pipefail

WORK=${WORK:-leokit-work/quickstart} # everything that leokit makes
IMAGES=${IMAGES:-$WORK/images}       # the image tree: a folder for each class
PER_CLASS=${PER_CLASS:-40}           # images of each class
SIZE=${SIZE:-84}                     # pixels
STEPS=${STEPS:-1000}                 # meta-training steps for each method and number of shots
EPISODES=${EPISODES:-2000}           # test episodes

export LEOKIT_WORK=$WORK

leokit demo "$IMAGES" --per-class "$PER_CLASS" --size "$SIZE"
leokit extract "$IMAGES" --image-size "$SIZE"

for shots in 1 5; do
    # LEO with the published hyper-parameters, and ours for a user's own images.
    leokit meta-train --shots "$shots" --steps "$STEPS" --val-every 250 --val-episodes 500
    leokit meta-train --preset own-images --shots "$shots" --steps "$STEPS" --val-every 250 --val-episodes 500
done

leokit eval "$WORK"/runs/{leo,anchored}-5way-1shot "$WORK"/runs/{leo,anchored}-5way-5shot --episodes "$EPISODES"
leokit report
