import hashlib
import shutil
import warnings
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from normlab.data.images import Dataset
from normlab.data.sources import DATASETS
from normlab.errors import DataError
from normlab.evaluation.features import open_features
from normlab.evaluation.inception import INCEPTION_FILE, InceptionFeatures
from normlab.randomness import stream

CPU = torch.device("cpu")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for weights, and no network."""

    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    return tmp_path / "home" / "hub" / "checkpoints"


def pictures(channels: int) -> torch.Tensor:
    return torch.randint(256, (2, channels, 32, 32), generator=stream(0, "pictures"), dtype=torch.uint8)


def test_inception_features_are_those_of_torch_fidelity(inception_weights: Path, colour: Dataset):
    features = open_features("inception", str(inception_weights), colour, CPU)
    reference = FeatureExtractorInceptionV3("reference", ["2048", "logits_unbiased"], str(inception_weights))
    pooled, logits = features.extract(pictures(3))
    expected_pooled, expected_logits = reference(pictures(3))
    assert torch.equal(pooled, expected_pooled)
    assert torch.equal(logits, expected_logits)
    assert pooled.shape == (2, features.dimensions)


def test_inception_sees_grey_as_three_equal_channels(inception_weights: Path, unlabelled: Dataset):
    features = open_features("inception", str(inception_weights), unlabelled, CPU)
    grey = pictures(1)
    assert torch.equal(features.extract(grey)[0], features.extract(grey.repeat(1, 3, 1, 1))[0])


def test_opening_inception_leaves_the_global_random_state(inception_weights: Path):
    state = torch.get_rng_state()
    InceptionFeatures(inception_weights, CPU)
    assert torch.equal(torch.get_rng_state(), state)


def test_auto_is_inception_for_colour_and_the_classifier_for_grey(inception_weights: Path, colour: Dataset):
    assert open_features("auto", str(inception_weights), colour, CPU).name == "inception"
    assert open_features("auto", None, DATASETS.build("digits", {}), CPU).name == "classifier"


def test_classifier_features_do_not_depend_on_autocast():
    features = open_features("classifier", None, DATASETS.build("digits", {}), CPU)
    plain = features.extract(pictures(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = features.extract(pictures(1))
    assert torch.equal(plain[0], inside[0])
    assert inside[1].dtype == torch.float32
    assert not inside[1].requires_grad


def test_info_tells_the_accuracy_and_the_digest():
    features = open_features("classifier", None, DATASETS.build("digits", {}), CPU)
    assert features.digest in features.info
    assert "% right" in features.info


def test_missing_weights_without_a_network_name_address_place_and_ways_out(hub: Path, colour: Dataset):
    with pytest.raises(DataError) as caught:
        open_features("auto", None, colour, CPU)
    message = str(caught.value)
    for part in (
        "https://",
        INCEPTION_FILE,
        str(hub),
        "no route to host",
        "evaluation.weights=FILE",
        "evaluation=none",
    ):
        assert part in message
    assert "\n" not in message


def test_hub_file_with_another_digest_than_its_name_promises_is_refused(
    hub: Path, inception_weights: Path, colour: Dataset
):
    hub.mkdir(parents=True)
    shutil.copy(inception_weights, hub / INCEPTION_FILE)
    with pytest.raises(DataError, match="6726825d"):
        open_features("inception", None, colour, CPU)


def test_given_file_that_does_not_exist_is_refused(colour: Dataset):
    with pytest.raises(DataError, match=r"evaluation\.weights: there is no file nowhere\.pth"):
        open_features("inception", "nowhere.pth", colour, CPU)


def test_weights_that_lack_a_key_are_refused_and_the_key_is_named(
    inception_weights: Path, colour: Dataset, tmp_path: Path
):
    weights = torch.load(inception_weights, weights_only=True)
    del weights["fc.bias"]
    torch.save(weights, tmp_path / "short.pth")
    with pytest.raises(DataError, match=r"fc\.bias") as caught:
        open_features("inception", str(tmp_path / "short.pth"), colour, CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not weights", b"\x80\x02K\x01."])
def test_file_that_is_no_state_dictionary_is_refused(content: bytes, colour: Dataset, tmp_path: Path):
    (tmp_path / "bad.pth").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.pth"):
        open_features("inception", str(tmp_path / "bad.pth"), colour, CPU)


def test_list_of_tensors_is_no_state_dictionary(colour: Dataset, tmp_path: Path):
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(DataError, match="holds a list"):
        open_features("inception", str(tmp_path / "list.pth"), colour, CPU)


class RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("import normlab; normlab.was_run = True",)


def test_code_in_a_file_of_weights_is_never_run(colour: Dataset, tmp_path: Path):
    import normlab

    torch.save({"weight": RunsCode()}, tmp_path / "evil.pth")
    with pytest.raises(DataError, match="is no file of weights that loads without running code"):
        open_features("inception", str(tmp_path / "evil.pth"), colour, CPU)
    assert not hasattr(normlab, "was_run")


def test_classifier_of_grey_images_is_refused_for_colour(colour: Dataset):
    from normlab.evaluation.classifier import shipped_classifier

    grey = shipped_classifier("digits", (1, 32, 32))
    with pytest.raises(DataError, match="fitted to images 1x32x32, and some of these are 3x32x32"):
        open_features("classifier", str(grey), colour, CPU)


def test_file_that_is_not_what_its_name_promises_is_refused(inception_weights: Path, colour: Dataset, tmp_path: Path):
    wrong = tmp_path / "weights-0123abcd.pth"
    shutil.copy(inception_weights, wrong)
    with pytest.raises(DataError, match="0123abcd of its name"):
        open_features("inception", str(wrong), colour, CPU)


@pytest.mark.parametrize("layer", [64, 192, 768])
def test_an_earlier_layer_of_inception_bears_another_name(inception_weights: Path, colour: Dataset, layer: int):
    features = open_features(f"inception-{layer}", str(inception_weights), colour, CPU)
    found, logits = features.extract(pictures(3))
    assert found.shape == (2, layer) == (2, features.dimensions)
    assert logits is None
    assert not features.published
    assert features.name == f"inception-{layer}"


class Scripted(nn.Module):
    def __init__(self, with_logits: bool) -> None:
        super().__init__()
        self.with_logits = with_logits

    def forward(self, images: torch.Tensor):
        features = images.float().mean(dim=(2, 3))
        return (features, 2 * features) if self.with_logits else features


class Flat(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean()


@pytest.mark.parametrize("with_logits", [True, False])
def test_network_of_yours_gives_features_from_a_file(colour: Dataset, tmp_path: Path, with_logits: bool):
    example = pictures(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that tracing is to be replaced
        torch.jit.trace(Scripted(with_logits), example).save(tmp_path / "mine.pt")
    features = open_features("torchscript", str(tmp_path / "mine.pt"), colour, CPU)
    found, logits = features.extract(example)
    torch.testing.assert_close(found, example.float().mean(dim=(2, 3)))
    assert features.dimensions == 3
    assert (logits is not None) == with_logits
    assert features.digest == hashlib.sha256((tmp_path / "mine.pt").read_bytes()).hexdigest()[:12]


def test_network_that_gives_no_features_is_refused(colour: Dataset, tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(Flat(), pictures(3)).save(tmp_path / "flat.pt")
    (tmp_path / "none.pt").write_bytes(b"nothing")
    for name in ("flat.pt", "none.pt"):
        with pytest.raises(DataError, match=f"{name}: gives no features"):
            open_features("torchscript", str(tmp_path / name), colour, CPU)
    with pytest.raises(DataError, match=r"evaluation\.weights"):
        open_features("torchscript", None, colour, CPU)


def test_points_are_their_own_features():
    points = DATASETS.build("gaussians", {"limit": 50})
    features = open_features("auto", None, points, CPU)
    found, logits = features.extract(torch.tensor(points.train.pixels))
    assert torch.equal(found, torch.tensor(points.train.pixels).flatten(1))
    assert logits is None


def test_coordinates_of_images_are_refused(colour: Dataset):
    with pytest.raises(DataError, match="coordinates are of points"):
        open_features("coordinates", None, colour, CPU)


@pytest.mark.parametrize("kind", ["inception", "inception-64", "classifier"])
def test_features_of_images_are_refused_for_points(kind: str, inception_weights: Path):
    points = DATASETS.build("gaussians", {"limit": 50})
    weights = str(inception_weights) if kind != "classifier" else None
    with pytest.raises(DataError, match=r"evaluation\.features: .* of images, and those of 'gaussians' are points"):
        open_features(kind, weights, points, CPU)
