"""normlab: which normalization makes GAN training stable, fast and good, and by how much?"""

__version__ = "0.1.0"
