"""A run's configuration: frozen dataclasses, how they are read from a tree of plain values and written back, and the
name of the folder that belongs to them. `configs/config.yaml` lists the same settings with the same defaults.
"""

import hashlib
import json
import os
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from omegaconf import OmegaConf

from normlab import saved_yaml
from normlab.errors import Complaint, ConfigurationError
from normlab.registry import unknown
from normlab.settings import (
    Fraction,
    Length,
    Misfit,
    NonNegativeInt,
    Pattern,
    PositiveFloat,
    PositiveInt,
    Range,
    Unit,
    convert,
    describe,
)

Tree = dict[str, Any]

Duration = Annotated[Length, Unit("steps", "epochs", "images")]
DurationOrTime = Annotated[Length, Unit("steps", "epochs", "images", "minutes")]
Minutes = Annotated[Length, Unit("minutes")]
FolderName = Annotated[
    str,
    Pattern(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", "of letters, digits, '.', '_' and '-', the first a letter or digit"),
]
Device = Annotated[str, Pattern(r"auto|cpu|cuda(:\d+)?", "such as auto, cpu, cuda or cuda:1")]
Params = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part chosen by name. `params` collects every other key that stands beside `name`."""

    name: str
    params: Params = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class NormalizationConfig:
    """A technique for each network."""

    generator: Part = Part(name="batch")
    discriminator: Part = Part(name="spectral")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """An optimizer, what a network has otherwise than both (null inherits), and the schedule of the learning rates."""

    name: str = "adam"
    generator: Params = field(default_factory=dict)
    discriminator: Params = field(default_factory=dict)
    schedule: Part = Part(name="constant")
    params: Params = field(default_factory=dict)

    def of(self, network: Literal["generator", "discriminator"]) -> Part:
        own = {key: value for key, value in getattr(self, network).items() if value is not None}
        return Part(name=self.name, params={**self.params, **own})


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """The average of the generator's weights over updates; none without a decay."""

    decay: Fraction | None = None


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """How many held-out images are searched for in the generator, 0 for none, and how."""

    images: NonNegativeInt = 0
    steps: PositiveInt = 50
    lr: PositiveFloat = 0.01
    form: Literal["images", "batch"] = "images"


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What scores the generator: features, how many samples, and which split of the data they are held against.

    kept: of how many images of each side the scores that need more than moments are.  splits: parts of the samples that
    the classifier score is a mean over.
    """

    features: str = "auto"
    weights: str | None = None
    samples: Annotated[int, Range(least=20)] = 5000
    repeats: Annotated[int, Range(least=1, most=1000)] = 1
    kept: Annotated[int, Range(least=20)] = 10_000
    splits: Annotated[int, Range(least=1, most=1000)] = 10
    split: Literal["train", "held_out"] = "train"
    batch_size: PositiveInt = 250
    reconstruction: ReconstructionConfig = ReconstructionConfig()


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and in what portions the networks are trained."""

    until: Duration = Length(30, "epochs")
    batch_size: PositiveInt = 64
    discriminator_steps: PositiveInt = 1
    time_limit: Minutes | None = None
    capture: Literal["auto", "none", "graph", "compile"] = "auto"
    batch_norm: Literal["synchronised", "local"] = "synchronised"


@dataclass(frozen=True, kw_only=True)
class EveryConfig:
    """How often something is done besides training; null is never but at the start and the end."""

    log: Duration | None = Length(50, "steps")
    sample: Duration | None = Length(10, "epochs")
    checkpoint: DurationOrTime | None = Length(10, "epochs")
    evaluate: Duration | None = Length(10, "epochs")
    spectra: Duration | None = Length(10, "epochs")


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """Settings of which a sweep chooses the best for each arm, and the seeds that it chooses on; none by default."""

    keys: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that a run is made of."""

    name: FolderName = "default"
    seed: Annotated[int, Range(least=0, most=2**63 - 1)] = 0
    device: Device = "auto"
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"
    dataset: Part = Part(name="digits")
    architecture: Part = Part(name="dcgan")
    normalization: NormalizationConfig = field(default_factory=NormalizationConfig)
    initialisation: Part = Part(name="dcgan")
    loss: Part = Part(name="non_saturating")
    penalty: Params = field(default_factory=dict)
    constraint: Part = Part(name="none")
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    every: EveryConfig = field(default_factory=EveryConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    threads: Annotated[int, Range(least=1, most=1024)] | None = None
    plugins: tuple[str, ...] = ()
    resume: str | None = None
    allow_changes: tuple[str, ...] = ()
    force: bool = False
    fresh: bool = False
    on_collapse: Literal["record", "stop"] = "record"
    on_error: Literal["continue", "stop"] = "continue"
    debug: bool = False

    @property
    def label(self) -> str:
        return f"G:{self.normalization.generator.name} D:{self.normalization.discriminator.name}"


# Where a part stands in the tree, and the group of `configs/` that its choices are in.
PARTS = {
    "dataset": "dataset",
    "architecture": "architecture",
    "normalization.generator": "technique",
    "normalization.discriminator": "technique",
    "initialisation": "initialisation",
    "loss": "loss",
    "constraint": "constraint",
    "optimizer": "optimizer",
    "optimizer.schedule": "schedule",
}
# Parts whose names are in a run's digest even at their defaults. One that comes later is not to be added here, which
# would change the names of the runs that there are.
ALWAYS_NAMED = (
    *("dataset", "architecture", "normalization.generator", "normalization.discriminator"),
    *("loss", "optimizer", "optimizer.schedule"),
)
# Settings that do not change what is computed, and so may change when a run goes on.
FREE = (
    *("every", "train.until", "train.time_limit", "train.capture", "device", "threads"),
    *("force", "on_collapse", "debug", "tuning"),
    *("dataset.root", "dataset.download", "dataset.workers", "evaluation.weights"),
)
# Settings that choose the folder, or say how a run is started.
STARTED = ("resume", "allow_changes", "fresh", "on_error")
PLACE = ("name", *STARTED)
PLACING = ("name", "fresh")  # of them, those that a run which is resumed has no use for
PATHS = ("dataset.root", "evaluation.weights")


def read(tree: Tree) -> tuple[RunConfig, list[Complaint]]:
    """Return the configuration that a tree of plain values describes, and all that is wrong with the tree.

    Where something is wrong the configuration has the default, so that the rest can still be checked. What the chosen
    parts make of their own parameters is not checked here: that is `assemble.check`.
    """
    complaints: list[Complaint] = []
    config = _read(RunConfig, tree, "", complaints)
    return config, complaints


def write(config: Any) -> Tree:
    """Return a configuration as a tree of plain values, complete, that `read` reads back."""
    tree: Tree = {}
    for entry in fields(config):
        value = getattr(config, entry.name)
        if entry.name == "params":
            tree.update({key: _plain(item) for key, item in value.items()})
        elif is_dataclass(value) and not isinstance(value, Length):
            tree[entry.name] = write(value)
        else:
            tree[entry.name] = _plain(value)
    return tree


def load(path: Path) -> RunConfig:
    """Return the configuration saved at `path`; raise ConfigurationError if it cannot be read."""
    try:
        tree = saved_yaml.parse(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        problem = f"cannot be read ({' '.join(str(error).split())})"
        raise ConfigurationError(str(path), problem, "bring it back, or name the folder of another run") from None
    if not isinstance(tree, dict) or not {"dataset", "architecture", "normalization", "train"} <= tree.keys():
        raise ConfigurationError(str(path), "is not a run's configuration", "bring it back, or name another run")
    config, complaints = read(typing.cast(Tree, tree))
    if complaints:
        raise ConfigurationError.of([Complaint(f"{path}: {where}", *rest) for where, *rest in complaints])
    return config


def to_yaml(config: RunConfig) -> str:
    """Return what `config.yaml` holds: every setting of the run, but not how it was started."""
    defaults = {name: getattr(RunConfig(), name) for name in STARTED}
    return OmegaConf.to_yaml(OmegaConf.create(write(replace(config, **defaults))))


def flatten(tree: Tree, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a tree with their dotted keys."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(typing.cast(Tree, value), f"{where}{key}.")
        else:
            yield f"{where}{key}", value


def is_free(key: str) -> bool:
    """Return whether a setting may change when a run goes on."""
    return any(key == free or key.startswith(free + ".") for free in FREE)


def identity(config: RunConfig) -> dict[str, Any]:
    """Return the settings that determine the result, by dotted key."""
    return {key: value for key, value in flatten(write(config)) if not is_free(key) and key not in PLACE}


class Change(NamedTuple):
    """A setting of a run's identity that another configuration gives otherwise."""

    key: str
    before: Any
    after: Any


def changes(old: RunConfig, new: RunConfig) -> list[Change]:
    """Return what of a run's identity another configuration would change."""
    before, after = identity(old), identity(new)
    keys = dict.fromkeys([*before, *after])
    return [Change(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]


def defaults_of(config: RunConfig, part_defaults: typing.Callable[[str, str], Tree]) -> Tree:
    """Return the defaults of all settings by dotted key, those of parameters as the parts of a run have them.

    `part_defaults(group, name)` gives a part's parameters as `configs/` has them.
    """
    defaults = dict(flatten(write(RunConfig())))
    tree = write(config)
    for where, group in PARTS.items():
        part = tree
        for key in where.split("."):
            part = part[key]
        defaults |= {f"{where}.{key}": value for key, value in flatten(part_defaults(group, part["name"]))}
    for name in config.penalty:
        defaults |= dict(flatten(part_defaults("penalty", name), "penalty."))
    return defaults


def run_name(config: RunConfig, part_defaults: typing.Callable[[str, str], Tree]) -> str:
    """Return the name of the run's folder: what it is in words, and a digest of what differs from the defaults.

    A setting that is added to normlab later, at its default, leaves the names of earlier runs as they are.
    """
    defaults = defaults_of(config, part_defaults)
    names = {f"{where}.name" for where in ALWAYS_NAMED}
    changed: Tree = {
        key: value
        for key, value in identity(config).items()
        if key in names or (value != defaults.get(key) and not _inherits(key, value))
    }
    if config.penalty:
        changed["penalty"] = sorted(config.penalty)
    digest = hashlib.sha256(json.dumps(_canonical(changed), sort_keys=True).encode()).hexdigest()[:8]
    pair = f"G.{config.normalization.generator.name}-D.{config.normalization.discriminator.name}"
    return f"{config.dataset.name}-{config.architecture.name}-{pair}-seed{config.seed}-{digest}"


def run_folder(config: RunConfig, part_defaults: typing.Callable[[str, str], Tree]) -> Path:
    """Return where the run lives: in the folder that it is resumed in, else in `<outputs>/<name>/<run name>`."""
    if config.resume:
        return Path(config.resume)
    return outputs_folder() / config.name / run_name(config, part_defaults)


def outputs_folder() -> Path:
    """Return the folder of all runs: $NORMLAB_OUTPUTS, else `outputs` in the current folder."""
    return Path(os.environ.get("NORMLAB_OUTPUTS") or "outputs").expanduser()


def _canonical(value: Any) -> Any:
    """Return a value in which equal numbers are written alike: 16.0 is 16, and makes the same run."""
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in typing.cast(Tree, value).items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in typing.cast(list[Any], value)]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _inherits(key: str, value: Any) -> bool:
    return value is None and key.startswith("optimizer.")


def _read(cls: type[Any], tree: Any, where: str, complaints: list[Complaint]) -> Any:
    hints = typing.get_type_hints(cls, include_extras=True)
    names = [entry.name for entry in fields(cls)]
    prefix = f"{where}." if where else ""
    if not isinstance(tree, dict):
        inner = ", ".join(f"{prefix}{name}" for name in names if name != "params")
        complaints.append(Complaint(where, f"got {tree!r}", f"set what is in it: {inner}"))
        tree = {}
    values: Tree = {}
    for entry in fields(cls):
        key = f"{prefix}{entry.name}"
        if entry.name == "params":
            params = {str(name): value for name, value in tree.items() if name not in names}
            values["params"] = {name: _absolute(f"{prefix}{name}", value) for name, value in params.items()}
        elif entry.name in tree:
            value = _read_value(tree[entry.name], hints[entry.name], key, complaints)
            if value is not MISSING:
                values[entry.name] = _absolute(key, value)
        elif entry.default is MISSING and entry.default_factory is MISSING:
            complaints.append(Complaint(key, "is missing", f"give {describe(hints[entry.name])}"))
        if entry.name == "name" and cls in (Part, OptimizerConfig):
            values.setdefault("name", "")
    if "params" not in names:
        complaints += [unknown(f"{prefix}{key}", str(key), names, "a setting") for key in tree if key not in names]
    return cls(**values)


def _read_value(value: Any, hint: Any, where: str, complaints: list[Complaint]) -> Any:
    """Return a value of the type that a field declares, or MISSING with a complaint."""
    if hint is not Length and is_dataclass(hint):
        return _read(typing.cast(type[Any], hint), value, where, complaints)
    if hint == Params:
        if isinstance(value, dict):
            return typing.cast(Params, value)
        complaints.append(Complaint(where, f"got {value!r}", f"set what is in it, such as {where}.lr"))
        return MISSING
    try:
        return convert(value, hint)
    except Misfit as misfit:
        complaints.append(Complaint(where, "is missing" if value == "???" else misfit.problem, misfit.remedy))
        return MISSING


def _absolute(where: str, value: Any) -> Any:
    """Return a setting that is a path as one that means the same from every folder."""
    return os.path.abspath(os.path.expanduser(value)) if where in PATHS and isinstance(value, str) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Length):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in typing.cast(list[Any], value)]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in typing.cast(Params, value).items()}
    return value
