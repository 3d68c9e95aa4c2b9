#!/usr/bin/env bash
# Mishra's and Xiang & Li's question on MNIST: the same normalization in both networks, without any other beside it, the control
# with alpha 0 among them; reconstruction error included.
source "$(dirname "$0")/study.sh"
sweep mnist_both dataset=mnist architecture=dcgan architecture.width=16 loss=non_saturating optimizer.lr=2e-4 \
  normalization=mishra/none,mishra/weight,mishra/frozen,mishra/adaptive,mishra/literal,mishra/batch,both/weight_translated,both/spectral \
  seed=0,1,2,3,4 train.until='2 epochs' every.log='25 steps' every.evaluate='0.5 epochs' every.spectra='0.25 epochs' \
  every.sample='0.5 epochs' every.checkpoint='1 epoch' evaluation.samples=5000 evaluation.reconstruction.images=100
publish mnist_both --baseline normalization.generator=batch normalization.discriminator=batch
