"""The documentation against what it speaks of: its tables, its code, its commands."""

import re
import shlex
from pathlib import Path

import pytest

from normlab.assemble import REGISTRIES

from .conftest import Command

DOCS = Path(__file__).parents[1] / "docs"
TINY = ["architecture.width=4", "train.until=2 steps", "train.batch_size=16", "evaluation=none"]


def tables(text: str, marker: str) -> dict[str, list[str]]:
    """Return the parameters in the last column of the table below a marker, by the name in its first."""
    rows = text.split(f"<!-- {marker}: ", 1)[1].split("\n\n", 1)[0].splitlines()[3:]
    cells = [re.split(r"(?<!\\)\|", row)[1:-1] for row in rows]
    return {row[0].strip(" `"): re.findall(r"`(\w+)`", row[-1]) for row in cells}


@pytest.mark.parametrize(("marker", "group"), [("techniques", "technique"), ("penalties", "penalty")])
def test_the_tables_list_what_the_registries_hold(marker: str, group: str) -> None:
    registry = REGISTRIES[group]
    listed = tables((DOCS / "normalizations.md").read_text(), marker)

    assert listed == {name: list(registry.parameters(name)) for name in listed}
    assert sorted(listed) == registry.names()


def test_every_technique_has_an_entry_of_its_own() -> None:
    text = (DOCS / "normalizations.md").read_text()
    entries = {
        name for line in text.splitlines() if line.startswith("**") for name in re.findall(r"\*\*(\w+)\*\*", line)
    }

    assert entries == set(REGISTRIES["technique"].names())


@pytest.mark.slow
def test_the_parts_of_ones_own_that_the_docs_show_are_modules_that_work(
    normlab: Command, outputs: Path, tmp_path: Path
) -> None:
    text = (DOCS / "extending.md").read_text()
    modules = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    commands = [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("    normlab ")]
    for name, module in zip(("my_parts", "my_features"), modules, strict=True):
        (tmp_path / f"{name}.py").write_text(module)
        assert len(module.splitlines()) < 30
    assert len(commands) == 4
    # One run of the sweep's two, which then finds it complete: what a sweep starts imports torch anew.
    assert normlab("train", "plugins=[my_parts]", "normalization.discriminator=standardized", *TINY).exit_code == 0
    for words in commands:
        ended = normlab(*words, *(TINY if words[0] == "train" else []))
        assert ended.exit_code == 0, f"{words}: {ended.stderr}"
    assert len(list(outputs.glob("*/*/generator.safetensors"))) == 4
