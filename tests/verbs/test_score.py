"""`normlab score` against torch-fidelity, on the same folders with the same weights."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch_fidelity import fidelity
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from normlab.evaluation.classifier import shipped_classifier
from normlab.randomness import stream
from tests.conftest import Command


def make_images(
    folder: Path, count: int, *, size: tuple[int, int], mode: str = "RGB", seed: int = 0, shift: int = 0
) -> Path:
    """Write smooth random images, so that features differ between them."""
    folder.mkdir(parents=True)
    shape = (count, 5, 4) if mode == "L" else (count, 5, 4, 3)
    coarse = torch.randint(200, shape, generator=stream(seed, "images")) + shift
    for number, pixels in enumerate(coarse.numpy().astype(np.uint8)):
        Image.fromarray(pixels, mode).resize(size, Image.Resampling.BICUBIC).save(folder / f"{number:03}.png")
    return folder


SMALL = 6  # images of a batch, whose maps then stay in the processor's cache
Extract = Callable[[Path, int], torch.Tensor]


@pytest.fixture
def extract(inception_weights: Path) -> Extract:
    """Take the images of a folder to torch-fidelity's features of a layer."""

    def features(folder: Path, layer: int) -> torch.Tensor:
        network = FeatureExtractorInceptionV3("reference", [str(layer)], str(inception_weights))
        images = [np.asarray(Image.open(path).convert("RGB")).copy() for path in sorted(folder.glob("*.png"))]
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        return torch.cat([network(batch)[0] for batch in pixels.split(SMALL)])

    return features


def score(normlab: Command, real: Path, fake: Path, *words: str) -> dict[str, Any]:
    result = normlab("score", str(real), str(fake), "device=cpu", f"evaluation.batch_size={SMALL}", "--json", *words)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def assert_equal(
    found: dict[str, Any], expected: dict[str, float], sides: tuple[torch.Tensor, torch.Tensor], apart: bool = True
) -> None:
    """Hold scores against torch-fidelity's of both sides' features, which differ by far more than tolerances if apart.

    Tolerances are of a distance's own terms: near-equal sets leave a difference of large numbers.
    """
    dimensions = sides[0].shape[1]
    names = ("fid", "kid") if dimensions == 2048 else ("frechet_distance", "kernel_distance")
    traces = sum(float(torch.cov(features.double().T).trace()) for features in sides)
    kernel = max(float((features @ features.T / dimensions + 1).pow(3).mean()) for features in sides)
    assert abs(found[names[0]] - expected["frechet_inception_distance"]) < 1e-6 * traces
    assert abs(found[names[1]] - expected["kernel_inception_distance_mean"]) < 1e-6 * kernel
    if apart:
        assert found[names[0]] > 0.01 * traces
        assert found[names[1]] > 0.001 * kernel
    assert found["precision"] == pytest.approx(expected["precision"], abs=1e-6)
    assert found["recall"] == pytest.approx(expected["recall"], abs=1e-6)


@pytest.mark.parametrize(
    ("count", "size", "mode", "shift"),
    [(66, (37, 29), "RGB", 20), (8, (32, 32), "L", 30), (12, (20, 20), "RGB", 0)],
    ids=["odd sizes, more images than dimensions", "grey, fewer images", "near-equal sets"],
)
def test_scores_equal_torch_fidelity(
    normlab: Command,
    tmp_path: Path,
    inception_weights: Path,
    extract: Extract,
    count: int,
    size: tuple[int, int],
    mode: str,
    shift: int,
):
    real = make_images(tmp_path / "real", count, size=size, mode=mode)
    fake = make_images(tmp_path / "fake", count, size=size, mode=mode, seed=1 if shift else 0, shift=shift)
    if not shift:  # the same images but for one
        shutil.copy(fake / "001.png", fake / "000.png")
    found = score(normlab, real, fake, "evaluation.features=inception-64", f"evaluation.weights={inception_weights}")
    sides = extract(fake, 64), extract(real, 64)
    statistics = [fid_features_to_statistics(features) for features in sides]
    expected = {
        **fid_statistics_to_metric(*statistics, verbose=False),
        **kid_features_to_metric(*sides, kid_subsets=1, kid_subset_size=count, verbose=False),
        **prc_features_to_metric(*sides, verbose=False),
    }
    assert_equal(found, expected, sides, apart=shift > 0)
    assert ("few_samples" in found["flags"]) == (count < 64)


@pytest.mark.slow
def test_published_scores_equal_the_command_line_of_torch_fidelity(
    normlab: Command,
    tmp_path: Path,
    inception_weights: Path,
    extract: Extract,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """At the last layer, and the Inception score of one split.

    The Fréchet distance is held against the singular values that numpy finds: of fewer samples than dimensions those of
    torch-fidelity, roots of eigenvalues that are mostly rounding, are themselves off by 1.2e-6 of the traces.
    """
    real = make_images(tmp_path / "real", 6, size=(32, 32))
    fake = make_images(tmp_path / "fake", 6, size=(32, 32), seed=1, shift=20)
    found = score(normlab, real, fake, "evaluation.splits=1", f"evaluation.weights={inception_weights}")

    layers = [word for metric in ("fid", "kid", "prc") for word in (f"--feature-layer-{metric}", "2048")]
    command = ["fidelity", "--input1", str(fake), "--input2", str(real)]
    command += ["--fid", "--kid", "--prc", "--isc", "--kid-subsets", "1", "--kid-subset-size", "6", "--isc-splits", "1"]
    command += ["--feature-extractor", "inception-v3-compat", *layers]
    command += ["--feature-extractor-weights-path", str(inception_weights)]
    command += ["--cpu", "--json", "--silent", "--no-cache", "--save-cpu-ram"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # which it sets itself, and would leave so
    monkeypatch.setattr(sys, "argv", command)
    fidelity.main()
    said = capsys.readouterr().out
    expected = json.loads(said[said.index("{") :])

    sides = extract(fake, 2048), extract(real, 2048)
    of_fake, of_real = (features.double().numpy() for features in sides)
    centred = [(features - features.mean(axis=0)) / (6 - 1) ** 0.5 for features in (of_fake, of_real)]
    difference = of_fake.mean(axis=0) - of_real.mean(axis=0)
    shared = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    traces = sum((features**2).sum() for features in centred)
    assert expected["frechet_inception_distance"] == pytest.approx(found["fid"], abs=1e-5 * traces)
    expected["frechet_inception_distance"] = difference @ difference + traces - 2 * shared
    assert_equal(found, expected, sides)
    assert found["inception_score"] > 1.01
    assert found["inception_score"] == pytest.approx(expected["inception_score_mean"], rel=1e-6)


def test_arrays_zips_and_folders_of_the_same_images_score_alike(
    normlab: Command, tmp_path: Path, inception_weights: Path
):
    real = make_images(tmp_path / "real", 3, size=(16, 16))
    fake = make_images(tmp_path / "fake", 3, size=(16, 16), seed=1)
    pixels = np.stack([np.asarray(Image.open(path)) for path in sorted(fake.glob("*.png"))])
    np.save(tmp_path / "fake.npy", pixels)
    np.savez(tmp_path / "fake.npz", images=pixels)
    shutil.make_archive(str(tmp_path / "fake"), "zip", fake)
    words = ["evaluation.features=inception-64", f"evaluation.weights={inception_weights}"]
    rows = [score(normlab, real, tmp_path / name, *words) for name in ("fake", "fake.npy", "fake.npz", "fake.zip")]
    assert len({row["protocol"] for row in rows}) == 1
    for row in rows[1:]:
        assert {**row, "fake": rows[0]["fake"]} == rows[0]


def test_images_of_many_sizes_are_scored_each_in_its_own(normlab: Command, tmp_path: Path, inception_weights: Path):
    real = make_images(tmp_path / "real", 8, size=(16, 16))
    fake = make_images(tmp_path / "fake", 4, size=(16, 16), seed=1)
    for path in make_images(tmp_path / "wide", 4, size=(24, 9), seed=2).glob("*.png"):
        path.rename(fake / f"wide{path.name}")
    found = score(normlab, real, fake, "evaluation.features=inception-64", f"evaluation.weights={inception_weights}")
    assert "-3x16x16/samples-8-mixed/kept-10000/" in found["protocol"]
    assert found["flags"] == ["few_samples", "few_real_images"]


def test_grey_images_are_scored_by_the_classifier_of_a_data_set(normlab: Command, tmp_path: Path):
    real = make_images(tmp_path / "real", 30, size=(32, 32), mode="L")
    found = score(normlab, real, real, "evaluation.features=classifier", "dataset=mnist")
    assert found["protocol"].startswith("classifier-")
    assert found["frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert (found["precision"], found["recall"], found["coverage"]) == (1, 1, 1)


@pytest.mark.parametrize(
    ("real", "fake", "words", "message"),
    [
        ("grey", "small", [], "the classifier was fitted to images 1x32x32, and some of these are 1x28x28"),
        (
            "small",
            "small",
            [],
            "no classifier of 'mnist' for images 1x28x28 is shipped; there are digits-1x32x32, mnist",
        ),
        ("grey", "colour", [], "no classifier of 'mnist' for images 3x32x32 is shipped"),
        (
            "small",
            "small",
            ["evaluation.weights=FILE"],
            "the classifier was fitted to images 1x32x32, and some of these are 1x28x28",
        ),
        ("grey", "grey", ["dataset=gaussians"], "no classifier of 'gaussians' for images 1x32x32 is shipped"),
    ],
)
def test_images_that_the_classifier_was_not_fitted_to_are_refused(
    normlab: Command, tmp_path: Path, real: str, fake: str, words: list[str], message: str
):
    make_images(tmp_path / "grey", 2, size=(32, 32), mode="L")
    make_images(tmp_path / "small", 2, size=(28, 28), mode="L")
    make_images(tmp_path / "colour", 2, size=(32, 32))
    file = str(shipped_classifier("mnist", (1, 32, 32)))
    given = ["dataset=mnist", "evaluation.features=classifier", *(word.replace("FILE", file) for word in words)]
    result = normlab("score", str(tmp_path / real), str(tmp_path / fake), *given)
    assert result.exit_code == 3
    assert f"error: evaluation.features: {message}" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "exit_code", "message"),
    [
        (["nowhere", "real"], 3, "error: nowhere: is not there"),
        (["real", "empty"], 3, "error: empty: holds no images"),
        (["real", "one"], 3, "error: one: holds a single image"),
        (["real", "real", "train.batch_size=3"], 2, "error: train.batch_size: changes nothing in a score"),
        (["real", "real", "evaluation.features=inceptoin"], 2, "did you mean 'inception'?"),
        (
            ["real", "real", "evaluation.features=torchscript"],
            3,
            "error: evaluation.weights: torchscript features need",
        ),
        (["real"], 2, "error: score: "),
        (["real", "threads=1"], 2, "error: FAKE: is missing"),
        (["threads=1", "real"], 2, "error: FAKE: is missing"),
        (["threads=1", "evaluation.kept=30"], 2, "error: REAL: is missing"),
        (["real", "real", "evaluation=none"], 2, "error: evaluation.features: is none, which scores nothing"),
        (["real", "real", "evaluation.features=none"], 2, "error: evaluation.features: is none"),
        (["real", "real", "dataset=mnist"], 2, "add evaluation.features=classifier for the classifier of 'mnist'"),
        (["real", "real", "dataset.limit=9"], 2, "error: dataset.limit: changes nothing in a score"),
        (["real", "real", "evaluation.samples=50"], 2, "error: evaluation.samples: changes nothing in a score"),
        (["real", "real", "evaluation.split=held_out"], 2, "error: evaluation.split: changes nothing"),
        (["real", "real", "evaluation.repeats=2"], 2, "error: evaluation.repeats: changes nothing"),
        (["real", "real", "evaluation.reconstruction.images=2"], 2, "error: evaluation.reconstruction.images: changes"),
    ],
)
def test_what_cannot_be_scored_is_one_line(
    normlab: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], exit_code: int, message: str
):
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / "real", 3, size=(8, 8))
    make_images(tmp_path / "one", 1, size=(8, 8))
    (tmp_path / "empty").mkdir()
    result = normlab("score", *words)
    assert result.exit_code == exit_code
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
