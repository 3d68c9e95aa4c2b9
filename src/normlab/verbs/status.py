"""`normlab status DIR...`: how runs stand."""

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from normlab import config
from normlab.errors import DONE, ConfigurationError
from normlab.outputs import plain_json
from normlab.reports import tables
from normlab.reports.runs import Run, find_runs
from normlab.reports.screen import Screen
from normlab.sweeps.record import is_sweeping
from normlab.verbs.arguments import Arguments, existing_folders
from normlab.verbs.continuing import how_to_continue

WATCH_SECONDS = 2.0


def run(arguments: list[str]) -> int:
    """Print a row for each run in or below the folders, again and again with --watch."""
    parser = Arguments("status", "How runs stand.")
    outputs = str(config.outputs_folder())
    help = f"a run, or a folder with runs somewhere below it (default {outputs})"
    parser.add_argument("folders", nargs="*", metavar="DIR", default=[outputs], help=help)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    help = f"show the table again every so often (default {WATCH_SECONDS:g}) until no run is running"
    parser.add_argument("--watch", nargs="?", type=_interval, const=WATCH_SECONDS, metavar="SECONDS", help=help)
    options = parser.parse_args(_with_interval(arguments))
    if options.json and options.watch is not None:
        raise ConfigurationError("--watch", "shows a table, not JSON", "leave out one of --watch and --json")
    folders = existing_folders(options.folders)
    if options.watch is not None:
        return _watch(folders, options.watch)
    runs = list(find_runs(folders))
    if options.json:
        print(plain_json.dump({"runs": [as_json(run) for run in runs]}))
        return DONE
    for line in (_table(runs), *_protocols(runs)):
        print(line)
    for run in runs:
        if command := how_to_continue(run):
            print(f"to continue: {command}")
    return DONE


def as_json(run: Run) -> dict[str, Any]:
    return {
        "path": str(run.path),
        "state": run.state,
        "arm": None if run.settings is None else run.settings.label,
        "seed": None if run.settings is None else run.settings.seed,
        "status": None if run.status is None else asdict(run.status),
        "evaluation": run.last_evaluation(),
        "continue": how_to_continue(run),
    }


def _watch(folders: list[Path], seconds: float) -> int:
    """Show the table until no run is running and no sweep will start one, or until Ctrl-C."""
    screen = Screen()
    try:
        while True:
            runs = list(find_runs(folders))
            lines, notes = _table(runs).splitlines(), _protocols(runs)
            if screen.is_terminal:
                screen.draw([*_most_telling(lines, runs, screen.room() - len(notes)), *notes])
            else:
                print(*lines, *notes, "", sep="\n", flush=True)
            if all(run.state != "running" for run in runs) and not any(map(is_sweeping, folders)):
                return DONE
            time.sleep(seconds)
    except KeyboardInterrupt:
        return DONE


def _table(runs: list[Run]) -> str:
    return tables.render([{**run.summary(), "run": str(run.path)} for run in runs])


def _protocols(runs: list[Run]) -> list[str]:
    """Return a line for each data set whose runs are scored by different protocols: which have which.

    Those of the protocol that most have are counted, the others named.
    """
    by_data: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        if run.settings is not None and (protocol := run.last_evaluation().get("protocol")) is not None:
            by_data.setdefault(run.settings.dataset.name, {}).setdefault(protocol, []).append(str(run.path))
    lines: list[str] = []
    for data, own in by_data.items():
        if len(own) > 1:
            most, *others = sorted(own, key=lambda protocol: len(own[protocol]), reverse=True)
            told = [f"{protocol} of {', '.join(own[protocol])}" for protocol in others]
            told.append(f"{most} of the other {len(own[most])}")
            lines.append(f"scores of {data} by different protocols do not compare: {'; '.join(told)}")
    return lines


def _most_telling(lines: list[str], runs: list[Run], room: int) -> list[str]:
    """Return the table's lines that fit, the runs that are running first if not all do."""
    if len(lines) <= room or not runs:
        return lines
    head, rows = lines[:2], lines[2:]
    chosen = sorted(range(len(rows)), key=lambda row: runs[row].state != "running")[: max(1, room - 3)]
    return [*head, *(rows[row] for row in sorted(chosen)), f"... and {len(rows) - len(chosen)} more"]


def _with_interval(arguments: list[str]) -> list[str]:
    """Let `--watch DIR` name a folder: what follows is the interval only where it is a number."""
    words: list[str] = []
    for word, following in zip(arguments, [*arguments[1:], ""], strict=False):
        bare = word == "--watch" and not following.replace(".", "", 1).isdecimal()
        words.append(f"--watch={WATCH_SECONDS:g}" if bare else word)
    return words


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"got {text!r}, no number of seconds from 0.1 to 86400")
    return seconds
