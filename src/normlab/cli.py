"""The command line: finds the verb, and turns whatever goes wrong into one line and an exit code."""

import importlib
import logging
import os
import signal
import sys

from normlab.errors import INTERRUPTED, ConfigurationError, NormlabError
from normlab.registry import unknown

VERBS = {
    "train": "train a run; with -m sweep over several",
    "status": "show how runs stand",
    "list": "show every part there is, its parameters and defaults",
    "sample": "draw images from a trained generator",
    "verify": "check the checkpoints of a run",
}

USAGE = """usage: normlab VERB ...

{verbs}

normlab train                                    about a minute on digits, with every default
normlab train dataset=mnist normalization=layer  change what you like
normlab train -m normalization=none,batch,spectral seed=0,1,2
normlab train --cfg job                          every setting of a run
"""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run the verb that the arguments name and return the exit code; every error a person can mend is one line."""
    debug = "debug=true" in arguments
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("normlab").setLevel(logging.INFO)
    try:
        exit_code = _dispatch(arguments)
        sys.stdout.flush()  # here, where a reader that has gone is expected, and not at the end of the process
        return exit_code
    except NormlabError as error:
        if debug:
            logging.exception("")
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if debug:
            logging.exception("")
        print(f"error: normlab: {type(error).__name__}: {error} — a bug; debug=true shows where", file=sys.stderr)
        return 1


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE.format(verbs="\n".join(f"  {verb:<8} {text}" for verb, text in VERBS.items())), end="")
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        raise ConfigurationError.of([unknown("VERB", verb, list(VERBS))])
    return importlib.import_module(f"normlab.verbs.{verb}").run(rest)
