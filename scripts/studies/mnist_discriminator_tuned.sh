#!/usr/bin/env bash
# The arms of mnist_discriminator, each at the best of three learning rates for itself, chosen on two seeds and compared on five
# others: which of its differences are differences between techniques, and which between how well one rate suits them?
source "$(dirname "$0")/study.sh"
sweep mnist_discriminator_tuned dataset=mnist architecture=dcgan architecture.width=16 loss=hinge \
  normalization=none,batch,layer,instance,weight,weight_strict,adaptive,spectral,bidirectional_scaled_spectral \
  optimizer.lr=5e-4,2e-3,8e-3 'tuning.keys=[optimizer.lr]' 'tuning.seeds=[1000,1001]' seed=0,1,2,3,4 \
  train.batch_size=32 train.until='1 epoch' memory_format=channels_last every.log='25 steps' every.evaluate='0.25 epochs' \
  every.spectra='0.25 epochs' every.sample='0.5 epochs' every.checkpoint='0.5 epochs' evaluation.samples=5000
noise mnist_discriminator_tuned
publish mnist_discriminator_tuned
publish mnist_discriminator_tuned_tuning
