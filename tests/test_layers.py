"""Which way the imports go: low never imports high, and the parts know neither configuration nor Hydra."""

import ast
from pathlib import Path

import pytest

import normlab

ROOT = Path(normlab.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

READERS = {"progress", "reports", "threads"}
# A package and what it may import of normlab besides itself and the modules that all may use.
FOR_ALL = {"errors", "settings", "registry", "randomness", "signals", "ranks", ""}
MAY_IMPORT = {
    "errors": set[str](),
    "saved_yaml": set[str](),
    "settings": set[str](),
    "registry": set[str](),
    "latents": set[str](),
    "randomness": set[str](),
    "signals": set[str](),
    "ranks": set[str](),
    "distributed": set[str](),
    "normalizations": set[str](),
    "losses": set[str](),
    "penalties": set[str](),
    "constraints": set[str](),
    "data": {"outputs"},
    "networks": {"normalizations"},
    "outputs": set[str](),
    "evaluation": {"data", "outputs"},
    "config": {"saved_yaml"},
    "training": {
        "config",
        "constraints",
        "data",
        "losses",
        "networks",
        "normalizations",
        "outputs",
        "penalties",
    },
    "composition": {"config"},
    "reports": {"config", "outputs"},
    "progress": {"config", "outputs", "training"},
    "threads": {"config", "outputs"},
    "assemble": {
        "config",
        "constraints",
        "data",
        "evaluation",
        "losses",
        "networks",
        "normalizations",
        "outputs",
        "penalties",
        "progress",
        "scoring",
        "training",
    },
    "scoring": {"config", "data", "evaluation"},
    "rescoring": {
        "assemble",
        "config",
        "data",
        "evaluation",
        "networks",
        "outputs",
        "progress",
        "scoring",
        "training",
    },
    "following": {"assemble", "config", "distributed", "outputs", "training"},
    "launching": {
        "footprint",
        "following",
        "assemble",
        "composition",
        "config",
        "data",
        "evaluation",
        "outputs",
        *READERS,
        "rescoring",
        "training",
    },
    "trial": {"assemble", "config", "following", "footprint", "launching", "training"},
    "loading": {"assemble", "config", "evaluation", "networks", "outputs"},
    "footprint": {"assemble", "config", "networks", "outputs", "reports", "training"},
    "sweeps": {"composition", "config", "outputs", "training", *READERS},
    "verbs": {
        "footprint",
        "assemble",
        "composition",
        "config",
        "evaluation",
        "latents",
        "launching",
        "loading",
        "networks",
        "outputs",
        *READERS,
        "rescoring",
        "scoring",
        "sweeps",
        "training",
    },
    "cli": {"distributed", "following", "verbs"},
    "__main__": {"cli"},
}
ONLY_THERE = {
    "hydra": {"composition.py"},
    "omegaconf": {"composition.py", "config.py"},
    "matplotlib": {"outputs/plots.py", "reports/figures.py"},
    "torch.distributed": {"distributed.py"},
    "scipy": {"reports/statistics.py"},
    "jinja2": {"reports/page.py"},
    "torchmetrics": {"evaluation/classes.py"},
    "torch.utils.tensorboard": {"outputs/sinks.py"},
}


def imports(file: Path) -> set[str]:
    tree = ast.parse(file.read_text())
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layer(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_imports_what_is_below_it(file: Path) -> None:
    own = layer(file)
    if own == "__init__":
        return
    imported = {name.split(".")[1] if "." in name else "" for name in imports(file) if name.split(".")[0] == "normlab"}
    allowed = MAY_IMPORT[own] | FOR_ALL | {own, "__version__"}

    assert imported <= allowed, f"{file.relative_to(ROOT)} may not import {sorted(imported - allowed)}"


@pytest.mark.parametrize("library", ONLY_THERE)
def test_a_library_stays_in_its_place(library: str) -> None:
    users = {
        file.relative_to(ROOT).as_posix()
        for file in FILES
        if any(name == library or name.startswith(f"{library}.") for name in imports(file))
    }

    assert users == ONLY_THERE[library]
