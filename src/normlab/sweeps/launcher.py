"""The process that hands the runs of a sweep to Hydra's launcher: `python -m normlab.sweeps.launcher FOLDER JOB,JOB...`

It is a process of its own since launchers wait, each in its way, and what they do with signals differs.
"""

import sys
from pathlib import Path

from normlab import composition
from normlab.sweeps import job
from normlab.sweeps.record import Record


def main(folder: str, numbers: str) -> None:
    """Have Hydra start the runs of those numbers, and wait until they have ended."""
    sweep = Record(Path(folder)).read()
    quoted = "'" + folder.replace("\\", "\\\\").replace("'", "\\'") + "'"
    searching = [] if sweep.config_dir is None else ["--config-dir", sweep.config_dir]
    # Hydra knows the runs by their numbers alone; what they are stands in the sweep's folder.
    numbered = ["hydra.sweeper.params=null", f"+sweep.folder={quoted}", f"+sweep.job={numbers}"]
    words = ["-m", *searching, *sweep.hydra_words, f"hydra.sweep.dir={quoted}", *numbered]
    composition.hand_to_hydra(words, task=job.run)


if __name__ == "__main__":
    main(*sys.argv[1:])
