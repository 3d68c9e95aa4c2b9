"""The folder of what runs share."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder for what runs share: `$NORMLAB_CACHE`, else `normlab` in the user's cache folder."""
    chosen = os.environ.get("NORMLAB_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "normlab"
