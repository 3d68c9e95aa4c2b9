import logging
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from normlab.outputs import plots
from normlab.outputs.plots import SpectraPicture, spectra_picture, spread

from ..conftest import Command

pytestmark = pytest.mark.usefixtures("pictures")


def rows(layers, steps, value=lambda layer, step: 1.0 + layer + step):
    return [
        {"step": step, "network": network, "layer": layer if layer is None else f"{layer}.residual"}
        | (
            {}
            if layer is None
            else {key: value(layer, step) for key in ("sigma", "operator_norm", "gradient_norm", "other")}
        )
        for step in steps
        for network in plots.NETWORKS
        for layer in [None, *range(layers)]
    ]


def ink(path):
    """Return which pixels of a picture are not white."""
    return (np.array(Image.open(path).convert("L")) < 250).sum()


@pytest.mark.parametrize(
    "drawn",
    [
        [],
        rows(1, [0]),
        rows(30, [0, 10, 20, 30, 40, 50, 60], lambda layer, step: 10.0 ** (layer - 20)),
        rows(3, [0, 10], lambda layer, step: None if layer == 1 or step else 0.0),
    ],
    ids=["none", "one", "many, of many sizes", "zeros and gaps"],
)
def test_whatever_the_rows_a_picture_of_modest_size_is_drawn(tmp_path, drawn, caplog):
    SpectraPicture(tmp_path / "spectra.png").draw(drawn)

    assert Image.open(tmp_path / "spectra.png").size == (1530, 648)
    assert (tmp_path / "spectra.png").stat().st_size < 400_000
    assert ink(tmp_path / "spectra.png") > (15_000 if len(drawn) > 4 else 5_000)
    assert [path.name for path in tmp_path.iterdir()] == ["spectra.png"]
    assert caplog.text == ""
    # None of those figures that all of a process share.
    assert "matplotlib.pyplot" not in sys.modules or sys.modules["matplotlib.pyplot"].get_fignums() == []


def test_the_slope_of_the_discriminator_is_drawn_from_the_row_of_the_network(tmp_path):
    of_layers = rows(3, [0, 10])
    slopes = {f"input_gradient/{place}": 1.0 for place in plots.PLACES}
    told = [row | slopes if row["layer"] is None and row["network"] == "discriminator" else row for row in of_layers]
    for name, drawn in (("without", of_layers), ("with", told)):
        (tmp_path / name).write_bytes(spectra_picture(drawn, "run"))
    changed = np.array(Image.open(tmp_path / "with").convert("L")) != np.array(
        Image.open(tmp_path / "without").convert("L")
    )
    height, width = changed.shape

    assert changed[height // 2 :, 3 * width // 4 :].sum() > 300
    assert not changed[:, : 7 * width // 10].any()
    assert not changed[: height // 2].any()


def test_a_picture_that_cannot_be_drawn_warns_once_and_stops_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if it were not installed
    picture = SpectraPicture(tmp_path / "spectra.png")
    with caplog.at_level(logging.DEBUG):
        picture.draw([])
        picture.draw([])

    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.message.startswith("spectra.png is not drawn any more in this run: ")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path, caplog):
    SpectraPicture(tmp_path / "missing" / "spectra.png").draw(rows(1, [0]))

    assert "spectra.png is not drawn any more in this run" in caplog.text


def test_a_run_draws_and_ends_well_where_that_fails(
    normlab: Command, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw_once(rows: plots.Rows, title: str) -> bytes:
        if len({row["step"] for row in rows}) > 2:
            raise ValueError("no ink")
        return spectra_picture(rows, title)

    monkeypatch.setattr(plots, "spectra_picture", draw_once)
    words = ["architecture.width=4", "train.batch_size=16", "train.until=3 steps", "evaluation=none"]
    ended = normlab("train", *words, "every.spectra=1 step")

    assert ended.exit_code == 0, ended.stderr
    (picture,) = outputs.glob("*/*/spectra.png")
    assert ink(picture) > 10_000
    assert ended.stderr.count("warning: spectra.png is not drawn any more in this run: no ink") == 1


@pytest.mark.parametrize(
    ("count", "most", "expected"), [(3, 5, [0, 1, 2]), (9, 5, [0, 2, 4, 6, 8]), (100, 4, [0, 33, 66, 99])]
)
def test_of_many_values_some_are_named_the_ends_among_them(count, most, expected):
    assert spread(list(range(count)), most) == expected
