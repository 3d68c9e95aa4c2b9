"""The techniques: importing this package registers them all."""

from normlab.normalizations import activation, adaptive, output, spectral, translated, weight
from normlab.normalizations.base import TECHNIQUES, Technique

__all__ = ["TECHNIQUES", "Technique", "activation", "adaptive", "output", "spectral", "translated", "weight"]
