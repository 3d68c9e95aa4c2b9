"""The techniques: importing this package registers them all."""

from normlab.normalizations import activation, spectral, weight
from normlab.normalizations.base import TECHNIQUES, Technique

__all__ = ["TECHNIQUES", "Technique", "activation", "spectral", "weight"]
