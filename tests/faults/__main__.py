"""Make every trial of every kind, going on where an earlier call stopped, and print a table of figures.

python -m tests.faults [--short] [--kind KIND] [--out FOLDER] [--jobs N]
"""

import argparse
import importlib
import json
import multiprocessing
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from normlab.reports import tables
from tests.faults.driving import starts_cold

KINDS = ("kills", "mutations", "configurations", "valid", "hostile", "signals", "disks", "sweeps", "starts")


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.faults", description=__doc__)
    parser.add_argument("--short", action="store_true", help="a few trials of each kind")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this kind; may be given again")
    parser.add_argument("--out", type=Path, default=Path("outputs/.faults"), help="scratch folder, and the record")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time (default 2)")
    options = parser.parse_args()
    # A shell that starts this in the background lets it ignore Ctrl-C, and what starts cold would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ["NORMLAB_CACHE"] = str((options.out / "cache").resolve())
    record = options.out / "trials.jsonl"
    wanted = [(kind, number) for kind in options.kind or KINDS for number in numbers(kind, options.short)]
    done = {(row["kind"], row["number"]) for row in rows(record) if row["ok"]}
    make([trial for trial in wanted if trial not in done], options.out.resolve(), record, options.jobs)
    outcomes = [row for row in rows(record) if (row["kind"], row["number"]) in wanted]
    machine = f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"\n{machine}, torch {torch.__version__}")
    print(tables.render(summary(outcomes)))
    failed = [row for row in outcomes if not row["ok"]]
    for row in failed:
        print(f"\n{row['kind']} {row['number']}: {row['problem']}")
    return 1 if failed else 0


def numbers(kind: str, short: bool) -> range:
    """Return the numbers of a kind's trials: all, or a few that do not start cold."""
    module = importlib.import_module(f"tests.faults.{kind}")
    return range(1, 1 + module.SHORT) if short else range(module.FULL)


def make(wanted: list[tuple[str, int]], out: Path, record: Path, jobs: int) -> None:
    """Make trials, several at a time, and add a row for each to the record as it ends."""
    began = time.monotonic()
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        futures = [pool.submit(attempt, kind, number, out) for kind, number in wanted]
        for count, future in enumerate(as_completed(futures), 1):
            row = future.result()
            with record.open("a") as file:
                file.write(json.dumps(row) + "\n")
            if not row["ok"] or count % 25 == 0 or count == len(wanted):
                at = f"{time.monotonic() - began:6.0f} s  {count} of {len(wanted)}"
                print(f"{at}  {row['kind']} {row['number']} {'ok' if row['ok'] else 'FAILED'}", file=sys.stderr)


def attempt(kind: str, number: int, out: Path) -> dict[str, Any]:
    """Make one trial; what it raises is its outcome, and its folder then stays to be looked at."""
    module = importlib.import_module(f"tests.faults.{kind}")
    began = time.monotonic()
    problem, figures = None, {}
    try:
        figures = module.trial(number, fresh(out / f"{kind}-{number}"))
    except Exception:  # whatever goes wrong is to be counted, and the others made
        problem = traceback.format_exc()
    row = {"kind": kind, "number": number, "ok": problem is None, "seconds": round(time.monotonic() - began, 2)}
    return {**row, "problem": problem, "figures": figures}


def fresh(folder: Path) -> Path:
    """Return a folder that is not there."""
    aside = 0
    while folder.exists():
        aside += 1
        folder = folder.with_name(f"{folder.name.partition('.')[0]}.{aside}")
    return folder


def rows(record: Path) -> list[dict[str, Any]]:
    """Return the last row of each trial."""
    lines = record.read_text().splitlines() if record.exists() else []
    return list({(row["kind"], row["number"]): row for row in map(json.loads, lines)}.values())


def summary(outcomes: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row per kind: how many trials held, how many started cold, and the sum or most of each figure."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in outcomes:
        kinds.setdefault(row["kind"], []).append(row)
    return [
        {
            "kind": kind,
            "trials": len(made),
            "held": sum(row["ok"] for row in made),
            "cold": sum(starts_cold(row["number"], len(numbers(kind, short=False))) for row in made),
            "figures": ", ".join(f"{value:.4g} {name}" for name, value in totals(made).items()),
            "seconds": round(sum(row["seconds"] for row in made)),
        }
        for kind, made in kinds.items()
    ]


def totals(made: list[dict[str, Any]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for row in made:
        for name, value in row["figures"].items():
            both = figures.get(name, 0.0), float(value)
            figures[name] = max(both) if name.startswith("longest") or name.startswith("most") else sum(both)
    return figures


if __name__ == "__main__":
    sys.exit(main())
