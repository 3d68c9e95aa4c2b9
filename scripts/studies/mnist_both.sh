#!/usr/bin/env bash
# Mishra's and Xiang & Li's question on MNIST: the same normalization in both networks, without any other beside it, the control
# with alpha 0 among them; reconstruction error included. Each arm chooses one of three learning rates on two seeds, and is
# compared on five others.
source "$(dirname "$0")/study.sh"
sweep mnist_both dataset=mnist architecture=dcgan architecture.width=16 loss=non_saturating \
  normalization=mishra/none,mishra/weight,mishra/frozen,mishra/adaptive,mishra/literal,mishra/batch,both/weight_translated,both/spectral \
  optimizer.lr=5e-4,2e-3,8e-3 'tuning.keys=[optimizer.lr]' 'tuning.seeds=[1000,1001]' seed=0,1,2,3,4 \
  train.batch_size=32 train.until='1 epoch' memory_format=channels_last every.log='25 steps' every.evaluate='0.25 epochs' \
  every.spectra='0.25 epochs' every.sample='0.5 epochs' every.checkpoint='0.5 epochs' evaluation.samples=5000 \
  evaluation.reconstruction.images=50
noise mnist_both
# The paper compares with a "traditional GAN", which is the default baseline here, and with weight normalization.
publish mnist_both
publish mnist_both_tuning
again mnist_both against_weight --baseline normalization.generator=weight
again mnist_both reconstruction --metric reconstruction_error --baseline normalization.generator=batch
