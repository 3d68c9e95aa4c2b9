#!/usr/bin/env bash
# Does spectral normalization need more than one power iteration, and how does it stand large and small batches beside batch
# normalization and WGAN-GP? As many images in every run, so that small batches take more steps, at one setting for all.
source "$(dirname "$0")/study.sh"
common=(dataset=mnist architecture=dcgan architecture.width=16 optimizer.lr=1e-3 train.batch_size=16,64,256 seed=0,1,2
  train.until='1 epoch' memory_format=channels_last every.log='6400 images' every.evaluate='0.25 epochs' every.spectra='0.25 epochs'
  every.sample='0.5 epochs' every.checkpoint='0.5 epochs' evaluation.samples=5000)
sweep batch_and_iterations normalization=spectral normalization.discriminator.power_iterations=1,5,10 loss=hinge "${common[@]}"
sweep batch_and_iterations normalization=none,batch loss=hinge "${common[@]}"
sweep batch_and_iterations normalization=none loss=wasserstein penalty=wgan_gp "${common[@]}"
one_iteration=(--baseline normalization.discriminator=spectral normalization.discriminator.power_iterations=1)
noise batch_and_iterations
publish batch_and_iterations --within train.batch_size "${one_iteration[@]}"
again batch_and_iterations over_batches "${one_iteration[@]}" train.batch_size=64
