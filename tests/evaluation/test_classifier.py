import hashlib
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from normlab.data.images import Dataset, Images
from normlab.data.sources import DATASETS
from normlab.errors import DataError, ResourceError
from normlab.evaluation import classifier
from normlab.evaluation.classifier import (
    SHIPPED,
    Classifier,
    accuracy,
    fit_classifier,
    load_classifier,
    open_classifier,
    save_classifier,
    shipped_classifier,
)


@pytest.fixture(autouse=True)
def short_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "LEAST_IMAGES_SEEN", 1_600)


def test_shipped_digits_classifier_is_as_accurate_as_its_file_says():
    digits = DATASETS.build("digits", {})
    stored = open_classifier(digits)
    stated = float(stored.metadata["held_out_accuracy"])
    assert stated >= 0.97
    assert accuracy(stored.classifier, digits.held_out) == pytest.approx(stated, abs=0.5 / len(digits.held_out))


@pytest.mark.parametrize(("name", "least"), [("digits", 0.97), ("mnist", 0.99)])
def test_shipped_file_is_small_and_named_by_its_digest(name: str, least: float):
    path = shipped_classifier(name, (1, 32, 32))
    assert path is not None
    content = path.read_bytes()
    assert len(content) < 1_500_000
    assert path.stem.endswith("-" + hashlib.sha256(content).hexdigest()[:12])
    assert float(load_classifier(path).metadata["held_out_accuracy"]) >= least


def test_every_shipped_file_belongs_to_a_data_set():
    assert {path.name.split("-")[0] for path in SHIPPED.iterdir()} == {"digits", "mnist"}


@pytest.mark.slow
@pytest.mark.skipif("NORMLAB_DATA" not in os.environ, reason="needs MNIST in $NORMLAB_DATA")
def test_shipped_mnist_classifier_is_as_accurate_as_its_file_says():
    mnist = DATASETS.build("mnist", {"root": os.environ["NORMLAB_DATA"], "download": False})
    stored = open_classifier(mnist)
    assert accuracy(stored.classifier, mnist.held_out) == pytest.approx(float(stored.metadata["held_out_accuracy"]))


def test_part_of_the_digits_is_scored_by_the_shipped_classifier_too():
    assert open_classifier(DATASETS.build("digits", {"limit": 100})).metadata["dataset"] == "digits"


def test_digits_of_another_size_need_a_classifier_of_their_own():
    assert shipped_classifier("digits", (1, 64, 64)) is None


@pytest.mark.parametrize("size", [32, 48, 64, 128])
def test_features_have_the_same_size_for_every_image_size(size: int):
    features, logits = Classifier(3, 7).eval()(torch.zeros(2, 3, size, size))
    assert features.shape == (2, 128)
    assert logits.shape == (2, 7)


def test_fit_learns_labels_and_repeats_bit_by_bit_and_leaves_the_global_random_state(labelled: Dataset):
    state = torch.get_rng_state()
    first = fit_classifier(labelled, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    second = fit_classifier(labelled, seed=3)
    assert first.held_out_accuracy == 1
    for name, tensor in first.classifier.state_dict().items():
        assert torch.equal(tensor, second.classifier.state_dict()[name]), name


def test_stored_classifier_gives_the_same_logits(labelled: Dataset, tmp_path: Path):
    fitted = fit_classifier(labelled)
    stored = load_classifier(save_classifier(fitted, labelled, tmp_path, "bars"))
    images = torch.linspace(-1, 1, 2 * 32 * 32).reshape(2, 1, 32, 32)
    assert torch.equal(stored.classifier(images)[1], fitted.classifier(images)[1])


def test_unlabelled_images_are_refused_with_the_ways_out(unlabelled: Dataset):
    with pytest.raises(DataError, match=r"evaluation.features: .*'bare' has none — .*inception.*evaluation=none"):
        open_classifier(unlabelled)


def test_classifier_is_fitted_once_by_threads_that_start_together(labelled: Dataset, monkeypatch: pytest.MonkeyPatch):
    fits: list[str] = []

    def counted(dataset: Dataset) -> classifier.Fitted:
        fits.append(dataset.name)
        return fit_classifier(dataset)

    monkeypatch.setattr(classifier, "fit_classifier", counted)
    digests: list[str] = []
    threads = [threading.Thread(target=lambda: digests.append(open_classifier(labelled).digest)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fits == ["bars"]
    assert len(digests) == 3
    assert len(set(digests)) == 1


def test_other_content_under_the_same_name_is_fitted_anew(labelled: Dataset, own_cache: Path):
    open_classifier(labelled)
    open_classifier(replace(labelled, fingerprint="0" * 64))
    assert len(list((own_cache / "classifiers").glob("bars-*.safetensors"))) == 2


def test_damaged_file_in_the_cache_is_made_again(labelled: Dataset, own_cache: Path):
    first = open_classifier(labelled)
    (file,) = (own_cache / "classifiers").glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert open_classifier(labelled).digest == first.digest


def test_damaged_file_that_was_given_is_refused(labelled: Dataset, tmp_path: Path):
    path = save_classifier(fit_classifier(labelled), labelled, tmp_path, "bars")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="is damaged"):
        load_classifier(path)


def test_cache_that_cannot_be_written_is_a_resource_error(
    labelled: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path / "file"))
    with pytest.raises(ResourceError, match="NORMLAB_CACHE"):
        open_classifier(labelled)


def test_images_that_no_class_fits_are_counted_wrong(labelled: Dataset):
    fitted = fit_classifier(labelled)
    swapped = Images(labelled.held_out.pixels, 1 - labelled.held_out.labels)  # type: ignore[operator]
    assert accuracy(fitted.classifier, swapped) == 0
