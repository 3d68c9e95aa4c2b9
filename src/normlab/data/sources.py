"""The data sets by name: importing this module registers them all. Each is a function of its settings."""

from normlab.data import arrays, celeba, cifar, digits, gaussians, image_folder, lsun, mnist, stacked_mnist, stl10
from normlab.data.catalogue import DATASETS

__all__ = [
    "DATASETS",
    "arrays",
    "celeba",
    "cifar",
    "digits",
    "gaussians",
    "image_folder",
    "lsun",
    "mnist",
    "stacked_mnist",
    "stl10",
]
