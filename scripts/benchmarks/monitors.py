"""Training with all that is measured on the way against training with nothing of it."""

import argparse
from collections.abc import Callable
from contextlib import closing
from unittest.mock import patch

from benchmarks.options import add_common, positive, whole_intervals
from benchmarks.report import Report
from benchmarks.runs import CPU, WARM_UP, Windows, run_settings, scratch_folder, without_extras
from benchmarks.timing import Ratio, Seconds, medians_of, ratio_of, time_rounds, window_of
from normlab import assemble
from normlab.config import RunConfig
from normlab.errors import ConfigurationError
from normlab.outputs.environment import describe_environment
from normlab.training.pace import pace_of


def monitors(arguments: argparse.Namespace) -> Report:
    """Time training with what is measured of layers and scores, at its default rates, against training without.

    Of rows of scalars, which both have, one arm has what the other does not: estimates of sigma, accuracy and spread of
    the scores. The exact spectra, their rows and their picture are timed on their own, and count once in as many steps
    as lie between two of them.
    """
    settings = run_settings(arguments.changes)
    materials = assemble.gather(settings, CPU)
    rate = settings.every.spectra
    if rate is None:
        raise ConfigurationError(
            "every.spectra", "is null, so that nothing is measured", "give steps, epochs or images"
        )
    between = pace_of(settings, len(materials.dataset.train)).steps(rate)
    plain = without_extras(settings)
    with (
        scratch_folder() as folder,
        closing(Windows(plain, materials, folder / "with")) as monitored,
        closing(Windows(plain, materials, folder / "without")) as bare,
        closing(Windows(plain, materials, folder / "again")) as again,
    ):
        arms = {
            "with": window_of(monitored.train, arguments.steps),
            "without": _unmonitored(window_of(bare.train, arguments.steps)),
            "again": _unmonitored(window_of(again.train, arguments.steps)),
            "measuring": lambda: monitored.trainer.measure(),
        }
        for run in (monitored, bare, again):
            run.train(WARM_UP)
        seconds = time_rounds(arms, arguments.rounds)
    return _monitors_report(arguments, settings, seconds, between)


def _unmonitored(window: Callable[[], None]) -> Callable[[], None]:
    def train() -> None:
        with (
            patch("normlab.training.spectra.estimate", lambda step: {}),
            patch("normlab.training.step.describe_scores", lambda real, fake: {}),
        ):
            window()

    return train


def _monitors_report(
    arguments: argparse.Namespace, settings: RunConfig, seconds: dict[str, list[Seconds]], between: int
) -> Report:
    windows = between / arguments.steps
    cpu = {name: [window.cpu for window in rounds] for name, rounds in seconds.items()}
    wall = {name: [window.wall for window in rounds] for name, rounds in seconds.items()}

    def ratio_with(time: dict[str, list[float]]) -> Ratio:
        whole = [windows * a + b for a, b in zip(time["with"], time["measuring"], strict=True)]
        return ratio_of(whole, [windows * each for each in time["without"]])

    ratio, wall_ratio, of_rows = ratio_with(cpu), ratio_with(wall), ratio_of(cpu["with"], cpu["without"])
    control = ratio_of(cpu["again"], cpu["without"])
    medians = {name: medians_of(rounds) for name, rounds in seconds.items()}
    values = {
        "benchmark": "monitors",
        **ratio.headline(),
        **{"control": control.median, "control_low": control.low, "control_high": control.high},
        "rounds": arguments.rounds,
        **{"wall_ratio": wall_ratio.median, "wall_low": wall_ratio.low, "wall_high": wall_ratio.high},
        **{"rows_ratio": of_rows.median, "rows_low": of_rows.low, "rows_high": of_rows.high},
        "steps_between": between,
        "seconds": {name: each._asdict() for name, each in medians.items()},
        "settings": {"changes": arguments.changes, "steps": arguments.steps, "threads": arguments.threads},
        "environment": describe_environment(CPU, settings.precision),
    }
    lines = [
        "training with all that is measured on the way, against training without",
        f"  {settings.label}, {between} steps between two measurements of {medians['measuring'].cpu:.3f} s, "
        f"{arguments.rounds} rounds of {arguments.steps} steps of {medians['without'].cpu / arguments.steps:.4f} s",
        f"  CPU time, ratio   {ratio}",
        f"  wall time, ratio  {wall_ratio}",
        f"  of rows alone     {of_rows}",
        f"  noise control     {control}  (without against itself, CPU time)",
    ]
    return Report(values, lines)


def add_options(parser: argparse.ArgumentParser) -> None:
    add_common(parser, monitors)
    parser.add_argument("--rounds", type=positive, default=9)
    parser.add_argument("--steps", type=whole_intervals, default=50, help="steps of a window, whole intervals of rows")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="settings of the run, by default the defaults")
