#!/usr/bin/env bash
# Is training in bf16 as good as in fp32? MNIST, five seeds each, the same seeds and so the same weights, images and latents.
# Margin, set beforehand: the ratio of the mean classifier scores lies between 0.95 and 1.05 with 95 % confidence.
#   scripts/studies/bf16_mnist.sh 'train.until=3 epochs'                          for a GPU (a minute or two)
#   scripts/studies/bf16_mnist.sh 'train.until=1250 steps' architecture.width=8   for a CPU (half an hour of one that emulates bf16)
set -euo pipefail
here=$(dirname "$0")
normlab train -m experiment=mnist_cpu name=bf16_mnist every.evaluate=null every.sample=null every.spectra=null \
    precision=fp32,bf16 seed=0,1,2,3,4 "$@"
python "$here/equivalence.py" "${NORMLAB_OUTPUTS:-outputs}/bf16_mnist" precision classifier_score 0.05
