#!/usr/bin/env bash
# Which normalization of the discriminator makes a DCGAN on MNIST good, steady and fast? The generator has batch normalization
# in every arm, the discriminator one of nine techniques, at one setting for all. The learning rate is the middle one of
# 5e-4, 1e-3 and 2e-3, of which batch and spectral normalization were tried at each, on other seeds.
source "$(dirname "$0")/study.sh"
sweep mnist_discriminator dataset=mnist architecture=dcgan architecture.width=16 loss=hinge optimizer.lr=1e-3 \
  normalization=none,batch,layer,instance,weight,weight_strict,adaptive,spectral,bidirectional_scaled_spectral \
  seed=0,1,2,3,4 train.batch_size=32 train.until='1 epoch' memory_format=channels_last every.log='25 steps' \
  every.evaluate='0.25 epochs' every.spectra='0.125 epochs' every.sample='0.5 epochs' every.checkpoint='0.5 epochs' \
  evaluation.samples=5000
noise mnist_discriminator
publish mnist_discriminator
