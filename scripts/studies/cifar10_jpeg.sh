#!/usr/bin/env bash
# Two architectures on real colour images: CIFAR-10 as JPEGs in a folder, train/ and test/, a folder per class.
#   CIFAR10=FOLDER scripts/studies/cifar10_jpeg.sh                                       small, for two CPU cores
#   CIFAR10=FOLDER scripts/studies/cifar10_jpeg.sh architecture.width=64 train.until='100 epochs'     for a GPU
source "$(dirname "$0")/study.sh"
sweep cifar10_jpeg dataset=image_folder dataset.root="${CIFAR10:?the folder that holds train/ and test/}" \
  architecture=dcgan,sngan_cnn architecture.width=16 loss=hinge optimizer.lr=1e-3 \
  normalization=none,batch,weight,spectral,bidirectional_scaled_spectral seed=0,1,2 \
  train.batch_size=32 train.until='1 epoch' memory_format=channels_last every.log='25 steps' every.evaluate='0.25 epochs' \
  every.spectra='0.25 epochs' every.sample='0.5 epochs' every.checkpoint='0.5 epochs' evaluation.features=classifier \
  evaluation.samples=5000 "$@"
noise cifar10_jpeg
publish cifar10_jpeg --within architecture
