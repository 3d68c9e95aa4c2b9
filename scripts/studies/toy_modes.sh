#!/usr/bin/env bash
# How many of a ring's eight modes does a small network find, by the normalization of its discriminator? Orthogonal weights: from
# DCGAN's N(0, 0.02) a discriminator of this width that is not normalized says nothing for its first 1,000 steps.
source "$(dirname "$0")/study.sh"
sweep toy_modes dataset=gaussians architecture=mlp initialisation=orthogonal loss=hinge optimizer.lr=2e-4 train.batch_size=256 \
  normalization=none,batch,layer,group,weight,weight_strict,adaptive,spectral,scaled_spectral,spectral_gamma \
  "seed=0,1,2,3,4,5,6,7,8,9" train.until='3000 steps' every.log='50 steps' every.evaluate='750 steps' \
  every.spectra='750 steps' every.sample='1500 steps' every.checkpoint='1500 steps' evaluation.samples=2500
noise toy_modes
publish toy_modes --metric modes
again toy_modes good_share --metric good_share
