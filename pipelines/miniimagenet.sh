#!/usr/bin/env bash
# The paper's protocol on miniImageNet, from a tree of its images (a folder for each class, named by its wnid).
#
#   bash pipelines/miniimagenet.sh IMAGES
#
# IMAGES holds the 100 classes of miniImageNet, 600 images each. On a tree of full ImageNet, set SPLITS to a folder with
# train.csv, val.csv and test.csv (filename,label or class_name,image_name) that chooses the 600.
# Copy and edit. Run it again after an interruption: finished stages are recognised and the others go on.
set -euo pipefail

IMAGES=${1:?usage: miniimagenet.sh IMAGES}
WORK=${WORK:-leokit-work/miniimagenet}
SPLITS=${SPLITS:-miniimagenet}
SIZE=${SIZE:-84}            # pixels
STEPS=${STEPS:-100000}      # the paper's most; weights are chosen by meta-validation
VAL_EVERY=${VAL_EVERY:-1000}
EPISODES=${EPISODES:-10000} # DeepMind's code: 10,000; the paper: 50,000 for each of 5 seeds
QUERIES=${QUERIES:-rest600} # all 600 - K other images of a class

export LEOKIT_WORK=$WORK

leokit extract "$IMAGES" --splits "$SPLITS" --image-size "$SIZE"

for shots in 1 5; do
    leokit meta-train --preset "miniimagenet-${shots}shot" --steps "$STEPS" --val-every "$VAL_EVERY"
    leokit eval --shots "$shots" --queries "$QUERIES" --episodes "$EPISODES"
done

leokit eval "$WORK"/runs/leo-5way-{1,5}shot --queries "$QUERIES" --episodes "$EPISODES"
