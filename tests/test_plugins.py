"""A user's own parts, from a module of the user's own and a folder of configurations beside it."""

import json
import re
from pathlib import Path

import pytest

from .conftest import Command

MODULE = '''
from typing import Annotated

import torch

from normlab.losses import LOSSES, Loss
from normlab.normalizations import TECHNIQUES, Technique
from normlab.normalizations.base import Reparametrization
from normlab.settings import PositiveFloat


class Scaled(Reparametrization):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def reset(self, weight, rng):
        pass

    def forward(self, weight):
        return self.factor * weight


@TECHNIQUES.register("scaled")
def scaled(*, factor: PositiveFloat = 2.0) -> Technique:
    """Weights times a factor."""
    return Technique(name="scaled", weight=lambda layer, place: Scaled(factor))


@LOSSES.register("squared")
def squared() -> Loss:
    """Squared scores."""
    return Loss(lambda real, fake: (real - fake).square().mean(), lambda fake: fake.square().mean())
'''
EXTENDING = Path(__file__).parents[1] / "docs" / "extending.md"
QUICK = ["architecture.width=4", "train.until=2 steps", "evaluation=none"]


def test_a_part_of_ones_own_is_chosen_by_name(normlab: Command, outputs: Path, tmp_path: Path) -> None:
    (tmp_path / "own_parts.py").write_text(MODULE)
    trained = normlab("train", "plugins=[own_parts]", "loss.name=squared", *QUICK)

    assert trained.exit_code == 0, trained.stderr


def test_what_a_run_with_plugins_needs_is_said_where_they_are_missing(
    normlab: Command, outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_parts.py").write_text(MODULE)
    words = ["plugins=[own_parts]", "normalization.generator=scaled", *QUICK]
    assert normlab("train", *words).exit_code == 0
    (run,) = outputs.glob("*/*")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    refused = [normlab("verify", str(run)), normlab("sample", str(run))]
    unnamed = normlab("sample", str(run / "generator.safetensors"))
    monkeypatch.chdir(tmp_path)
    named = normlab("sample", str(run / "generator.safetensors"), "--plugins", "own_parts")

    assert [(ended.exit_code, ended.stderr.count("plugins: 'own_parts' cannot be imported")) for ended in refused] == [
        (2, 1),
        (2, 1),
    ]
    assert (unnamed.exit_code, named.exit_code) == (4, 0), named.stderr
    assert "there is no scaled here; --plugins MODULE imports what has it" in unnamed.stderr


def test_a_sweep_finds_the_runs_of_parts_that_have_no_file(normlab: Command, outputs: Path, tmp_path: Path) -> None:
    (tmp_path / "own_parts.py").write_text(MODULE)
    words = ["plugins=[own_parts]", *QUICK]
    assert normlab("train", *words, "normalization.generator=scaled", "seed=0").exit_code == 0
    looked = normlab("train", "-m", "--check", *words, "normalization.generator=scaled", "seed=0,1")
    named = normlab("train", "-m", "--check", *words, "++normalization.generator.name=scaled", "seed=0,1")
    tuned = ["normalization.generator=scaled", "normalization.generator.factor=2.0,3.0"]
    factors = normlab("train", "-m", "--check", *words, *tuned)

    for ended in (looked, named, factors):  # of the factors one is the default
        assert ended.exit_code == 0, ended.stderr
        assert "1 of 2 runs are missing" in ended.stdout


def test_a_part_that_no_plugin_has_is_refused_with_those_there_are(
    normlab: Command, outputs: Path, tmp_path: Path
) -> None:
    (tmp_path / "own_parts.py").write_text(MODULE)
    refused = normlab("train", "plugins=[own_parts]", "normalization.generator=scald", "loss.name=square", *QUICK)

    assert refused.exit_code == 2
    assert "normalization.generator: 'scald' is not known — did you mean 'scaled'?" in refused.stderr
    assert "loss: 'square' is not known — did you mean 'squared'?" in refused.stderr


def test_features_of_ones_own_score_a_run_and_need_a_digest(normlab: Command, outputs: Path, tmp_path: Path) -> None:
    """Those of the documentation; without a digest kept statistics would outlive the code that they are of."""
    blocks = re.findall(r"```python\n(.*?)```", EXTENDING.read_text(), re.DOTALL)
    (text,) = [block for block in blocks if "class Fields" in block]
    (tmp_path / "own_features.py").write_text(text)
    (tmp_path / "bare_features.py").write_text(re.sub("digest = .*", 'digest = ""', text))
    words = ["evaluation.features=fields", "evaluation.samples=20", *QUICK[:2]]
    trained = normlab("train", "plugins=[own_features]", *words)
    refused = normlab("train", "plugins=[bare_features]", *words)

    assert trained.exit_code == 0, trained.stderr
    (rows,) = outputs.glob("*/*/evaluations.jsonl")
    assert re.match("fields-[0-9a-f]{12}/", json.loads(rows.read_text().splitlines()[0])["protocol"])
    assert refused.exit_code == 3
    assert "error: evaluation.features: 'fields' has no digest" in refused.stderr


def test_a_folder_of_configurations_adds_choices_to_the_groups(normlab: Command, outputs: Path, tmp_path: Path) -> None:
    (tmp_path / "own_parts.py").write_text(MODULE)
    (tmp_path / "own" / "technique").mkdir(parents=True)
    (tmp_path / "own" / "technique" / "scaled.yaml").write_text("name: scaled\nfactor: 2.0\n")
    words = ["train", "--config-dir", "own", "plugins=[own_parts]", "normalization.generator=scaled", *QUICK]
    trained = normlab(*words, "normalization.generator.factor=3")
    refused = normlab(*words, "normalization.generator.factor=-3")

    assert trained.exit_code == 0, trained.stderr
    (layers,) = outputs.glob("*/*/layers.json")
    assert {row["technique"] for row in json.loads(layers.read_text()) if row["network"] == "generator"} == {"scaled"}
    assert refused.exit_code == 2
    assert "normalization.generator.factor: got -3" in refused.stderr
