#!/usr/bin/env bash
# How many of a ring's eight modes does a small network find, by the normalization of its discriminator?
source "$(dirname "$0")/study.sh"
sweep toy_modes dataset=gaussians architecture=mlp loss=hinge optimizer.lr=5e-4 train.batch_size=256 \
  normalization=none,batch,layer,group,weight,weight_strict,adaptive,spectral,scaled_spectral,spectral_gamma \
  "seed=0,1,2,3,4,5,6,7,8,9" train.until='2000 steps' every.log='50 steps' every.evaluate='500 steps' \
  every.spectra='500 steps' every.sample='1000 steps' every.checkpoint='1000 steps' evaluation.samples=2500
noise toy_modes
publish toy_modes --metric modes
