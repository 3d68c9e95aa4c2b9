#!/usr/bin/env bash
# Is bidirectional spectral normalization better than the one of Miyato et al. when both may choose their scale? The same five
# scales for both on three tuning seeds, the better of each on five others.
source "$(dirname "$0")/study.sh"
sweep scale_sweep dataset=mnist architecture=dcgan architecture.width=16 loss=hinge optimizer.lr=1e-3 \
  normalization=scaled_spectral,bidirectional_scaled_spectral normalization.discriminator.scale=1.0,1.4,2.0,2.8,4.0 \
  'tuning.keys=[normalization.discriminator.scale]' 'tuning.seeds=[1000,1001,1002]' seed=0,1,2,3,4 \
  train.batch_size=32 train.until='1 epoch' memory_format=channels_last every.log='25 steps' every.evaluate='0.25 epochs' \
  every.spectra='0.25 epochs' every.sample='0.5 epochs' every.checkpoint='0.5 epochs' evaluation.samples=5000
noise scale_sweep
publish scale_sweep --baseline normalization.discriminator=scaled_spectral
publish scale_sweep_tuning --baseline normalization.discriminator=scaled_spectral normalization.discriminator.scale=1.0
