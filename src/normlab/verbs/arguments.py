"""How the verbs read their words: argparse, but a mistake is one line, as everywhere."""

import argparse
from typing import NoReturn

from normlab.errors import ConfigurationError


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
