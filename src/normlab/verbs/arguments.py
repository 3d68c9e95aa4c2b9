"""How the verbs read their words: argparse, but a mistake is one line, as everywhere."""

import argparse
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NoReturn

from normlab.errors import ConfigurationError


def modules(text: str) -> tuple[str, ...]:
    """Return the names of modules in a list of them, with brackets or without."""
    return tuple(name.strip() for name in text.strip("[]").split(",") if name.strip())


def existing_folders(words: Iterable[str]) -> list[Path]:
    """Return the folders that words name; raise ConfigurationError for one that is none."""
    folders = [Path(word) for word in words]
    for folder in folders:
        if not folder.is_dir():
            remedy = "name a run's folder, or one above it such as outputs"
            raise ConfigurationError(str(folder), "is no folder", remedy)
    return folders


def keys_of(overrides: Iterable[str]) -> list[str]:
    """Return the keys of overrides."""
    return [word.partition("=")[0].lstrip("+~") for word in overrides]


def other_keys(overrides: Iterable[str], taken: Collection[str]) -> list[str]:
    """Return the keys of overrides that are none of those taken, nor below one."""
    return [key for key in keys_of(overrides) if not any(key == each or key.startswith(f"{each}.") for each in taken)]


class Arguments(argparse.ArgumentParser):
    """The words of a verb; raises ConfigurationError for those that it does not take."""

    def __init__(self, verb: str, description: str | None = None, add_help: bool = True) -> None:
        super().__init__(f"normlab {verb}", description=description, add_help=add_help, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        remedy = f"`{self.prog} --help` shows how"
        if message.startswith("argument "):
            option, _, problem = message.removeprefix("argument ").partition(": ")
            raise ConfigurationError(option, problem, remedy)
        raise ConfigurationError(self.prog.removeprefix("normlab "), message, remedy)
