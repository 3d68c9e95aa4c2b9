#!/usr/bin/env bash
# Is training in bf16 as good as in fp32? MNIST, five seeds each, the same seeds and so the same weights, images and latents.
# Margin, set beforehand: the ratio of the mean classifier scores lies between 0.95 and 1.05 with 95 % confidence.
#   scripts/studies/bf16_mnist.sh                            the experiment as it is, 3 epochs: for a GPU (about 5 minutes of one)
#   scripts/studies/bf16_mnist.sh architecture.width=8 ...   with changes, for a CPU
set -euo pipefail
normlab train -m experiment=mnist_cpu name=bf16_mnist train.until='3 epochs' every.evaluate='3 epochs' every.sample=null \
    every.spectra=null precision=fp32,bf16 seed=0,1,2,3,4 "$@"
normlab report "${NORMLAB_OUTPUTS:-outputs}/bf16_mnist" --metric classifier_score --baseline precision=fp32
