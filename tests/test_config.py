"""The configuration: one set of defaults, folder names, what a resumed run may change."""

import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from normlab import assemble, composition, config
from normlab.config import PARTS, RunConfig

PART_GROUPS = sorted(set(PARTS.values()))


def composed(*words: str) -> RunConfig:
    tree, complaints = composition.compose(list(words))
    settings, more = config.read(tree)
    assert not complaints + more
    return settings


def name(*words: str) -> str:
    return config.run_name(composed(*words), composition.part_defaults)


@pytest.mark.parametrize("group", PART_GROUPS)
def test_the_files_of_a_group_are_the_parts_of_its_registry(group: str) -> None:
    assert composition.choices(group) == assemble.REGISTRIES[group].names()


@pytest.mark.parametrize("group", PART_GROUPS)
def test_every_file_gives_every_parameter_at_its_default(group: str) -> None:
    registry = assemble.REGISTRIES[group]
    for part in registry.names():
        declared = {
            key: list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
            for key, parameter in registry.parameters(part).items()
        }
        given = composition.part_defaults(group, part)
        if group == "optimizer":
            networks = {network: given.pop(network) for network in ("generator", "discriminator")}
            assert networks == dict.fromkeys(networks, dict.fromkeys(declared))
        if group == "dataset" and "root" in given:
            given["root"] = {"${oc.env:NORMLAB_DATA,data}": "data"}[given["root"]]
        assert given == declared, part


def test_config_yaml_and_the_dataclasses_have_the_same_defaults() -> None:
    settings, defaults = composed(), RunConfig()

    def names_only(value: Any) -> Any:
        if is_dataclass(value):
            return {
                field.name: names_only(getattr(value, field.name)) for field in fields(value) if field.name != "params"
            }
        return None if isinstance(value, dict) else value

    assert names_only(settings) == names_only(defaults)


# What some choices make sense with alone.
CONDITIONAL = ["architecture=sngan_resnet", "architecture.conditional=true"]
BESIDE = {
    ("dataset", "gaussians"): ["architecture=mlp"],
    ("penalty", "spectral_regularization"): ["normalization=none"],
    ("constraint", "clip"): ["normalization=none"],
    ("technique", "conditional_batch"): CONDITIONAL,
}


@pytest.mark.parametrize("group", composition.groups())
def test_every_choice_composes_and_fits_its_parts(group: str) -> None:
    for choice in composition.choices(group):
        # All at once, since composing takes a while, and what one slot holds is nothing to another.
        slots = [slot for slot, slot_group in composition.SLOTS.items() if slot_group == group] or [group]
        if (group, choice) == ("technique", "gradient"):  # which is of a score
            slots.remove("normalization.generator")
        assert assemble.check(composed(*(f"{slot}={choice}" for slot in slots), *BESIDE.get((group, choice), []))) == []


def test_a_written_configuration_reads_back_equal(tmp_path: Path) -> None:
    settings = composed("ema=standard", "optimizer.schedule=cosine", "train.time_limit=5 minutes", "every.log=null")
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(settings))

    assert config.load(path) == settings


@pytest.mark.parametrize(
    "words",
    [
        *[[f"experiment={name}"] for name in composition.choices("experiment") if name != "tuned_comparison"],
        ["penalty=[r1,orthogonal]", "penalty.r1.every=16", "optimizer=adamw", "optimizer.schedule=cosine"],
        ["optimizer.generator.lr=1e-3", "every.evaluate=null", "train.time_limit=90 minutes", "plugins=[]"],
        [
            "evaluation.features='a, (b)'",
            "name=v1.5",
            "dataset=gaussians",
            "architecture=mlp",
            "precision=bf16",
            "force=true",
        ],
    ],
    ids=lambda words: words[0],
)
def test_the_words_of_a_configuration_give_it_again(words: list[str]) -> None:
    settings = composed(*words)

    assert composed(*composition.words_of(settings)) == settings


def test_a_normalization_varies_the_discriminator_and_both_varies_both() -> None:
    assert composed("normalization=layer").label == "G:batch D:layer"
    assert composed("normalization=both/layer").label == "G:layer D:layer"


@pytest.mark.parametrize("order", [1, -1])
def test_a_swap_and_its_parameter_work_in_any_order(order: int) -> None:
    words = ["normalization.generator=spectral", "normalization.generator.power_iterations=5", "normalization=weight"]
    settings = composed(*words[::order])

    assert settings.label == "G:spectral D:weight"
    params = {"power_iterations": 5, "advance": "update", "exempt": []}
    assert settings.normalization.generator.params == params


def test_one_networks_optimizer_inherits_what_it_does_not_set() -> None:
    optimizer = composed("optimizer.lr=1e-3", "optimizer.generator.lr=5e-4").optimizer

    assert optimizer.of("generator").params["lr"] == 5e-4
    assert optimizer.of("discriminator").params["lr"] == 1e-3
    assert optimizer.of("generator").params["betas"] == [0.5, 0.999]


FREE = "device=cpu|every.log=7 steps|train.until=99 epochs|train.time_limit=1 minute|debug=true|name=other|fresh=true"
AT_DEFAULT = "evaluation.weights=x|seed=0|optimizer.lr=0.0002|optimizer.betas=[0.5,0.999]|loss=non_saturating"
TELLING = (
    "seed=1|precision=bf16|train.batch_size=32|train.discriminator_steps=2|loss=hinge|ema=standard|plugins=[normlab]"
)
TELLING += "|normalization=layer|normalization.discriminator.power_iterations=2|architecture.width=16|dataset.limit=100"
TELLING += "|optimizer.lr=1e-3|optimizer.generator.lr=1e-3|optimizer.schedule=linear|evaluation.samples=100"


def test_workers_do_not_change_the_folder_and_streaming_does() -> None:
    plain = name("dataset=image_folder")
    assert name("dataset=image_folder", "dataset.workers=9") == plain
    assert name("dataset=image_folder", "dataset.streamed=true") != plain


@pytest.mark.parametrize("word", f"{FREE}|{AT_DEFAULT}".split("|"))
def test_what_does_not_change_the_result_does_not_change_the_folder(word: str) -> None:
    assert name(word) == name()


def test_where_the_data_lies_does_not_change_the_folder() -> None:
    assert name("dataset=mnist", "dataset.root=/a", "dataset.download=false") == name(
        "dataset=mnist", "dataset.root=/b"
    )


@pytest.mark.parametrize("word", TELLING.split("|"))
def test_what_changes_the_result_changes_the_folder(word: str) -> None:
    assert name(word) != name()


def test_the_name_of_the_default_run_stays() -> None:
    """Changing it orphans every run that anybody has begun."""
    assert name() == "digits-dcgan-G.batch-D.spectral-seed0-" + GOLDEN_DIGEST


GOLDEN_DIGEST = "1b75d35f"


def test_reading_a_configuration_imports_no_torch() -> None:
    code = "import sys; from normlab import cli, composition, config, sweeps; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
