"""What a run will take, by what runs like it have taken."""

import json
from dataclasses import replace
from pathlib import Path

from normlab.config import NormalizationConfig, Part, RunConfig
from normlab.reports.runs import Run
from normlab.sweeps import forecast

SETTINGS = RunConfig()


def run(folder: Path, settings: RunConfig, speeds: list[float | None], device: str = "cpu") -> Run:
    """Return a run that is done and has measured those speeds."""
    folder.mkdir()
    (folder / "environment.json").write_text(json.dumps({"device": device, "dataset": {"train": 100}}))
    rows = [json.dumps({"step": step, "images_per_second": speed}) + "\n" for step, speed in enumerate(speeds)]
    (folder / "metrics.jsonl").write_text("".join(rows))
    return Run(folder, settings, None, "done", [])


def test_runs_of_other_data_or_another_device_tell_nothing(tmp_path: Path) -> None:
    others = [
        run(tmp_path / "data", replace(SETTINGS, dataset=Part(name="mnist")), [100.0]),
        run(tmp_path / "width", replace(SETTINGS, architecture=Part(name="dcgan", params={"width": 4})), [100.0]),
        run(tmp_path / "device", SETTINGS, [100.0], device="cuda:1"),
    ]

    assert forecast.alike(SETTINGS, "cpu", others) == []
    assert forecast.alike(SETTINGS, "cuda", others) == [others[2]]


def test_where_the_data_lies_does_not_matter(tmp_path: Path) -> None:
    here, there = (replace(SETTINGS, dataset=Part(name="mnist", params={"root": root})) for root in ("a", "b"))
    known = run(tmp_path / "run", here, [100.0])

    assert forecast.alike(there, "cpu", [known]) == [known]


def test_runs_with_the_same_techniques_tell_most(tmp_path: Path) -> None:
    other = NormalizationConfig(discriminator=Part(name="none"))
    fast = run(tmp_path / "fast", replace(SETTINGS, normalization=other), [900.0])
    same = run(tmp_path / "same", SETTINGS, [100.0])

    assert forecast.alike(SETTINGS, "cpu", [fast, same]) == [same]
    assert forecast.alike(SETTINGS, "cpu", [fast]) == [fast]


def test_the_speed_is_a_median_and_never_invented(tmp_path: Path) -> None:
    runs = [
        run(tmp_path / str(number), SETTINGS, [None, speed, 2 * speed]) for number, speed in enumerate([10.0, 20.0])
    ]

    assert forecast.images_per_second(runs) == 22.5
    assert forecast.images_per_second([run(tmp_path / "new", SETTINGS, [])]) is None
    assert forecast.images_per_second([]) is None
    assert forecast.training_images(runs) == 100
    assert forecast.bytes_on_disk([]) is None
