"""Runs that earlier versions wrote must stay readable: a folder for each schema of checkpoints."""

import json
import shutil
from pathlib import Path

import pytest

from normlab.outputs.checkpoints import SCHEMA

from ..conftest import Command

GOLDEN = Path(__file__).with_name("golden")
# The digest of each state, which is the same on every machine, as the version that wrote it printed it.
DIGESTS = {1: "f14fd8569acae33bb90a363b4e58a0af393c47f3bbfd22d2f7edc90f800c2b36"}


def test_every_schema_has_its_folder() -> None:
    assert {folder.name for folder in GOLDEN.iterdir()} == {f"schema_{schema}" for schema in range(1, SCHEMA + 1)}


@pytest.mark.parametrize("schema", DIGESTS)
def test_a_run_of_an_earlier_version_is_read_and_goes_on(
    normlab: Command, outputs: Path, tmp_path: Path, schema: int
) -> None:
    run = tmp_path / "run"
    shutil.copytree(GOLDEN / f"schema_{schema}", run)
    assert normlab("verify", "--digest-only", str(run)).stdout.strip() == DIGESTS[schema]

    continued = normlab("train", f"resume={run}", "train.until=6 steps")
    assert continued.exit_code == 0, continued.stderr
    assert "continues from step 4 of 6" in continued.stderr
    assert json.loads((run / "status.json").read_text())["step"] == 6
