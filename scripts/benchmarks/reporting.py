"""How long a person waits for the report of many runs, and for how they stand."""

import argparse
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.options import add_common, positive
from benchmarks.report import Report
from benchmarks.runs import CPU, scratch_folder
from normlab import config
from normlab.config import Part
from normlab.errors import ConfigurationError
from normlab.outputs.environment import describe_environment
from normlab.outputs.run_dir import RunDir
from normlab.outputs.sinks import JsonLines

CLAIMS = {"report": 60.0, "status": 5.0}  # seconds
CLAIMED_BYTES = 10**9
PUBLISHED = Path(__file__).parents[2] / "docs" / "results" / "mnist_discriminator" / "runs"
TECHNIQUES = ("none", "batch", "layer", "instance", "group", "weight", "weight_mean_only", "adaptive", "spectral")
RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3)
SPREAD = 0.1  # of the logarithm of a value, between runs
# A process counts what the one held that it was started by, so this one, which holds little, stands between.
PROBE = """
import resource, subprocess, sys, time
began = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
POINTS = ("step", "epoch", "images_seen", "seconds")
Row = Mapping[str, Any]


def reporting(arguments: argparse.Namespace) -> Report:
    """Make up a study from one published run and time `normlab report --out` and `normlab status` on it, each cold.

    The made-up runs differ in technique, learning rate and seed, have as many rows of metrics as asked for, and all
    else as often as the run they are made from, its sample grids included.
    """
    template = next(iter(sorted(PUBLISHED.glob("*seed0*"))), None)
    if template is None:
        raise ConfigurationError(str(PUBLISHED), "holds no run to make others from", "take a whole checkout")
    with scratch_folder() as folder:
        size = make_up(folder / "study", template, arguments.runs, arguments.rows)
        commands = {
            "report": ["report", str(folder / "study"), "--out", str(folder / "report")],
            "status": ["status", str(folder / "study")],
        }
        taken = {name: measured(words, arguments.threads) for name, words in commands.items()}
    values: dict[str, Any] = {
        "benchmark": "reporting",
        "runs": arguments.runs,
        "rows": arguments.rows,
        "bytes_of_runs": size,
        "seconds": {name: seconds for name, (seconds, _) in taken.items()},
        "most_bytes": {name: most for name, (_, most) in taken.items()},
        "claims": {**CLAIMS, "bytes": CLAIMED_BYTES},
        "environment": describe_environment(CPU, "fp32"),
    }
    lines = [
        f"{arguments.runs} runs with {arguments.rows:,} rows of metrics each, {size / 1e6:.0f} MB",
        *(
            f"  {name:<8}{seconds:6.1f} s of {CLAIMS[name]:g} claimed, {most / 1e6:5.0f} MB of {CLAIMED_BYTES / 1e6:g}"
            for name, (seconds, most) in taken.items()
        ),
    ]
    return Report(values, lines)


def make_up(folder: Path, template: Path, count: int, rows: int) -> int:
    """Make `count` runs from one and return how many bytes they have."""
    source = RunDir(template)
    settings = config.load(source.config)
    series: dict[str, Sequence[Row]] = {
        "metrics": list(_stretched(JsonLines(source.metrics).rows(), rows)),
        "evaluations": JsonLines(source.evaluations).rows(),
        "spectra": JsonLines(source.spectra).rows(),
    }
    arms = list(itertools.product(TECHNIQUES, RATES))
    random = np.random.default_rng(0)
    for number in range(count):
        seed, place = divmod(number, len(arms))
        technique, rate = arms[place]
        made = RunDir(folder / f"{technique}-{rate}-seed{seed}")
        made.create()
        normalization = replace(settings.normalization, discriminator=Part(name=technique))
        optimizer = replace(settings.optimizer, params={**settings.optimizer.params, "lr": rate})
        changed = replace(settings, seed=seed, normalization=normalization, optimizer=optimizer)
        made.config.write_text(config.to_yaml(changed))
        for name in ("status", "environment", "layers"):
            shutil.copyfile(getattr(source, name), getattr(made, name))
        factor = float(np.exp(random.normal(0, SPREAD)))
        for name, its_rows in series.items():
            file = JsonLines(getattr(made, name))
            for row in its_rows:
                file.append(_scaled(row, factor))
        if seed == 0:
            shutil.copytree(source.samples, made.samples, dirs_exist_ok=True)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _stretched(rows: Sequence[Row], count: int) -> Iterator[Row]:
    """Yield `count` rows with the values of fewer, evenly up to the same end."""
    for place in range(count):
        row, share = rows[place * len(rows) // count], (place + 1) / count
        yield {**row, **{key: type(row[key])(rows[-1][key] * share) for key in POINTS}}


def _scaled(row: Row, factor: float) -> Row:
    kept = (*POINTS, "flags")
    return {
        key: value * factor if isinstance(value, float) and key not in kept else value for key, value in row.items()
    }


def measured(words: list[str], threads: int) -> tuple[float, int]:
    """Return the seconds and the most resident bytes of a cold `normlab` process, on Linux."""
    probe = [sys.executable, "-c", PROBE, sys.executable, "-m", "normlab", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    seconds, kilobytes = subprocess.run(probe, check=True, stdout=subprocess.PIPE, env=environment).stdout.split()
    return float(seconds), int(kilobytes) * 1024


def add_options(parser: argparse.ArgumentParser) -> None:
    add_common(parser, reporting)
    parser.add_argument("--runs", type=positive, default=500)
    parser.add_argument("--rows", type=positive, default=1000)
