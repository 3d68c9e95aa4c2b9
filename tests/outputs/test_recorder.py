import json

import pytest

from normlab.outputs.recorder import Position, Recorder
from normlab.outputs.run_dir import RunDir
from normlab.outputs.sinks import TensorBoard

ROWS = [
    {"network": "generator", "layer": None, "product_bound": None},
    {"network": "generator", "layer": "1", "sigma": 2.0},
    {"network": "discriminator", "layer": None, "product_bound": 3.0},
    {"network": "discriminator", "layer": "0.linear", "sigma": 0.123456789, "scale_min": None},
]


@pytest.fixture
def run_dir(tmp_path):
    run_dir = RunDir(tmp_path)
    run_dir.create()
    return run_dir


@pytest.fixture
def shown(monkeypatch):
    """What TensorBoard is given, as (tag, step, value)."""
    shown = []
    monkeypatch.setattr(
        TensorBoard, "scalars", lambda self, values, step: shown.extend((tag, step, values[tag]) for tag in values)
    )
    return shown


def at(step):
    return Position(step, step / 10, 64 * step, 1.5 * step)


def written(run_dir):
    return [json.loads(line) for line in run_dir.spectra.read_text().splitlines()]


def test_spectra_are_rows_at_their_position(run_dir):
    recorder = Recorder(run_dir, 0)
    recorder.spectra(at(4), ROWS)
    recorder.close()

    position = {"step": 4, "epoch": 0.4, "images_seen": 256, "seconds": 6.0}
    rounded = {**ROWS[3], "sigma": 0.1234568}
    assert written(run_dir) == [{**position, **row} for row in [*ROWS[:3], rounded]]


def test_rows_that_a_kill_let_stand_are_not_written_again_and_those_beyond_are_cut(run_dir, shown):
    killed = Recorder(run_dir, 0)
    for step in (0, 2, 4):
        killed.spectra(at(step), ROWS if step < 2 else ROWS[:2])
    with run_dir.spectra.open("a") as file:
        file.write('{"step": 4, "network"')
    del shown[:]
    recorder = Recorder(run_dir, 2)
    recorder.spectra(at(2), ROWS)
    recorder.spectra(at(4), ROWS)

    places = [(row["step"], row["network"], row["layer"]) for row in written(run_dir)]
    assert places == [(step, row["network"], row["layer"]) for step in (0, 2, 4) for row in ROWS]
    # Of step 2 TensorBoard is shown again what it may have lost, and what is new; each once.
    assert sorted(shown) == sorted({(tag, step, value) for tag, step, value in shown})
    assert [step for tag, step, _ in shown if tag == "layer_sigma/generator/1"] == [2, 4]


def test_tensorboard_groups_a_number_of_all_layers_together(run_dir, shown):
    Recorder(run_dir, 0).spectra(at(4), ROWS)

    assert [tag for tag, _, _ in shown] == [
        "layer_sigma/generator/1",
        "discriminator/product_bound",
        "layer_sigma/discriminator/0.linear",
    ]
