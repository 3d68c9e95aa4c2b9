"""What is refused: one line on stderr that names the key, the value and the way out; the right code; no folder left."""

import json
from pathlib import Path

import pytest
from PIL import Image

from .conftest import Command

QUICK = ["evaluation.features=none", "architecture.width=4", "train.until=2 steps"]


@pytest.mark.parametrize(
    ("words", "key", "says"),
    [
        (["lr=1"], "lr", "optimizer.lr"),
        (["train.batch_size=0"], "train.batch_size", "got 0 — give a whole number at least 1"),
        (["normalization=spectrl"], "normalization", "'spectrl' is not known — did you mean 'spectral'?"),
        (["optimizer.generator.lr=abc"], "optimizer.generator.lr", "got 'abc' — give a number above 0"),
        (["train.until=5"], "train.until", "got 5 — give a length with its unit"),
        (
            ["normalization.discriminator=layer", "normalization.discriminator.power_iterations=3"],
            "normalization.discriminator.power_iterations",
            "'power_iterations' is not a parameter of 'layer'",
        ),
        (["normalization.discriminator.power_iterations=0"], "normalization.discriminator.power_iterations", "got 0"),
        (["optimizer.lr=-1"], "optimizer.lr", "got -1"),
        (["optimizer.discriminator.betas=[0.5,2]"], "optimizer.discriminator.betas", "got [0.5, 2]"),
        (["optimizer.momentum=0.9"], "optimizer.momentum", "'momentum' is not a parameter of 'adam'"),
        (["optimizer.schedule=linear", "optimizer.schedule.floor=1"], "optimizer.schedule.floor", "got 1"),
        (["seed=-1"], "seed", "got -1"),
        (["seed=20000000000000000000"], "seed", "got 20000000000000000000"),
        (["seed=0,1"], "seed", "add -m"),
        (["architecture.width=9999999999999"], "architecture.width", "got 9999999999999"),
        (["ema.decay=1.5"], "ema.decay", "got 1.5"),
        (["every.evaluate=3 minutes"], "every.evaluate", "got '3 minutes'"),
        (["name=../../x"], "name", "got '../../x'"),
        (["precision=fp16"], "precision", "one of fp32, tf32, bf16"),
        (["device=cpu", "precision=tf32"], "precision", "tf32 is of GPUs"),
        (["device=cpu", "train.capture=graph"], "train.capture", "graph is of GPUs"),
        (["device=cuda:97"], "device", "'cuda:97'"),
        (["plugins=[no_such_module]"], "plugins", "'no_such_module' cannot be imported"),
        (["resume=nowhere"], "resume", "there is no run in 'nowhere'"),
        (["++resume=nowhere"], "resume", "there is no run in 'nowhere'"),
        (["train=3"], "train", "train.until"),
        (["+foo=1"], "foo", "'foo' is not a setting"),
        (["~dataset"], "~dataset", "takes a setting away"),
        (["dataset=5"], "dataset", "got 5 — set what is in it"),
        (["optimizer=null"], "optimizer", "got null"),
        (["=5"], "=5", "got 5"),
        (["seed='"], "seed", "put quotes around it"),
        (
            ["optimizer.schedule=linear", "optimizer.schedule.horizon=1 minute"],
            "optimizer.schedule.horizon",
            "1 minute",
        ),
        (["every.log=1e-323 epochs"], "every.log", "got '1e-323 epochs'"),
        (["plugins=['']"], "plugins", "cannot be imported"),
        (["--config-dir", "nowhere"], "--config-dir", "there is no folder 'nowhere'"),
        (["dataset.image_size=36"], "dataset.image_size", "no form for images of 36 px"),
        (
            ["normalization=group", "architecture.width=12"],
            "normalization.discriminator",
            "channels_per_group=16 does not divide",
        ),
        (["train.until"], "train.until", "write KEY=VALUE"),
        (["name=/tmp/x"], "name", "got '/tmp/x'"),
        (['name="x\ny"'], "name", "got 'x\\ny'"),
        (["hydra.run.dir=../../x"], "hydra.run.dir", "changes nothing in a single run"),
        (["hydra/launcher=joblib"], "hydra/launcher", "add -m"),
        (["train.discriminator_steps=0"], "train.discriminator_steps", "got 0"),
        (["architecture.latent_size=0"], "architecture.latent_size", "got 0"),
        (["train.until='0 steps'"], "train.until", "got '0 steps'"),
        (["optimizer.lr=nan"], "optimizer.lr", "got nan"),
        (["train.batchsize=3"], "train.batchsize", "train.batch_size"),
        (["penalty.r1.weight=3"], "penalty.r1.weight", "add penalty=r1"),
        (["penalty=r1", "penalty.r1.weigth=3"], "penalty.r1.weigth", "did you mean 'weight'?"),
        (["penalty=r1", "penalty.r1.weight=-3"], "penalty.r1.weight", "give a number at least 0"),
        (["penalty=[r1,r7]"], "penalty", "'r7' is not known"),
        (["normalization=batch", "penalty=wgan_gp"], "penalty.wgan_gp", "choose layer, instance or none for"),
        (["loss=wasserstein", "normalization=none"], "loss", "add penalty=wgan_gp, constraint=clip or"),
        (
            ["loss=wasserstein", "normalization=none", "penalty=r1", "penalty.r1.weight=0"],
            "loss",
            "add penalty=wgan_gp",
        ),
        (["loss=wasserstein", "normalization=weight"], "loss", "add penalty=wgan_gp or normalization=spectral"),
        (["penalty=spectral_regularization"], "penalty.spectral_regularization", "choose one of the two"),
        (["constraint=clip", "normalization=adaptive"], "constraint", "choose none or an activation norm"),
        (["normalization.generator=gradient"], "normalization.generator", "give the discriminator it"),
        (
            ["normalization.generator=conditional_batch"],
            "normalization.generator",
            "give architecture.conditional=true",
        ),
        (
            ["architecture=sngan_cnn", "architecture.conditional=true"],
            "normalization.generator",
            "choose conditional_batch",
        ),
        (["architecture=sngan_cnn", "architecture.generator_channels=[1,2]"], "architecture", "lists of these lengths"),
        (["dataset=gaussians"], "architecture", "dcgan has no form for images of 1 px"),
        (["normalization.discriminator.power_iterations=1e9"], "normalization.discriminator.power_iterations", "1000"),
        (
            ["normalization=adaptive", "normalization.discriminator.least=2", "normalization.discriminator.most=1"],
            "normalization.discriminator",
            "init=1.0 does not lie between least=2.0 and most=1.0",
        ),
        (
            ["normalization.discriminator.exempt=[first,hidden,last]"],
            "normalization.discriminator",
            "would leave every layer of this network alone",
        ),
        (
            ["dataset=gaussians", "architecture=mlp", "normalization=instance"],
            "normalization.discriminator",
            "choose none, or force=true",
        ),
        (["loss=foo"], "loss", "there are hinge, least_squares, non_saturating, wasserstein"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_setting(normlab: Command, outputs: Path, words: list[str], key: str, says: str) -> None:
    result = normlab("train", *words)

    (line,) = result.stderr.splitlines()
    assert result.exit_code == 2
    assert line.startswith(f"error: {key}")
    assert says in line
    assert " — " in line
    assert not outputs.exists()


@pytest.mark.parametrize(
    "words",
    [
        ["loss=wasserstein", "normalization=weight_strict"],
        ["loss=wasserstein", "normalization=adaptive", "normalization.discriminator.alpha=0"],
        ["loss=wasserstein", "normalization=adaptive", "normalization.discriminator.most=2"],
        ["penalty=spectral_regularization", "normalization=spectral_gamma"],
        ["penalty=spectral_regularization", "normalization=weight_strict"],
        ["penalty=spectral_regularization", "normalization=spectral_conv"],
        ["penalty=spectral_regularization", "normalization.discriminator.exempt=[first]"],
    ],
    ids=" ".join,
)
def test_what_makes_sense_is_not_refused(normlab: Command, words: list[str]) -> None:
    assert normlab("train", "--check", *words).exit_code == 0


def test_all_that_is_wrong_is_said_at_once(normlab: Command, outputs: Path) -> None:
    """Whoever finds it: Hydra, the reader of the settings, the parts, or the machine."""
    words = ["lr=1", "train.batch_size=0", "normalization=spectrl", "loss=hing", "train.until=5", "device=cuda:97"]
    result = normlab("train", *words, "optimizer.lr=-1", "dataset.image_size=5")

    keys = [line.split(":")[1].strip() for line in result.stderr.splitlines()]
    expected = ["lr", "train.batch_size", "normalization", "loss", "train.until", "device"]
    assert sorted(keys) == sorted([*expected, "optimizer.lr", "dataset.image_size"])
    assert result.exit_code == 2


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((40, 40), 60).save(path)


def test_a_missing_folder_of_images(normlab: Command, outputs: Path) -> None:
    result = normlab("train", "dataset=image_folder", "dataset.root=/no/such/folder", *QUICK)

    (line,) = result.stderr.splitlines()
    assert result.exit_code == 3
    assert "/no/such/folder" in line
    assert " — " in line
    assert not outputs.exists()


def test_an_empty_folder_of_images(normlab: Command, outputs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = normlab("train", "dataset=image_folder", f"dataset.root={tmp_path / 'empty'}", *QUICK)

    (line,) = result.stderr.splitlines()
    assert result.exit_code == 3
    assert str(tmp_path / "empty") in line
    assert not outputs.exists()


def test_a_truncated_image_is_named(normlab: Command, outputs: Path, tmp_path: Path) -> None:
    for number in range(20):
        picture(tmp_path / "images" / f"{number}.jpg")
    whole = (tmp_path / "images" / "7.jpg").read_bytes()
    (tmp_path / "images" / "7.jpg").write_bytes(whole[: len(whole) // 2])
    result = normlab("train", "dataset=image_folder", f"dataset.root={tmp_path / 'images'}", *QUICK)

    (line,) = result.stderr.splitlines()
    assert result.exit_code == 3
    assert "7.jpg" in line
    assert not outputs.exists()


def test_networks_too_large_for_memory_are_refused_before_there_is_a_folder(normlab: Command, outputs: Path) -> None:
    refused = normlab("train", "architecture.width=50000", "evaluation=none")

    assert refused.exit_code == 5
    assert "free" in refused.stderr
    assert not outputs.exists()


@pytest.mark.parametrize("dataset", ["digits", "stacked"])
def test_a_file_that_holds_no_weights_is_refused_in_plain_words(
    normlab: Command, outputs: Path, tmp_path: Path, dataset: str
) -> None:
    (tmp_path / "page.html").write_text("<html>not found</html>")
    for number in range(8):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / f"{number}.png")
    words = ["dataset=digits"] if dataset == "digits" else ["dataset=image_folder", f"dataset.root={tmp_path}"]
    refused = normlab("train", *words, "train.batch_size=2", f"evaluation.weights={tmp_path / 'page.html'}")

    assert refused.exit_code == 3, refused.stderr
    (line,) = refused.stderr.splitlines()[-1:]
    assert line.startswith(f"error: {tmp_path / 'page.html'}: ")
    assert "weights_only" not in line
    assert "delete" not in line


def test_a_resumed_run_says_what_it_does_not_take(normlab: Command, outputs: Path) -> None:
    assert normlab("train", *QUICK).exit_code == 0
    (run,) = outputs.glob("*/*")
    refused = normlab("train", f"resume={run}", "lr=3", "fresh=true", "allow_changes=[foo]")

    assert refused.exit_code == 2
    assert "error: lr: is no setting — did you mean optimizer." in refused.stderr
    assert "error: fresh: cannot be given with resume" in refused.stderr
    assert "error: allow_changes: 'foo' is no setting" in refused.stderr
    assert normlab("train", f"resume={run}", "seed=0").exit_code == 0


def test_where_there_is_no_run_to_resume_all_else_that_is_wrong_is_said_too(normlab: Command) -> None:
    refused = normlab("train", "resume=nowhere", "optimizer.lr=nan", "experiment=spectrl", "seed=abc")

    assert refused.exit_code == 2
    wheres = [line.split(": ")[1] for line in refused.stderr.splitlines()]
    assert sorted(wheres) == ["experiment", "optimizer.lr", "resume", "seed"]


def test_a_batch_larger_than_the_data(normlab: Command, outputs: Path) -> None:
    result = normlab("train", "train.batch_size=2000", *QUICK)

    (line,) = result.stderr.splitlines()
    assert result.exit_code == 3
    assert line.startswith("error: train.batch_size: is 2000, but there are only 1437 training images — ")
    assert not outputs.exists()


def test_missing_inception_weights_are_said_before_training(
    normlab: Command, outputs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    result = normlab("train", "evaluation.features=inception", "evaluation.weights=/no/such/file", *QUICK[1:])

    (line,) = result.stderr.splitlines()
    assert result.exit_code == 3
    assert "/no/such/file" in line
    assert "evaluation=none" in line
    assert not outputs.exists()


def test_a_run_that_diverges_stops_with_code_6_and_stays_diverged(normlab: Command, outputs: Path) -> None:
    words = [
        "train",
        "optimizer=sgd",
        "optimizer.lr=1e30",
        "loss=wasserstein",
        "force=true",
        "normalization=both/none",
        *QUICK,
    ]
    words[-1] = "train.until=50 steps"
    first, second = normlab(*words), normlab(*words)

    assert (first.exit_code, second.exit_code) == (6, 6)
    assert "non-finite" in first.stderr
    (status,) = outputs.glob("*/*/status.json")
    assert '"state": "diverged"' in status.read_text()


def test_the_checkpoints_of_a_run_that_diverges_are_finite(normlab: Command, outputs: Path, tmp_path: Path) -> None:
    (tmp_path / "failing_loss.py").write_text(
        "from normlab.losses import LOSSES, Loss\n"
        "usual, calls = LOSSES['non_saturating'](), []\n"
        "def discriminator(real, fake):\n"
        "    calls.append(real)\n"
        # The first call is of the spectra at step 0, the sixth of the fifth update.
        "    return usual.discriminator(real, fake) * (float('nan') if len(calls) == 6 else 1)\n"
        "@LOSSES.register('failing')\n"
        "def failing() -> Loss:\n"
        "    return Loss(discriminator, usual.generator)\n"
    )
    words = ["train", "plugins=[failing_loss]", "loss.name=failing", "every.checkpoint=1 step", "every.log=1 step"]
    first, second = (normlab(*words, *QUICK[:2], "train.until=50 steps") for _ in range(2))
    (run,) = outputs.glob("*/*")

    assert (first.exit_code, second.exit_code) == (6, 6), first.stderr
    assert "loss/discriminator: became non-finite after step 4, at step 5 at the latest" in first.stderr
    newest = max((run / "checkpoints").glob("*.pt"))
    assert newest.name == "step_00000004.pt"
    assert normlab("verify", str(run)).exit_code == 0
    assert not (run / "generator.safetensors").exists()


def test_a_setting_changed_behind_the_back_of_a_run_is_refused(normlab: Command, outputs: Path) -> None:
    assert normlab("train", *QUICK).exit_code == 0
    (saved,) = outputs.glob("*/*/config.yaml")
    saved.write_text(saved.read_text().replace("lr: 0.0002", "lr: 0.5"))
    result = normlab("train", *QUICK)

    assert result.exit_code == 2
    assert "optimizer.lr: is 0.0002, but 0.5 in the run" in result.stderr


def test_a_parameter_that_a_run_did_not_have_yet_is_no_change(normlab: Command, outputs: Path) -> None:
    words = ["train", "optimizer.schedule=linear", *QUICK]
    assert normlab(*words).exit_code == 0
    (saved,) = outputs.glob("*/*/config.yaml")
    saved.write_text("".join(line for line in saved.read_text().splitlines(True) if "start: 0.0" not in line))
    again = normlab(*words)

    assert again.exit_code == 0, again.stderr
    assert again.stdout.startswith("already complete")


def test_a_resumed_run_takes_only_what_does_not_change_its_result(normlab: Command, outputs: Path) -> None:
    assert normlab("train", *QUICK).exit_code == 0
    (run,) = outputs.glob("*/*")
    refused = normlab("train", f"resume={run}", "seed=1", "train.until=4 steps")
    taken = normlab("train", f"resume={run}", "train.until=4 steps")

    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: seed: ")
    assert taken.exit_code == 0


def test_a_setting_that_matters_may_change_on_purpose_and_the_run_tells_of_it(normlab: Command, outputs: Path) -> None:
    assert normlab("train", *QUICK).exit_code == 0
    (run,) = outputs.glob("*/*")
    words = ["optimizer.betas=[0.0,0.9]", "train.until=4 steps"]
    refused = normlab("train", f"resume={run}", *words)
    taken = normlab("train", f"resume={run}", "allow_changes=[optimizer.betas]", *words)
    again = normlab("train", f"resume={run}", "train.until=6 steps")

    assert refused.exit_code == 2
    assert "give allow_changes=[optimizer.betas]" in refused.stderr
    assert (taken.exit_code, again.exit_code) == (0, 0), taken.stderr + again.stderr
    (change,) = (json.loads(line) for line in (run / "changes.jsonl").read_text().splitlines())
    assert change == {"step": 2, "key": "optimizer.betas", "before": [0.5, 0.999], "after": [0.0, 0.9]}
    assert "allow_changes: []" in (run / "config.yaml").read_text()


def test_an_unknown_verb(normlab: Command) -> None:
    result = normlab("tran")

    assert result.exit_code == 2
    assert "did you mean 'train'?" in result.stderr
