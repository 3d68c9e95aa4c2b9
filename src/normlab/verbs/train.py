"""`normlab train`: one run, new or continued; a sweep with -m; Hydra's own flags passed on to Hydra."""

import argparse
from typing import Any

from normlab import composition, sweeps
from normlab.errors import DONE, ConfigurationError


def run(arguments: list[str]) -> int:
    """Train what the command line describes and return the exit code."""
    arguments = ["--config-dir" if word == "-cd" else word for word in arguments]
    parser = argparse.ArgumentParser("normlab train", add_help=False, allow_abbrev=False)
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("--config-dir")
    parser.add_argument("--check", action="store_true")
    known, words = parser.parse_known_args(arguments)
    if known.multirun and known.check:
        raise ConfigurationError("--check", "looks at one run, not at a sweep", "leave out one of --check and -m")
    if any(word.startswith("-") for word in words):
        composition.refuse(composition.compose([word for word in words if "=" in word], known.config_dir)[1])
        composition.hand_to_hydra(arguments, task=_refuse_to_train)
        return DONE
    if known.multirun:
        return sweeps.run(arguments, words, known.config_dir)

    settings, complaints = composition.configure(words, known.config_dir)
    # Only here, since importing torch takes seconds.
    from normlab import launching

    settings = launching.checked(settings, complaints)
    return launching.preview(settings) if known.check else launching.launch(settings)


def _refuse_to_train(tree: Any) -> None:
    raise ConfigurationError("train", "got a flag of Hydra that changes nothing here", "see `normlab train --help`")
