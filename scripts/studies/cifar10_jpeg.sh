#!/usr/bin/env bash
# Two architectures at full width on real colour images: CIFAR-10 as JPEGs in a folder, train/ and test/, a folder per class.
#   CIFAR10=FOLDER JOBS=8 scripts/studies/cifar10_jpeg.sh                              on a GPU, some ten minutes of an H100
#   CIFAR10=FOLDER JOBS=8 scripts/studies/cifar10_jpeg.sh train.until='128 epochs'     as long as Miyato et al.
#   CIFAR10=FOLDER scripts/studies/cifar10_jpeg.sh architecture.width=16 precision=fp32 train.until='1 epoch' \
#     every.{evaluate,spectra,sample,checkpoint}='0.5 epochs'                          small, for two CPU cores
source "$(dirname "$0")/study.sh"
sweep cifar10_jpeg dataset=image_folder dataset.root="${CIFAR10:?the folder that holds train/ and test/}" \
  seed=0,1,2 architecture=dcgan,sngan_cnn architecture.width=64 loss=hinge \
  normalization=none,batch,weight,spectral,bidirectional_scaled_spectral precision=bf16 memory_format=channels_last \
  train.until='6 epochs' every.log='100 steps' every.evaluate='1.5 epochs' every.spectra='3 epochs' every.sample='3 epochs' \
  every.checkpoint='3 epochs' evaluation.features=classifier evaluation.samples=10000 "$@"
noise cifar10_jpeg
publish cifar10_jpeg --within architecture
