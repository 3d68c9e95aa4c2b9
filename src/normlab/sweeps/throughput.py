"""How many runs at a time a device trains the most images with: tried once, and kept for the sweeps after.

Runs share a device by processes, each with its share of the cores. The table depends on the machine and on what a step
costs, and on nothing else; so it is kept in the cache folder under both.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from normlab import config, threads
from normlab.config import RunConfig
from normlab.errors import ConfigurationError
from normlab.outputs import plain_json
from normlab.outputs.atomic import unwritable
from normlab.outputs.cache import cache_folder
from normlab.outputs.machine import cpu_name, of_gpus
from normlab.reports import tables
from normlab.sweeps import planning
from normlab.sweeps.job import die_with_parent
from normlab.sweeps.planning import Plan

GAIN = 1.1  # of the images per second of all runs together, below which more of them at a time are not worth it
SECONDS = 4.0
IMPLAUSIBLE = 1.5  # times as much as so many more runs could gain
# Settings that a step costs the same whatever they are.
_COST_NOTHING = (
    *("seed", "initialisation.", "evaluation."),
    *("optimizer.lr", "optimizer.betas", "optimizer.generator.", "optimizer.discriminator.", "optimizer.schedule."),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What so many runs at a time on one device came to.

    threads: of each.  images_per_second: of all together; 0 where it did not go.  memory_bytes: of each, on the device
    that it trains on.  fit: how many would have had room in the memory that was free.
    """

    at_once: int
    threads: int
    images_per_second: float
    memory_bytes: int
    fit: int


class Place(NamedTuple):
    """Where runs share: how many devices of this kind there are, and the GPU that is tried, as CUDA names it.

    visible: what a run that may choose gets as $CUDA_VISIBLE_DEVICES; None leaves it as it is.
    """

    devices: int = 1
    gpu: str | None = None
    visible: str | None = None


Try = Callable[[int], Row]


def settle(plan: Plan, attempt: Try | None = None) -> tuple[Plan, list[Row]]:
    """Return a sweep's plan with a number of runs at a time where that was left open, and the table it was chosen by.

    It goes by the first run and by how many there are, whichever are missing: as the number says how many threads each
    has, the same command is to choose the same again.
    """
    if not planning.is_open(plan.launcher):
        return plan, []
    settings, place = plan.runs[0].settings, place_of(plan.runs[0].settings)
    most, kept = _most(plan, place), _file(settings, place)
    rows = _read(kept)
    if any(run.ended is None for run in plan.runs) and most > 1:
        if next_count(rows, most) is not None:
            print("trying how many runs at a time are best, by the training step of #0", flush=True)
            rows = measure(most, attempt or (lambda count: try_out(settings, count, place)), rows)
            _keep(kept, settings, place, rows)
        print(_told(rows, most, place, kept), flush=True)
    elif most == 1:
        why = "OMP_NUM_THREADS or the scheduler leaves one core" if threads.cores() == 1 else "there is no use for more"
        print(f"runs at a time: 1, as {why}", flush=True)
    return planning.with_runs_at_once(plan, best(rows, most) * place.devices), rows


def forecast(plan: Plan) -> tuple[Plan, str]:
    """Return what `settle` would make of a plan as far as it is known without trying, and that in words."""
    if not planning.is_open(plan.launcher):
        return plan, ""
    settings, place = plan.runs[0].settings, place_of(plan.runs[0].settings)
    most, kept = _most(plan, place), _file(settings, place)
    rows = _read(kept)
    if next_count(rows, most) is not None:
        return plan, f"runs at a time: would be tried out first, at most {most * place.devices}"
    plan = planning.with_runs_at_once(plan, best(rows, most) * place.devices)
    return plan, _told(rows, most, place, kept) if most > 1 else "runs at a time: 1"


def measure(most: int, attempt: Try, known: Sequence[Row] = ()) -> list[Row]:
    """Try 1, 2, 4 ... runs at a time, up to `most`, until more gain nothing or have no room; return the whole table.

    known: rows that need not be tried again.  Where several gain far more than there are of them, something has held
    the fewer up, and those are tried once more.
    """
    rows = {row.at_once: row for row in known}
    while (count := next_count([*rows.values()], most)) is not None:
        found = rows[count] = attempt(count)
        fewer = max((row for row in rows.values() if row.at_once < count), key=lambda row: row.at_once, default=None)
        if (
            fewer is not None
            and found.images_per_second > IMPLAUSIBLE * count / fewer.at_once * fewer.images_per_second
        ):
            again = attempt(fewer.at_once)
            rows[fewer.at_once] = max(fewer, again, key=lambda row: row.images_per_second)
    return sorted(rows.values(), key=lambda row: row.at_once)


def next_count(rows: Sequence[Row], most: int) -> int | None:
    """Return how many runs at a time are to be tried next, if at most so many are wanted; None if none are."""
    return _climb(rows, most)[1] if most > 1 else None


def best(rows: Sequence[Row], most: int) -> int:
    """Return the number of runs at a time, at most `most`, beyond which more of them hardly gain anything."""
    return _climb(rows, most)[0]


def _climb(rows: Sequence[Row], most: int) -> tuple[int, int | None]:
    """Return the last of 1, 2, 4 ... `most` that gained, and the one behind it if that has not been tried yet.

    Rows beside these are passed over: they are there or not, as sweeps of other lengths have shared the table.
    """
    tried = {row.at_once: row for row in rows}
    chosen, count = 1, 1
    while count in tried:
        if count > 1 and tried[count].images_per_second < GAIN * tried[chosen].images_per_second:
            return chosen, None
        chosen = count
        if count >= min(most, tried[1].fit):
            return chosen, None
        count = min(2 * count, most, tried[1].fit)
    return chosen, count


def table(rows: Sequence[Row]) -> str:
    """Return the rows as people read them."""
    return tables.render(
        [
            {
                "at a time": row.at_once,
                "threads each": row.threads,
                "images/s each": round(row.images_per_second / row.at_once, 1) or None,
                "images/s together": round(row.images_per_second, 1) or None,
                "memory each": tables.size(row.memory_bytes) if row.memory_bytes else None,
            }
            for row in rows
        ]
    )


def place_of(settings: RunConfig) -> Place:
    """Return the place where runs with these settings would share this machine."""
    gpus = planning.visible_gpus()
    if settings.device == "cpu" or not gpus:
        return Place()
    if settings.device in ("auto", "cuda"):
        return Place(len(gpus), gpus[0], visible=gpus[0])
    named = int(settings.device.partition(":")[2])
    return Place(gpu=gpus[named] if named < len(gpus) else None)


def try_out(settings: RunConfig, count: int, place: Place, seconds: float = SECONDS) -> Row:
    """Train so many runs at a time on one device for some seconds, their steps alone, and return what it came to.

    Where several do not go together, for want of memory say, they come to 0 images per second. Raises
    ConfigurationError where one alone does not.
    """
    each = settings.threads or max(1, threads.cores() // (count * place.devices))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.yaml").write_text(config.to_yaml(settings))
        with _processes(folder, count, each, place, seconds) as processes:
            answers = _answers(processes)
        if answers is not None:
            return Row(
                at_once=count,
                threads=each,
                images_per_second=round(sum(answer["images_per_second"] for answer in answers), 2),
                memory_bytes=max(answer["memory_bytes"] for answer in answers),
                fit=max(1, min(_fit(answer["fit"], place) for answer in answers)),
            )
        if count == 1:
            problem = f"auto cannot try out run #0 ({_last_words(folder / '0.log')})"
            raise ConfigurationError("hydra.launcher.n_jobs", problem, "mend that, or give a number")
    return Row(at_once=count, threads=each, images_per_second=0.0, memory_bytes=0, fit=1)


@contextmanager
def _processes(
    folder: Path, count: int, each: int, place: Place, seconds: float
) -> Generator[list["subprocess.Popen[str]"]]:
    """Have so many processes of `normlab.trial` during the block, and none after it."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(each)}
    if place.visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = place.visible
    command = [sys.executable, "-m", "normlab.trial", str(folder / "config.yaml"), str(each), str(seconds)]
    processes: list[subprocess.Popen[str]] = []
    try:
        for number in range(count):
            with (folder / f"{number}.log").open("w") as log:
                processes.append(
                    subprocess.Popen(
                        command,
                        env=environment,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                        text=True,
                        preexec_fn=die_with_parent,
                    )
                )
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _answers(processes: Sequence["subprocess.Popen[str]"]) -> list[dict[str, Any]] | None:
    """Have all begin once the last is ready, and return what each answers; None if one of them has ended before."""
    if not all([_line(process) for process in processes]):
        return None
    for process in processes:
        _begin(process)
    lines = [_line(process) for process in processes]
    return [json.loads(line) for line in lines] if all(lines) else None


def _fit(told: dict[str, int], place: Place) -> int:
    """Return how many have room on one of the devices: the memory of the machine is for those of all."""
    most = [count // place.devices if where == "cpu" else count for where, count in told.items()]
    return min(most, default=1)


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def _begin(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has ended, and so will not answer
        process.stdin.write("\n")
        process.stdin.flush()


def _last_words(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip().removeprefix("error: ") if lines else "it was killed"


def _most(plan: Plan, place: Place) -> int:
    """Return how many runs at a time may be of use on one device: no more than it gets, nor than it has cores for."""
    return max(1, min(-(-len(plan.runs) // place.devices), threads.cores() // place.devices))


def _told(rows: Sequence[Row], most: int, place: Place, kept: Path) -> str:
    each = f", {best(rows, most)} on each of {place.devices} GPUs" if place.devices > 1 else ""
    chosen = f"runs at a time: {best(rows, most) * place.devices}{each}"
    return f"{table(rows)}\n{chosen}; kept in {kept}, without which it is tried anew\n"


def _about(settings: RunConfig, place: Place) -> dict[str, Any]:
    """Return all that a table depends on."""
    return {
        "cpu": cpu_name(),
        "cores": threads.cores(),
        "gpu": None if place.gpu is None else next(iter(of_gpus("name", place.gpu)), place.gpu),
        "devices": place.devices,
        "versions": {package: metadata.version(package) for package in ("normlab", "torch")},
        "threads": settings.threads,
        "settings": {
            "train.capture": settings.train.capture,
            **{key: value for key, value in config.identity(settings).items() if not key.startswith(_COST_NOTHING)},
        },
    }


def _file(settings: RunConfig, place: Place) -> Path:
    about = plain_json.dump(_about(settings, place))
    return cache_folder() / "throughput" / f"{hashlib.sha256(about.encode()).hexdigest()[:16]}.json"


def _read(kept: Path) -> list[Row]:
    """Return the table in a file, an empty one if there is none that can be read."""
    try:
        return [Row(**row) for row in plain_json.read(kept).get("rows", [])]
    except TypeError:
        return []


def _keep(kept: Path, settings: RunConfig, place: Place, rows: Sequence[Row]) -> None:
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(kept.parent, error) from error
    plain_json.write(kept, {"about": _about(settings, place), "rows": [asdict(row) for row in rows]})
