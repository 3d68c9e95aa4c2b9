"""The command line: finds the verb, and turns whatever goes wrong into one line and an exit code."""

import importlib
import importlib.metadata
import logging
import os
import signal
import sys
from types import FrameType

from normlab import ranks
from normlab.errors import (
    INTERRUPTED,
    TERMINATED,
    TIME_LIMIT_REACHED,
    ConfigurationError,
    NormlabError,
    ResourceError,
    is_out_of_memory,
)
from normlab.registry import unknown
from normlab.signals import postponed

VERBS = {
    "train": "train a run; with -m sweep over several",
    "prepare": "ready a data set, its features and real statistics, ahead of time",
    "evaluate": "score the checkpoints of runs again",
    "score": "score one set of images against another",
    "status": "show how runs stand",
    "report": "compare runs: how good, how steady, how fast to get there",
    "list": "show every part there is, its parameters and defaults",
    "sample": "draw images from a trained generator",
    "verify": "check the folder of a run, its checkpoints above all",
    "clean": "drop from finished runs what only further training would need",
}

USAGE = """usage: normlab VERB ...

{verbs}

normlab train                                    about a minute on digits, with every default
normlab train dataset=mnist normalization=layer  change what you like
normlab train -m normalization=none,batch,spectral seed=0,1,2
normlab train --cfg job                          every setting of a run
"""


# What ends the program where it stands until training begins, which saves first (`training.stopping`).
ENDS: dict[int, int] = {signal.SIGTERM: TERMINATED, signal.SIGUSR1: TIME_LIMIT_REACHED}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    exit_code = run(sys.argv[1:] if arguments is None else arguments)
    # A KeyboardInterrupt that has passed through an `exec`, as imports make many, leaves a mark by which Python at its
    # end would kill itself with SIGINT rather than exit with the code; another `exec` takes the mark away.
    exec("")
    # Taking the process down needs a moment, in which a signal can end nothing any more but would leave a traceback.
    for number in (signal.SIGINT, *ENDS):
        signal.signal(number, signal.SIG_IGN)
    if ranks.current().count > 1:
        _leave(exit_code)
    sys.exit(exit_code)


def run(arguments: list[str]) -> int:
    """Run the verb that the arguments name and return the exit code; every error a person can mend is one line.

    Of several processes the first does so, and the others follow it as far as they are needed.
    """
    exit_code: str | int | None = 1
    try:
        exit_code = _run(arguments)
        return exit_code
    except SystemExit as left:
        exit_code = left.code
        raise
    finally:
        ranks.current().end(exit_code if isinstance(exit_code, int) else int(exit_code is not None))


def _run(arguments: list[str]) -> int:
    debug = "debug=true" in arguments
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("normlab").setLevel(logging.INFO)
    for number in ENDS:
        signal.signal(number, _end)
    try:
        if ranks.started() > 1:
            _join()
        exit_code = _dispatch(arguments)
        sys.stdout.flush()  # here, where a reader that has gone is expected, and not at the end of the process
        return exit_code
    except NormlabError as error:
        if debug:
            logging.exception("")
        print(error, file=sys.stderr)
        return error.exit_code
    except Ended as ended:
        print(
            f"ended by {signal.Signals(ended.number).name}; nothing was under way that could be lost", file=sys.stderr
        )
        return ENDS[ended.number]
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if debug:
            logging.exception("")
        if is_out_of_memory(error):
            print("error: normlab: out of memory — make room, or ask for less at a time", file=sys.stderr)
            return ResourceError.exit_code
        told = " ".join(str(error).split())
        print(f"error: normlab: {type(error).__name__}: {told} — a bug; debug=true shows where", file=sys.stderr)
        return 1


class Ended(BaseException):
    """A signal told the program to end while there was nothing to save; no Exception, so that nobody swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _end(number: int, frame: FrameType | None) -> None:
    # Once is enough: a second signal must not disturb what the first one makes undone.
    signal.signal(number, signal.SIG_IGN)
    raise Ended(number)


def _join() -> None:
    """Meet the other processes of the run; all but the first then do what that one says, until it ends them."""
    with postponed():
        from normlab import distributed, following

    if os.environ["RANK"] != "0":  # has nothing to say of it, and the first hears it too
        for number in ENDS:
            signal.signal(number, signal.SIG_DFL)
    team = distributed.join()
    if team.rank:
        distributed.leave_signals_to_the_first()
        following.follow(team)


def _leave(exit_code: int) -> None:
    """Exit without what takes apart the connections between processes, which waits for some that have gone."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(exit_code)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE.format(verbs="\n".join(f"  {verb:<8} {text}" for verb, text in VERBS.items())), end="")
        return 0
    if arguments[0] == "--version":
        print(f"normlab {importlib.metadata.version('normlab')}")
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        raise ConfigurationError.of([unknown("VERB", verb, list(VERBS))])
    with postponed():
        module = importlib.import_module(f"normlab.verbs.{verb}")
    return module.run(rest)
