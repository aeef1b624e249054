#!/usr/bin/env bash
# The paper's protocol on miniImageNet, from a tree of its images (a folder for each class, named by its wnid).
#
#   bash pipelines/miniimagenet.sh IMAGES                      # honest, in the size of a laptop
#   SETTING=paper bash pipelines/miniimagenet.sh IMAGES        # honest, in the size of the paper: a GPU
#   SETTING=bundled bash pipelines/miniimagenet.sh IMAGES      # weights of all of ImageNet, which have seen the test classes
#
# IMAGES holds the 100 classes of miniImageNet, 600 images each. On a tree of full ImageNet, set SPLITS to a folder with
# train.csv, val.csv and test.csv (filename,label or class_name,image_name) that chooses the 600.
# Copy and edit. Run it again after an interruption: finished stages are recognised and the others go on.
set -euo pipefail

IMAGES=${1:?usage: miniimagenet.sh IMAGES}
SETTING=${SETTING:-laptop}
WORK=${WORK:-leokit-work/miniimagenet-$SETTING}
SPLITS=${SPLITS:-miniimagenet}
SIZE=${SIZE:-84}            # pixels, of the bundled weights
STEPS=${STEPS:-100000}      # the paper's most; weights are chosen by meta-validation
VAL_EVERY=${VAL_EVERY:-1000}
PATIENCE=${PATIENCE:-10}    # validations without a better one that end training
OWN_STEPS=${OWN_STEPS:-5000}
EPISODES=${EPISODES:-10000} # DeepMind's code: 10,000; the paper: 50,000 for each of 5 seeds
QUERIES=${QUERIES:-rest600} # all 600 - K other images of a class

export LEOKIT_WORK=$WORK

# The backbone, trained on the 64 meta-train classes alone: both sizes side by side. PRETRAIN=… takes other options.
# The paper's is after Qiao et al. (2018) and what is known of the paper's own, and wants a GPU.
case $SETTING in
    laptop) pretrain=(--backbone resnet10t --image-size 64
                      --epochs 16 --val-every 2 --batch-size 64
                      --lr 0.05 --weight-decay 5e-4
                      --crop-scale 0.35 --val-images 200) ;;
    paper)  pretrain=(--backbone wrn28_10  --image-size 80
                      --epochs 90 --val-every 5 --batch-size 256
                      --lr 0.1 --weight-decay 5e-4 --warmup-epochs 2
                      --dropout 0.5 --precision bfloat16 --compile) ;;
    bundled) pretrain=() ;;
    *) echo "SETTING=$SETTING: it is laptop, paper or bundled" >&2; exit 2 ;;
esac
[[ -z ${PRETRAIN:-} ]] || read -ra pretrain <<< "$PRETRAIN"

if [[ $SETTING == bundled ]]; then
    leokit extract "$IMAGES" --splits "$SPLITS" --image-size "$SIZE"
else
    leokit pretrain "$IMAGES" --splits "$SPLITS" "${pretrain[@]}"
    leokit extract "$IMAGES" --splits "$SPLITS" --backbone-run "$WORK/backbone"
fi

for shots in 1 5; do
    leokit meta-train --preset "miniimagenet-${shots}shot" --steps "$STEPS" --val-every "$VAL_EVERY" --patience "$PATIENCE"
    leokit meta-train --preset own-images --shots "$shots" --steps "$OWN_STEPS"
done

leokit eval "$WORK"/runs/{leo,anchored}-5way-{1,5}shot --queries "$QUERIES" --episodes "$EPISODES"
