"""From the words of a command line to a tree of plain values, by Hydra: the one module that knows it."""

import json
import os
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import hydra
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from normlab import config
from normlab.config import PARTS, RunConfig, Tree, flatten
from normlab.errors import Complaint, ConfigurationError
from normlab.registry import nearest, unknown

# The settings of Hydra's launchers stand in `configs/hydra`, under the names of the plugins' own, which they replace.
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/.*is validated against ConfigStore schema")

# Keys that take the name of a part although they are no groups of their own: `normalization.discriminator=layer`.
SLOTS = {where: group for where, group in PARTS.items() if "." in where}

# The parameters, with their defaults, of parts that have no file: group, name.
OFFERED: dict[tuple[str, str], Tree] = {}

# What Hydra raises over words that it cannot make sense of.
REFUSALS = (HydraException, OmegaConfBaseException, ValueError)


def configs_dir() -> Path:
    """Return the folder of configuration groups: the copy inside an installed package, else that of the checkout."""
    here = Path(__file__).resolve().parent
    candidates = (here / "configs", here.parents[1] / "configs")
    return next(folder for folder in candidates if (folder / "config.yaml").is_file())


def offer(group: str, name: str, parameters: Tree) -> None:
    """Let a part that has no file be chosen, and its parameters be set, as if it had one."""
    if name in choices(group):
        return
    OFFERED[group, name] = parameters
    node = {name: parameters} if group == "penalty" else {"name": name, **parameters}
    ConfigStore.instance().store(group=group, name=name, node=node)


def plugins_of(words: list[str]) -> tuple[str, ...]:
    """Return the modules that a command line wants imported, which may register parts that other words choose."""
    named: list[str] = []
    for word in words:
        key, _, value = word.partition("=")
        if key.lstrip("+") == "plugins":
            named = [name.strip("'\" ") for name in value.strip("[]").split(",")]
    return tuple(name for name in named if name)


def with_slots(word: str) -> str:
    """Rewrite `normalization.generator=layer` to Hydra's own form, `technique@normalization.generator=layer`.

    `normalization.generator.name=layer` means the same.
    """
    key, equals, value = word.partition("=")
    if equals and value.startswith("~/"):  # what a shell leaves alone, and Hydra cannot read
        value = str(Path.home() / value[2:])
    part, _, last = key.lstrip("+").rpartition(".")
    if last == "name" and part in PARTS:
        key = part
    return f"{SLOTS[key]}@{key}={value}" if equals and key in SLOTS else f"{key}{equals}{value}"


def configure(words: list[str], config_dir: str | None = None) -> tuple[RunConfig, list[Complaint]]:
    """Return the configuration of the overrides, or of the run that `resume=` names, and what is wrong with it."""
    resumed = [word for word in words if re.match(r"\+{0,2}resume=(?!$|null$)", word)]
    if resumed:
        folder = resumed[-1].partition("=")[2].strip("'\"")
        return _resumed(folder, [word for word in words if word not in resumed])
    tree, complaints = compose(words, config_dir)
    settings, more = config.read(tree)
    return settings, complaints + more


def _resumed(folder: str, words: list[str]) -> tuple[RunConfig, list[Complaint]]:
    """Take a run's own configuration with the overrides, but for those that would choose another folder."""
    path = Path(folder).expanduser() / "config.yaml"
    if not path.is_file():
        # The other words are held against the defaults, so that all that is wrong is said at once.
        settings, complaints = configure(words)
        missing = Complaint("resume", f"there is no run in '{folder}'", "name a folder that holds a config.yaml")
        return settings, [missing, *complaints]
    placing = [word for word in words if word.lstrip("+").partition("=")[0] in config.PLACING]
    saved = config.write(config.load(path))
    tree, complaints = override(saved, [word for word in words if word not in placing])
    settings, more = config.read(tree)
    complaints += [
        Complaint(word.partition("=")[0], "cannot be given with resume", "leave it out, or start a new run")
        for word in placing
    ]
    known = {key for key, _ in flatten(saved)}
    complaints += [
        Complaint("allow_changes", f"'{key}' is no setting", _unknown_key(key, saved).remedy)
        for key in settings.allow_changes
        if key not in known
    ]
    # Whether what has changed may change is judged when the run goes on, as for the same command.
    return replace(settings, resume=str(path.parent.resolve())), [*complaints, *more]


def compose(overrides: list[str], config_dir: str | None = None) -> tuple[Tree, list[Complaint]]:
    """Return the tree that the overrides describe, and a complaint for each override that had to be left out."""
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ConfigurationError("--config-dir", f"there is no folder '{config_dir}'", "name a folder of groups")
    # Deleting a setting would leave a configuration that does not say all that a run is.
    deleting = [word for word in overrides if word.startswith("~")]
    words = [with_slots(word) for word in overrides if word not in deleting]
    complaints = [Complaint(word, "takes a setting away", "give it another value instead") for word in deleting]
    try:
        return _compose(words, config_dir), complaints
    except REFUSALS:
        tree, more = _compose_what_holds(words, config_dir)
        return tree, complaints + more


def override(tree: Tree, overrides: list[str]) -> tuple[Tree, list[Complaint]]:
    """Return a tree with plain `KEY=VALUE` overrides of what is in it, and a complaint for each that does not fit."""
    merged = OmegaConf.create(tree)
    OmegaConf.set_struct(merged, True)
    complaints: list[Complaint] = []
    for word in overrides:
        try:
            (parsed,) = OverridesParser.create().parse_overrides([word])
            if parsed.is_sweep_override():
                raise HydraException("Ambiguous value")
            OmegaConf.update(merged, parsed.key_or_group, parsed.value())
        except REFUSALS as error:
            complaints.append(_explain(word, error, tree))
    return cast(Tree, OmegaConf.to_container(merged, resolve=True)), complaints


def combinations(words: list[str]) -> list[list[str]]:
    """Return the overrides of every run of a sweep; raise ConfigurationError for what cannot be read."""
    runs: list[list[str]] = [[]]
    for word in words:
        try:
            parsed = OverridesParser.create().parse_overrides([with_slots(word)])
            (batch,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
        except (*REFUSALS, AssertionError):
            remedy = "list the values, KEY=A,B,C; ranges are KEY=range(3)"
            raise ConfigurationError(word, "cannot be swept over", remedy) from None
        runs = [[*run, *choice] for run in runs for choice in batch]
    return runs


def for_hydra(word: str) -> bool:
    """Return whether an override is for Hydra, not for a run: `hydra/launcher=joblib`, `hydra.launcher.n_jobs=2`."""
    return word.lstrip("+~").startswith(("hydra.", "hydra/"))


def sweeping(words: list[str], config_dir: str | None = None) -> tuple[Tree, list[str]]:
    """Return what Hydra's own words, and an experiment's file, say of a sweep.

    That is the launcher, its `name` and its `settings`, and the overrides that `hydra.sweeper.params` lists.
    """
    tuning = [word for word in words if word.startswith("hydra.launcher.")]
    choosing = [word for word in words if word not in tuning]
    refuse(compose(choosing, config_dir)[1])
    with hydra.initialize_config_dir(str(configs_dir()), version_base="1.3"):
        composed = hydra.compose("config", [*choosing, *_searching(config_dir)], return_hydra_config=True)
    settings = OmegaConf.to_container(composed.hydra.launcher)
    tree, complaints = override({"hydra": {"launcher": settings, "sweep": {"dir": "."}}}, tuning)
    refuse(complaints)
    launcher = {"name": composed.hydra.runtime.choices["hydra/launcher"], "settings": tree["hydra"]["launcher"]}
    return launcher, [f"{key}={values}" for key, values in (composed.hydra.sweeper.params or {}).items()]


def choices(group: str) -> list[str]:
    """Return the names of a group's files, `both/spectral` for those in a folder."""
    folder = configs_dir() / group
    names = [file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml")]
    names += [name for offered, name in OFFERED if offered == group]
    return sorted(names, key=lambda name: ("/" in name, name))


def groups() -> list[str]:
    """Return the names of the groups."""
    return sorted(folder.name for folder in configs_dir().iterdir() if folder.is_dir() and folder.name != "hydra")


def header(group: str, name: str) -> str:
    """Return the comment that a group's file begins with."""
    lines = (configs_dir() / group / f"{name}.yaml").read_text().splitlines()
    comments = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
    return next((comment for comment in comments if not comment.startswith("@package")), "")


def part_defaults(group: str, name: str) -> Tree:
    """Return the parameters that `configs/<group>/<name>.yaml` gives, or those offered; none if there are neither."""
    if (group, name) in OFFERED:
        return {name: OFFERED[group, name]} if group == "penalty" else OFFERED[group, name]
    path = configs_dir() / group / f"{name}.yaml"
    if not path.is_file():
        return {}
    tree = cast(Tree, OmegaConf.to_container(OmegaConf.load(path)))
    return {key: value for key, value in tree.items() if key not in ("defaults", "name")}


def run_folder(settings: RunConfig) -> Path:
    """Return where a run lives."""
    return config.run_folder(settings, part_defaults)


def words_of(settings: RunConfig) -> list[str]:
    """Return the overrides of a command line that gives these settings, in which paths are left to whoever types it.

    How the run was started is no part of it, nor what it was tuned by.
    """
    defaults = config.defaults_of(settings, part_defaults)
    names = {f"{where}.name": where for where in PARTS}
    left_out = (*config.PATHS, *config.STARTED, "tuning")
    penalties = ",".join(settings.penalty)
    words = [f"penalty=[{penalties}]" if "," in penalties else f"penalty={penalties}"] if penalties else []
    for key, value in flatten(config.write(settings)):
        if value != defaults.get(key) and not any(key == each or key.startswith(f"{each}.") for each in left_out):
            words.append(f"{names.get(key, key)}={_as_word(value)}")
    return words


def hand_to_hydra(arguments: list[str], task: Callable[[DictConfig], Any]) -> None:
    """Run Hydra's own main on a command line: sweeps, `--cfg`, `--help`, tab completion."""
    # Hydra says an exception in its own way and exits with 1; with this it lets ours pass.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = ["normlab train", *map(with_slots, arguments)]
    decorate = hydra.main(version_base="1.3", config_path=str(configs_dir()), config_name="config")
    decorate(task)()


def _as_word(value: Any) -> str:
    """Return a value as Hydra's grammar has it."""
    if isinstance(value, list):
        return f"[{','.join(map(_as_word, cast(list[Any], value)))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    is_plain = re.fullmatch(r"[\w./:+ -]+", value) and isinstance(yaml.safe_load(value), str)
    return value if is_plain else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _compose(words: list[str], config_dir: str | None) -> Tree:
    with hydra.initialize_config_dir(str(configs_dir()), version_base="1.3"):
        composed = hydra.compose("config", [*words, *_searching(config_dir)])
    return cast(Tree, OmegaConf.to_container(composed, resolve=True))


def _searching(config_dir: str | None) -> list[str]:
    return [f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"] if config_dir else []


def _compose_what_holds(words: list[str], config_dir: str | None) -> tuple[Tree, list[Complaint]]:
    """Hydra stops at the first wrong override; add them one by one, groups first, and collect what each one meets."""
    tree, held = _compose([], config_dir), list[str]()
    complaints: list[Complaint] = []
    for word in sorted(words, key=lambda word: not _names_group(word)):
        try:
            tree = _compose([*held, word], config_dir)
            held.append(word)
        except REFUSALS as error:
            complaints.append(_explain(word, error, tree))
    return tree, complaints


def _names_group(word: str) -> bool:
    key = word.partition("=")[0].lstrip("+~")
    return "@" in key or (configs_dir() / key).is_dir()


def _explain(word: str, error: Exception, tree: Tree) -> Complaint:
    key, equals, value = word.partition("=")
    group, _, slot = key.lstrip("+~").partition("@")
    where = slot or group
    if not equals:
        return Complaint(word, "is no setting", "write KEY=VALUE")
    if isinstance(error, MissingConfigException):
        named = value.strip("[]").split(",")
        return unknown(where, next((name for name in named if name not in choices(group)), value), choices(group))
    if "Ambiguous value" in str(error):
        return Complaint(where, f"got several values, {value}", "add -m to sweep over them, or write a list as [a,b]")
    if "not in struct" in f"{error} {error.__cause__}":
        return _unknown_key(where, tree)
    if isinstance(tree.get(where), dict):
        return Complaint(
            where, f"got {value}", f"set what is in it: {', '.join(f'{where}.{key}' for key in tree[where])}"
        )
    return Complaint(where or word, f"got {value or 'nothing'}", f"put quotes around it: {where}=\"'VALUE'\"")


def _unknown_key(where: str, tree: Tree) -> Complaint:
    """Say that a key is not there, with the keys that end alike, else its neighbours, else the nearest one."""
    keys = [key for key, _ in flatten(tree)]
    section, _, last = where.rpartition(".")
    if section.startswith("penalty.") and (penalty := section.removeprefix("penalty.")) in choices("penalty"):
        if penalty in tree.get("penalty", {}):
            return unknown(where, last, list(tree["penalty"][penalty]), f"a parameter of '{penalty}'")
        return Complaint(where, f"is of the penalty {penalty}, which is not chosen", f"add penalty={penalty}")
    alike = [key for key in keys if key.rpartition(".")[2] == last][:3]
    beside = [key for key in keys if section and key.startswith(f"{section}.")]
    part = tree
    for name in section.split(".") if section else []:
        part = part.get(name, {}) if isinstance(part, dict) else {}
    if section and isinstance(part, dict) and "name" in part:
        names = [key for key in part if key != "name" and not isinstance(part[key], dict)]
        return unknown(where, last, names, f"a parameter of '{part['name']}'")
    near = alike or nearest(where, beside) or nearest(where, keys)
    remedy = f"did you mean {' or '.join(near)}?" if near else "`normlab train --cfg job` shows every setting"
    return Complaint(where, "is no setting", remedy)


def refuse(complaints: list[Complaint]) -> None:
    """Raise the complaints, if there are any, as one ConfigurationError."""
    if complaints:
        raise ConfigurationError.of(complaints)
