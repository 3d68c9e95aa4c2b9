"""The architectures: importing this package registers them all."""

from normlab.networks import dcgan, mlp, sngan_cnn, sngan_resnet, wn_resnet
from normlab.networks.network import ARCHITECTURES, Architecture, ImageSpec, Network

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "ImageSpec",
    "Network",
    "dcgan",
    "mlp",
    "sngan_cnn",
    "sngan_resnet",
    "wn_resnet",
]
