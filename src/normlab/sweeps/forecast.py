"""What a run will take, by what runs like it have taken; nothing is said where there are none."""

import statistics
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from normlab import config
from normlab.config import Part, RunConfig
from normlab.outputs import plain_json
from normlab.outputs.run_dir import RunDir
from normlab.outputs.sinks import JsonLines
from normlab.reports.runs import Run

_ELSEWHERE = ("dataset.root", "dataset.download")


def alike(settings: RunConfig, device: str, runs: Iterable[Run]) -> list[Run]:
    """Return the runs of the same data, architecture and precision on the same type of device.

    Those with the same technique in each network and the same batch tell most: if there are any, those alone.
    """
    comparable = [run for run in runs if run.settings is not None and _comparable(run.settings, settings)]
    comparable = [run for run in comparable if _device(run) == device]
    nearest = [run for run in comparable if run.settings is not None and _pair(run.settings) == _pair(settings)]
    return nearest or comparable


def images_per_second(runs: Sequence[Run]) -> float | None:
    """Return the median speed of training, pauses for evaluations not counted; None if none has measured any."""
    speeds = [speed for run in runs if (speed := _speed(run.path))]
    return statistics.median(speeds) if speeds else None


def training_images(runs: Sequence[Run]) -> int | None:
    """Return how many training images the runs had; None if there are none, or they disagree."""
    counts = {plain_json.read(RunDir(run.path).environment).get("dataset", {}).get("train") for run in runs}
    return counts.pop() if len(counts) == 1 else None


def bytes_on_disk(runs: Sequence[Run]) -> float | None:
    """Return the median size of the folders of those that are done; None if none is."""
    sizes = [_size(run.path) for run in runs if run.state == "done"]
    return statistics.median(sizes) if sizes else None


def folder_bytes(folder: Path) -> int:
    """Return how many bytes the files in a folder have."""
    total = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):  # a run may be at work there
            total += file.stat().st_size if file.is_file() else 0
    return total


# A run is like many others of its study, and a folder is read in full for either.
@cache
def _speed(path: Path) -> float | None:
    rows = JsonLines(RunDir(path).metrics).rows()
    measured = [row["images_per_second"] for row in rows if row.get("images_per_second")]
    return statistics.median(measured) if measured else None


@cache
def _size(path: Path) -> int:
    return folder_bytes(path)


def _comparable(one: RunConfig, other: RunConfig) -> bool:
    def data(part: Part) -> dict[str, object]:
        leaves = dict(config.flatten({"dataset": config.write(part)}))
        return {key: value for key, value in leaves.items() if key not in _ELSEWHERE}

    def computed(settings: RunConfig) -> tuple[object, ...]:
        return settings.architecture, settings.precision, settings.memory_format, settings.train.capture

    return data(one.dataset) == data(other.dataset) and computed(one) == computed(other)


def _pair(settings: RunConfig) -> tuple[str, str, int, int]:
    normalization, train = settings.normalization, settings.train
    return (
        *(normalization.generator.name, normalization.discriminator.name),
        *(train.batch_size, train.discriminator_steps),
    )


def _device(run: Run) -> str:
    """Return the type of device that a run was on last."""
    return str(plain_json.read(RunDir(run.path).environment).get("device", "")).partition(":")[0]
