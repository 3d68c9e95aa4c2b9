#!/usr/bin/env bash
# Which normalization of the discriminator makes a DCGAN on MNIST good, steady and fast? The generator has batch normalization
# in every arm, the discriminator one of ten techniques, at one setting for all: Adam at 2e-4, the hinge loss, width 16.
source "$(dirname "$0")/study.sh"
sweep mnist_discriminator dataset=mnist architecture=dcgan architecture.width=16 loss=hinge optimizer.lr=2e-4 \
  normalization=none,batch,layer,instance,group,weight,weight_strict,adaptive,spectral,bidirectional_scaled_spectral \
  seed=0,1,2,3,4 train.until='2 epochs' every.log='25 steps' every.evaluate='0.25 epochs' every.spectra='0.125 epochs' \
  every.sample='0.5 epochs' every.checkpoint='1 epoch' evaluation.samples=5000
publish mnist_discriminator
