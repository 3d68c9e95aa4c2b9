"""The architectures: importing this package registers them all."""

from normlab.networks import dcgan
from normlab.networks.network import ARCHITECTURES, Architecture, Network

__all__ = ["ARCHITECTURES", "Architecture", "Network", "dcgan"]
