#!/usr/bin/env bash
# Which techniques survive which rates? Miyato's settings A to F (rate, betas, discriminator steps), and C at forty times its rate,
# on MNIST at CPU size, with half of their batch.
source "$(dirname "$0")/study.sh"
common=(dataset=mnist architecture=dcgan architecture.width=16 architecture.latent_size=100 train.batch_size=32
  normalization=none,batch,layer,weight,spectral seed=0,1,2 train.until='800 steps' memory_format=channels_last every.log='25 steps'
  every.evaluate='200 steps' every.spectra='200 steps' every.sample='400 steps' every.checkpoint='400 steps' evaluation.samples=5000)
for letter in a b c d e f; do
  sweep lr_stress experiment=miyato_cnn_$letter "${common[@]}"
done
sweep lr_stress experiment=miyato_cnn_c optimizer.lr=8e-3 "${common[@]}"
noise lr_stress
publish lr_stress --within optimizer train.discriminator_steps
again lr_stress over_rates --baseline normalization.discriminator=none optimizer.lr=2e-4
