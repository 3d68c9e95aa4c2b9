"""normlab: which normalization makes GAN training stable, fast and good, and by how much?"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line starts without the seconds that importing torch takes
    from normlab.networks.network import Generator

__version__ = "0.1.0"


def load(source: str | Path) -> "Generator":
    """Return the trained generator of a run's folder or of a `generator.safetensors`, in evaluation mode on the CPU.

    It takes latents [n, generator.latent_size] to images [n, c, h, w] in [-1, 1]. Raises NormlabError where there is
    none.
    """
    from normlab import loading

    return loading.load(Path(source)).generator
