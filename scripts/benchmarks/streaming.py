"""Images that are read and decoded on the way: how fast by threads, and what training on them costs."""

import argparse
import itertools
import os
import statistics
from collections.abc import Callable
from concurrent.futures import wait
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

from benchmarks.options import add_common, positive
from benchmarks.report import Report
from benchmarks.runs import CPU, run_settings
from benchmarks.timing import AGAIN, Ratio, ratio_of, time_rounds, window_of
from normlab import assemble
from normlab.data.batches import RealBatches
from normlab.outputs.environment import describe_environment
from normlab.training.step import Step

PHOTOGRAPH = (341, 256)  # pixels across and down, as most of LSUN's have
QUALITY = 75  # of JPEG, as LSUN's have
THREADS = (1, 2, 4, 8)


def streaming(arguments: argparse.Namespace) -> Report:
    """Time batches of a folder of photographs as the training takes them, and steps on those against steps in memory.

    The photographs are made up, in the size and weight of LSUN's; the disk's cache holds them. Wall time is what counts
    here: what is read while the network trains costs only where it is waited for, or takes a core.
    """
    with TemporaryDirectory() as folder, patch.dict(os.environ, {"NORMLAB_CACHE": str(Path(folder) / "cache")}):
        root = Path(folder) / "photographs"
        weight = write_photographs(root, arguments.photographs)
        sizes = {size: measured(arguments, root, size) for size in arguments.size or (64, 128)}
    controls = [each["control"] for table in sizes.values() for each in (table["reading"], table["training"])]
    values: dict[str, Any] = {
        "benchmark": "streaming",
        **max(Ratio(**table["training"]["wall_ratio"]) for table in sizes.values()).headline(),
        "control": max(controls, key=lambda ratio: abs(ratio - 1)),
        "rounds": arguments.rounds,
        "sizes": sizes,
        "photographs": {"count": arguments.photographs, "bytes": weight, "pixels": PHOTOGRAPH},
        "settings": {key: getattr(arguments, key) for key in ("batch", "width", "batches", "steps", "threads")},
        "environment": describe_environment(CPU, "fp32"),
    }
    lines = [
        f"{arguments.photographs:,} photographs of {PHOTOGRAPH[0]}x{PHOTOGRAPH[1]} px, {weight / 1000:.0f} kB each, "
        f"read, decoded and brought to size on the way; batches of {arguments.batch}"
    ]
    for size, table in sizes.items():
        lines += _lines(size, table)
    return Report(values, lines)


def write_photographs(root: Path, count: int) -> float:
    """Write made-up photographs, soft shapes with grain, and return how many bytes one has."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    across, down = PHOTOGRAPH
    grain = rng.normal(0, 8, (down, across, 1)).astype(np.float32)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 11, 3), dtype=np.uint8))
        soft = np.asarray(coarse.resize(PHOTOGRAPH, Image.Resampling.BICUBIC), np.float32)
        pixels = (soft + np.roll(grain, number, axis=0)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{number:06}.jpg", quality=QUALITY)
    return statistics.fmean(file.stat().st_size for file in root.iterdir())


def measured(arguments: argparse.Namespace, root: Path, size: int) -> dict[str, Any]:
    return {"reading": reading(arguments, root, size), "training": training(arguments, root, size)}


def reading(arguments: argparse.Namespace, root: Path, size: int) -> dict[str, Any]:
    """Return the images a second of the reading alone, by the threads that decode."""
    readers = {threads: in_order(opened(words_of(arguments, root, size, threads))) for threads in THREADS}
    windows = {str(threads): window_of(read, arguments.batches) for threads, read in readers.items()}
    windows[AGAIN] = windows["1"]
    for window in windows.values():
        window()
    seconds = time_rounds(windows, arguments.rounds)
    wall = {name: [window.wall for window in taken] for name, taken in seconds.items()}
    images = arguments.batch * arguments.batches
    control = ratio_of(wall[AGAIN], wall["1"])
    cpu = statistics.median(window.cpu for window in seconds["1"])
    rows = [
        {
            "threads": threads,
            "images_per_second": ratio_of([images] * arguments.rounds, wall[str(threads)])._asdict(),
            "of_one_thread": ratio_of(wall["1"], wall[str(threads)])._asdict(),
        }
        for threads in THREADS
    ]
    return {
        **{"rows": rows, "cpu_milliseconds_per_image": 1000 * cpu / images},
        **{"control": control.median, "control_low": control.low, "control_high": control.high},
    }


def training(arguments: argparse.Namespace, root: Path, size: int) -> dict[str, Any]:
    """Return what a step on streamed images takes against one on the same images in memory."""
    streamed = built(words_of(arguments, root, size))
    packed = [built([*words_of(arguments, root, size), "dataset.streamed=false"]) for _ in range(2)]
    arms = {"streamed": streamed, "in memory": packed[0], AGAIN: packed[1]}
    windows = {name: partial(take, step, arguments.steps) for name, step in arms.items()}
    for window in windows.values():
        window()
    seconds = time_rounds(windows, arguments.rounds)
    wall = {name: [window.wall for window in taken] for name, taken in seconds.items()}
    cpu = {name: [window.cpu for window in taken] for name, taken in seconds.items()}
    control = ratio_of(wall[AGAIN], wall["in memory"])
    images = arguments.steps * arguments.batch
    return {
        "wall_ratio": ratio_of(wall["streamed"], wall["in memory"])._asdict(),
        "cpu_ratio": ratio_of(cpu["streamed"], cpu["in memory"])._asdict(),
        "images_per_second": {name: images / statistics.median(times) for name, times in wall.items()},
        **{"control": control.median, "control_low": control.low, "control_high": control.high},
    }


def take(step: Step, steps: int) -> None:
    for _ in range(steps):
        step.take()
    settle(step.real)


def words_of(arguments: argparse.Namespace, root: Path, size: int, workers: int | None = None) -> list[str]:
    return [
        *("dataset=image_folder", f"dataset.root={root}", f"dataset.image_size={size}", "dataset.streamed=true"),
        *([] if workers is None else [f"dataset.workers={workers}"]),
        *(f"architecture.width={arguments.width}", f"train.batch_size={arguments.batch}", "evaluation=none"),
    ]


def opened(words: list[str]) -> RealBatches:
    settings = run_settings(words)
    return assemble.open_batches(settings, assemble.open_dataset(settings), CPU)


def built(words: list[str]) -> Step:
    settings = run_settings(words)
    dataset = assemble.open_dataset(settings)
    return assemble.build_step(settings, dataset, assemble.open_batches(settings, dataset, CPU), CPU)


def in_order(real: RealBatches) -> Callable[[int], None]:
    """Return what takes so many batches more, in the order of the training."""
    positions = itertools.count(0, real.batch_size)

    def read(batches: int) -> None:
        for position in itertools.islice(positions, batches):
            real.batch(position)
        settle(real)

    return read


def settle(real: RealBatches) -> None:
    """Wait until all is there that is read ahead, so that each window pays for as many batches as it takes."""
    if real.resident is None:
        wait(real.ahead(0, real.batch_size).batches.values())


def _lines(size: int, table: dict[str, Any]) -> list[str]:
    of_reading, of_training = table["reading"], table["training"]
    ratio, speeds = of_training["wall_ratio"], of_training["images_per_second"]
    rows = [
        f"    {row['threads']} thread(s)  {row['images_per_second']['median']:8,.0f} images/s, "
        f"{row['of_one_thread']['median']:.2f} of one"
        for row in of_reading["rows"]
    ]
    return [
        f"  {size} px: {of_reading['cpu_milliseconds_per_image']:.2f} ms of CPU an image; "
        f"noise control {of_reading['control']:.3f}",
        *rows,
        f"    training  {speeds['streamed']:,.0f} images/s against {speeds['in memory']:,.0f} in memory; time, ratio "
        f"{ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]; noise control {of_training['control']:.3f}",
    ]


def add_options(parser: argparse.ArgumentParser) -> None:
    add_common(parser, streaming)
    parser.add_argument("--rounds", type=positive, default=6)
    parser.add_argument("--photographs", type=positive, default=2000)
    parser.add_argument("--size", type=positive, action="append", help="pixels; may be given several times; 64 and 128")
    parser.add_argument("--batch", type=positive, default=64)
    parser.add_argument("--batches", type=positive, default=5, help="of a window of reading")
    parser.add_argument("--steps", type=positive, default=2, help="of a window of training")
    parser.add_argument("--width", type=positive, default=16)
