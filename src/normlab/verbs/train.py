"""`normlab train`: one run, new or continued; a sweep with -m; Hydra's own flags passed on to Hydra."""

import argparse
import logging
from dataclasses import replace
from pathlib import Path

from normlab import composition, config, sweeps
from normlab.config import RunConfig
from normlab.errors import DONE, Complaint, ConfigurationError

log = logging.getLogger(__name__)


def run(arguments: list[str]) -> int:
    """Train what the command line describes and return the exit code."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-cd", "--config-dir")
    parser.add_argument("--check", action="store_true")
    known, words = parser.parse_known_args(arguments)
    if known.multirun and known.check:
        raise ConfigurationError("--check", "looks at one run, not at a sweep", "leave out one of --check and -m")
    if known.multirun:
        return sweeps.run(arguments, words, known.config_dir)
    if any(word.startswith("-") for word in words):
        composition.refuse(composition.compose([word for word in words if "=" in word], known.config_dir)[1])
        composition.hand_to_hydra(arguments, task=lambda tree: None)
        return DONE

    settings = configure(words, known.config_dir)
    # Only now, with all that can be refused without it refused, the seconds that importing torch takes.
    from normlab import launching

    launching.check(settings)
    return launching.preview(settings) if known.check else launching.launch(settings)


def configure(words: list[str], config_dir: str | None = None) -> RunConfig:
    """Return the configuration of the overrides, or of the run that `resume=` names; raise ConfigurationError."""
    resumed = [word for word in words if word.startswith("resume=") and word not in ("resume=", "resume=null")]
    if resumed:
        return _resumed(resumed[-1].removeprefix("resume="), [word for word in words if word not in resumed])
    tree, complaints = composition.compose(words, config_dir)
    settings, more = config.read(tree)
    composition.refuse(complaints + more)
    assert settings is not None
    return settings


def _resumed(folder: str, words: list[str]) -> RunConfig:
    """Take a run's own configuration, and of the overrides those that do not change what it computes."""
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise ConfigurationError("resume", f"there is no run in '{folder}'", "name a folder that holds a config.yaml")
    saved = config.load(path)
    refused = [word for word in words if not config.is_free(word.lstrip("+").partition("=")[0])]
    composition.refuse(
        [
            Complaint(
                word.partition("=")[0], "cannot change in a run that has begun", "leave it out, or start a new run"
            )
            for word in refused
        ]
    )
    tree, complaints = composition.override(config.write(saved), words)
    settings, more = config.read(tree)
    composition.refuse(complaints + more)
    assert settings is not None
    return replace(settings, resume=str(Path(folder).resolve()))
