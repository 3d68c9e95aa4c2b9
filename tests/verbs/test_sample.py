"""`normlab sample` from a run and from its exported generator alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ..conftest import Command

QUICK = ["train", "architecture.width=4", "train.batch_size=16", "train.until=2 steps", "evaluation=none"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported generator, alone in a folder."""
    from normlab import cli

    folder = tmp_path_factory.mktemp("sample")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMLAB_OUTPUTS", str(folder / "outputs"))
        assert cli.run([*QUICK]) == 0
    (found,) = folder.glob("outputs/*/*/generator.safetensors")
    return Path(found.rename(folder / "generator.safetensors"))


def test_the_same_images_are_a_grid_an_array_and_files(normlab: Command, file: Path, tmp_path: Path) -> None:
    grid, array, folder = tmp_path / "grid.png", tmp_path / "array.npz", tmp_path / "files"
    for out in (grid, array, folder):
        shown = normlab("sample", str(file), "--count", "10", "--columns", "5", "--out", str(out), "--json")
        assert json.loads(shown.stdout) == {"path": str(out), "count": 10, "step": 2}
    images = np.load(array)["images"]

    assert (images.shape, images.dtype) == ((10, 32, 32, 1), np.uint8)
    assert sorted(path.name for path in folder.iterdir()) == [f"{number:06}.png" for number in range(10)]
    for number, image in enumerate(images[..., 0]):
        assert np.array_equal(np.array(Image.open(folder / f"{number:06}.png")), image)
    laid_out = np.array(Image.open(grid))
    assert np.array_equal(laid_out[36:68, 36:68], images[6, :, :, 0])  # the second of the second row


def test_rows_of_an_interpolation_go_from_one_image_to_another(normlab: Command, file: Path, tmp_path: Path) -> None:
    def images(*words: str) -> np.ndarray:
        out = tmp_path / "images.npz"
        assert normlab("sample", str(file), "--out", str(out), *words).exit_code == 0
        return np.load(out)["images"].astype(int)

    way = images("--interpolate", "--count", "12", "--columns", "6").reshape(2, 6, -1)
    ends = images("--count", "4").reshape(4, -1)
    steps = np.abs(np.diff(way, axis=1)).mean(axis=2)
    apart = np.abs(way[:, -1] - way[:, 0]).mean(axis=1)

    assert np.array_equal(way[:, 0], ends[:2])
    assert np.array_equal(way[:, -1], ends[2:])
    assert (steps < apart[:, None]).all()
    assert (
        np.abs(images("--truncation", "0.01", "--count", "9") - images("--truncation", "0.01", "--count", "1")).max()
        <= 2
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--out", "x.jpg"], "error: --out: x.jpg ends in .jpg — end it in .png"),
        (["--label", "3"], "error: --label: is of a generator that takes labels, and this one does not"),
        (["--truncation", "0"], "error: --truncation: must be above 0, got 0"),
        (["--interpolate", "--columns", "1"], "error: --interpolate: needs rows of two images or more"),
        (["--count", "20000"], "error: --count: a grid of 20,000 images is more than 10,000"),
    ],
)
def test_what_cannot_be_drawn_is_refused(normlab: Command, file: Path, words: list[str], says: str) -> None:
    refused = normlab("sample", str(file), *words)

    assert refused.exit_code == 2
    assert refused.stderr.startswith(says)


def test_images_of_two_draws_are_never_mixed(normlab: Command, file: Path, tmp_path: Path) -> None:
    folder, grid, text = tmp_path / "files", tmp_path / "GRID.PNG", tmp_path / "notes.txt"
    text.write_text("mine")
    assert normlab("sample", str(file), "--count", "3", "--out", str(folder)).exit_code == 0
    again, over = (normlab("sample", str(file), "--count", "2", "--out", str(out)) for out in (folder, text))

    assert (again.exit_code, over.exit_code, text.read_text()) == (2, 2, "mine")
    assert f"error: --out: {folder} is a folder that is not empty" in again.stderr
    assert len([*folder.iterdir()]) == 3
    assert normlab("sample", str(file), "--out", str(grid)).exit_code == 0
    assert grid.is_file()


@pytest.mark.slow
def test_labels_are_in_turn_or_one_for_all(normlab: Command, outputs: Path, tmp_path: Path) -> None:
    conditional = [
        "architecture=sngan_cnn",
        "architecture.conditional=true",
        "normalization.generator=conditional_batch",
    ]
    assert normlab(*QUICK, *conditional).exit_code == 0
    (run,) = outputs.glob("*/*/config.yaml")
    out = tmp_path / "images.npz"
    assert normlab("sample", str(run.parent), "--count", "12", "--out", str(out)).exit_code == 0
    assert np.load(out)["labels"].tolist() == [*range(10), 0, 1]
    assert normlab("sample", str(run.parent), "--count", "3", "--label", "7", "--out", str(out)).exit_code == 0
    assert np.load(out)["labels"].tolist() == [7, 7, 7]
    words = ["--interpolate", "--count", "6", "--columns", "3"]
    assert normlab("sample", str(run.parent), *words, "--out", str(out)).exit_code == 0
    assert np.load(out)["labels"].tolist() == [0, 0, 0, 1, 1, 1]  # on the way from image to image a class stays
    assert "there are 0 to 9" in normlab("sample", str(run.parent), "--label", "10").stderr
