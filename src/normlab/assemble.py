"""From a configuration to the parts of a run: the one place that builds by name."""

import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from normlab import progress
from normlab.config import PARTS, OptimizerConfig, Part, RunConfig, write
from normlab.constraints import CONSTRAINTS
from normlab.data.batches import RealBatches
from normlab.data.images import Dataset
from normlab.data.sources import DATASETS
from normlab.errors import CheckpointError, Complaint, ConfigurationError, DataError
from normlab.losses import LOSSES
from normlab.networks import ARCHITECTURES, ImageSpec
from normlab.networks.initialisation import INITIALISATIONS, initialise
from normlab.networks.network import Architecture, Generator, Network
from normlab.normalizations import TECHNIQUES
from normlab.outputs.checkpoints import Checkpoints
from normlab.outputs.recorder import Recorder
from normlab.outputs.run_dir import RunDir
from normlab.outputs.sinks import JsonLines
from normlab.penalties import PENALTIES
from normlab.randomness import stream
from normlab.ranks import ALONE, Ranks, current, unequal
from normlab.registry import Registry
from normlab.scoring import Scorer, build_scorer, check_features
from normlab.settings import Length, Misfit
from normlab.training.capture import Capture, CudaGraphs, KeptInputs
from normlab.training.compiled import Compiler
from normlab.training.ema import Ema
from normlab.training.monitors import describe_layers
from normlab.training.optimizers import OPTIMIZERS, SCHEDULES
from normlab.training.pace import Pace, pace_of
from normlab.training.state import TrainState
from normlab.training.step import Step
from normlab.training.stopping import Stop
from normlab.training.trainer import Trainer

REGISTRIES: dict[str, Registry[Any]] = {
    "dataset": DATASETS,
    "architecture": ARCHITECTURES,
    "technique": TECHNIQUES,
    "initialisation": INITIALISATIONS,
    "loss": LOSSES,
    "penalty": PENALTIES,
    "constraint": CONSTRAINTS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
}
LARGEST_SIDE = 1000  # of images that a run's folder may claim to have been trained on
PRECISIONS = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def import_plugins(config: RunConfig) -> list[Complaint]:
    """Import the modules that register parts of the user's own, from the current folder too."""
    if config.plugins and "" not in sys.path:
        sys.path.insert(0, "")
    complaints: list[Complaint] = []
    for name in config.plugins:
        try:
            importlib.import_module(name)
        except Exception as error:  # the user's own code may raise anything
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            complaints.append(
                Complaint(
                    "plugins", f"'{name}' cannot be imported ({reason})", "name a sound module, or go to its folder"
                )
            )
    return complaints


def check(config: RunConfig) -> list[Complaint]:
    """Return what the chosen parts have against their parameters and against each other; build nothing."""
    chosen = {
        "dataset": config.dataset,
        "architecture": config.architecture,
        "normalization.generator": config.normalization.generator,
        "normalization.discriminator": config.normalization.discriminator,
        "initialisation": config.initialisation,
        "loss": config.loss,
        "constraint": config.constraint,
        "optimizer": Part(name=config.optimizer.name, params=config.optimizer.params),
        "optimizer.schedule": config.optimizer.schedule,
    }
    complaints: list[Complaint] = []
    for where, part in chosen.items():
        complaints += REGISTRIES[PARTS[where]].check(where, part.name, part.params)
    for name, params in config.penalty.items():
        if isinstance(params, Mapping):
            complaints += PENALTIES.check(f"penalty.{name}", name, params)
        else:
            complaints.append(
                Complaint(f"penalty.{name}", f"got {params!r}", f"set what is in it: penalty.{name}.weight")
            )
    if config.optimizer.name in OPTIMIZERS:
        for network in ("generator", "discriminator"):
            own = {key: value for key, value in getattr(config.optimizer, network).items() if value is not None}
            complaints += [
                complaint._replace(where=f"optimizer.{network}{complaint.where.removeprefix('optimizer')}")
                for complaint in OPTIMIZERS.check(
                    "optimizer", config.optimizer.name, {**config.optimizer.params, **own}
                )
                if complaint.where.removeprefix("optimizer.") in own
            ]
    complaints += check_features(config)
    return (
        (complaints or _check_networks(config) or _check_sense(config)) + _check_device(config) + _check_ranks(config)
    )


def completed(config: RunConfig) -> RunConfig:
    """Return the configuration with a value for every parameter of every part, so that it means the same for ever."""
    optimizer = config.optimizer
    own = OPTIMIZERS.complete(optimizer.name, optimizer.params)
    schedule = replace(optimizer.schedule, params=SCHEDULES.complete(**vars(optimizer.schedule)))
    normalization = config.normalization
    return replace(
        config,
        dataset=_complete(DATASETS, config.dataset),
        architecture=_complete(ARCHITECTURES, config.architecture),
        normalization=replace(
            normalization,
            generator=_complete(TECHNIQUES, normalization.generator),
            discriminator=_complete(TECHNIQUES, normalization.discriminator),
        ),
        initialisation=_complete(INITIALISATIONS, config.initialisation),
        loss=_complete(LOSSES, config.loss),
        penalty={name: PENALTIES.complete(name, params) for name, params in config.penalty.items()},
        constraint=_complete(CONSTRAINTS, config.constraint),
        optimizer=replace(optimizer, params=own, schedule=schedule),
    )


def _complete(registry: Registry[Any], part: Part) -> Part:
    return replace(part, params=registry.complete(part.name, part.params))


def open_dataset(config: RunConfig) -> Dataset:
    """Return the data set, decoded and packed if need be; raise DataError if it is not there."""
    return DATASETS.build(config.dataset.name, config.dataset.params)


def open_batches(config: RunConfig, dataset: Dataset, device: torch.device) -> RealBatches:
    """Return the stream of real images; raise DataError if there are too few for a batch."""
    batch_size = config.train.batch_size
    return RealBatches(dataset.train, seed=config.seed, batch_size=batch_size, flip=dataset.flip, device=device)


def choose_device(name: str) -> torch.device:
    """Return the device that a name stands for; `auto` is a GPU where there is one.

    Of several processes on a machine each has the GPU of its number.
    """
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    local_rank = current().local_rank
    return torch.device(chosen) if chosen != "cuda" or local_rank is None else torch.device("cuda", local_rank)


def set_float32_precision(precision: str) -> None:
    """Let a GPU compute products and convolutions of float32 in TensorFloat-32 where that is asked for, and only there.

    Left to itself torch lets convolutions do so.
    """
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
    products.fp32_precision = convolutions.fp32_precision = "tf32" if precision == "tf32" else "ieee"


def image_spec(dataset: Dataset) -> ImageSpec:
    """Return what networks are built for, to train on a data set."""
    return ImageSpec(*dataset.image_shape, dataset.classes)


def build_architecture(config: RunConfig, image: ImageSpec) -> Architecture:
    return ARCHITECTURES.build(config.architecture.name, config.architecture.params, image)


def build_generator(config: RunConfig, image: ImageSpec) -> Generator:
    return build_architecture(config, image).generator(_technique(config.normalization.generator))


def build_discriminator(config: RunConfig, image: ImageSpec) -> Network:
    return build_architecture(config, image).discriminator(_technique(config.normalization.discriminator))


Fit = Callable[[Generator, Network], None]


def build_state(config: RunConfig, image: ImageSpec, device: torch.device, fit: Fit | None = None) -> TrainState:
    """Return the state at step 0: weights that depend on the seed and their names alone.

    fit: lets what starts from data see some, before anything is made of the weights.
    """
    initialisation = INITIALISATIONS.build(config.initialisation.name, config.initialisation.params)
    generator, discriminator = build_generator(config, image), build_discriminator(config, image)
    initialise(generator, initialisation, config.seed, "generator")
    initialise(discriminator, initialisation, config.seed, "discriminator")
    for network in (generator, discriminator):
        network.to(device)
        lay_out(network, MEMORY_FORMATS[config.memory_format])
    if fit is not None:
        fit(generator, discriminator)
    return TrainState(
        generator=generator,
        discriminator=discriminator,
        generator_optimizer=_optimizer(config.optimizer.of("generator"), generator),
        discriminator_optimizer=_optimizer(config.optimizer.of("discriminator"), discriminator),
        averaged=None if config.ema.decay is None else Ema(generator, config.ema.decay),
    )


def normalizes_batches(config: RunConfig, image: ImageSpec) -> bool:
    """Return whether a network of the run has batch normalization."""
    with torch.device("meta"):
        networks = build_generator(config, image), build_discriminator(config, image)
    return any(network.batch_norms() for network in networks)


def lay_out(network: Network, memory_format: torch.memory_format) -> None:
    """Bring the weights of a network's layers into a memory format, but for those whose input has a map of one pixel.

    Such an input is in either format, and compilers and libraries do not agree on which one its layer's gradient is in.
    """
    for _, layer in network.layers():
        if layer.place.input_size > 1:
            layer.layer.to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]


def saved_state(config: RunConfig, run_dir: RunDir) -> TrainState | None:
    """Return the state at step 0 of a run that has a folder, for comparison; None if its images are not known.

    Raises ConfigurationError where a plugin of the run cannot be imported.
    """
    images = progress.images_of(run_dir)
    shape = images.get("image_shape")
    if (
        not isinstance(shape, list)
        or [type(length) for length in shape] != [int] * 3
        or not all(0 < length <= LARGEST_SIDE for length in shape)
    ):
        return None
    if complaints := import_plugins(config):
        raise ConfigurationError.of(complaints)
    channels, height, width = shape
    image = ImageSpec(channels, height, width, images.get("classes"))
    return build_state(config, image, torch.device("cpu"))


def build_step(
    config: RunConfig, dataset: Dataset, real: RealBatches, device: torch.device, ranks: Ranks = ALONE
) -> Step:
    """Return the step of a run, with the state at step 0."""
    pace = pace_of(config, len(dataset.train))
    capture = capture_of(config, device)

    def fit(generator: Generator, discriminator: Network) -> None:
        """Show the generator as many latents as a batch has, and the discriminator real images and those together."""
        latents = torch.randn(
            config.train.batch_size, generator.latent_size, generator=stream(config.seed, "latents", "fit")
        ).to(device)
        generator.fit(latents)
        if not discriminator.starts_from_data:
            return
        with torch.no_grad(), generator.frozen_statistics():
            images = torch.cat([real.batch(0), generator(latents)])
        labels = (
            None if discriminator.classes is None else torch.arange(len(images), device=device) % discriminator.classes
        )
        discriminator.fit(images, labels)

    def elapsed(horizon: Length | None, step: int) -> float:
        return min(step / pace.steps(config.train.until if horizon is None else horizon), 1.0)

    return Step(
        state=build_state(config, image_spec(dataset), device, fit),
        loss=LOSSES.build(config.loss.name, config.loss.params),
        penalties=[PENALTIES.build(name, params) for name, params in config.penalty.items()],
        constraint=CONSTRAINTS.build(config.constraint.name, config.constraint.params),
        real=real,
        schedule=_schedule(config.optimizer, pace, config.train.until),
        elapsed=elapsed,
        batch_size=config.train.batch_size,
        discriminator_steps=config.train.discriminator_steps,
        seed=config.seed,
        precision=PRECISIONS[config.precision],
        device=device,
        capture=Capture(CudaGraphs(), KeptInputs(device)) if device.type == "cuda" and capture != "none" else None,
        compiler=Compiler() if capture == "compile" else None,
        ranks=ranks,
        synchronised=config.train.batch_norm == "synchronised",
    )


def capture_of(config: RunConfig, device: torch.device) -> str:
    """Return what is made of a run's steps: `auto` is a graph on a GPU, and nothing elsewhere."""
    if config.train.capture != "auto":
        return config.train.capture
    return "graph" if device.type == "cuda" else "none"


class Materials(NamedTuple):
    """What a run needs from outside: the images, on their way to the device, and the means to score."""

    dataset: Dataset
    real: RealBatches
    scorer: Scorer | None


def gather(config: RunConfig, device: torch.device, ranks: Ranks = ALONE) -> Materials:
    """Open all that a run needs; raise DataError for what is not there, before anything is written."""
    dataset = open_dataset(config)
    try:
        build_architecture(config, image_spec(dataset))
    except Misfit as misfit:
        raise DataError("dataset", misfit.problem, misfit.remedy) from None
    return Materials(dataset, open_batches(config, dataset, device), build_scorer(config, dataset, device, ranks))


def assemble(
    config: RunConfig, materials: Materials, run_dir: RunDir, device: torch.device, stop: Stop, ranks: Ranks = ALONE
) -> Trainer:
    """Build a run and bring it to the newest checkpoint in its folder, or to step 0 if there is none."""
    dataset, real, scorer = materials
    step = build_step(config, dataset, real, device, ranks)
    newest = resumed(step, run_dir)
    checkpoints = Checkpoints(run_dir.checkpoints)
    if newest is not None:
        checkpoints.set_aside_beyond(newest)
    pace = pace_of(config, len(dataset.train))
    return Trainer(
        step=step,
        pace=pace,
        last_step=pace.steps(config.train.until),
        every=config.every,
        score=scorer,
        checkpoints=checkpoints,
        recorder=Recorder(run_dir, step.state.step),
        stop=stop,
        of_points=dataset.of_points,
        stop_on_collapse=config.on_collapse == "stop",
    )


def resumed(step: Step, run_dir: RunDir, set_aside: bool = True) -> int | None:
    """Bring a step's state to the newest sound checkpoint of a run and return which one it is; None if there is none.

    Raises CheckpointError where there was one, or where it does not fit. `set_aside` is that of `Checkpoints.newest`.
    """
    checkpoints = Checkpoints(run_dir.checkpoints)
    newest = checkpoints.newest(set_aside, largest=step.state.most_bytes())
    if newest is None and (trained := _trained_to(run_dir, checkpoints)):
        problem = f"holds no checkpoint with its manifest, although the run was trained to step {trained:,}"
        raise CheckpointError(str(run_dir.checkpoints), problem, "bring them back, or give fresh=true to start over")
    if newest:
        try:
            step.state.load_state_dict(newest.state)
        except ValueError as error:
            remedy = "fresh=true starts over; the old folder is set aside"
            raise checkpoints.misfit(newest.step, str(error), remedy) from None
    return None if newest is None else newest.step


def _trained_to(run_dir: RunDir, checkpoints: Checkpoints) -> int:
    """Return the furthest step of which anything in a run's folder tells, 0 if nothing does."""
    status = run_dir.read_status()
    rows = JsonLines(run_dir.metrics).rows()
    told = [0 if status is None else status.step, *(row["step"] for row in rows[-1:]), *checkpoints.unvouched()]
    return max(told)


def score_spread(step: Step) -> float:
    """Return the standard deviation of the discriminator's scores of a batch of real images and one of fakes."""
    generator, discriminator = step.state.generator, step.state.discriminator
    with torch.no_grad(), generator.frozen_statistics(), discriminator.frozen_statistics():
        real, fake = step.real_batch(0), step.generate("generator", generator.effective_weights())
        return float(torch.cat([discriminator(batch.images, labels=batch.labels) for batch in (real, fake)]).std())


def describe(step: Step) -> list[dict[str, Any]]:
    """Return what `layers.json` says of the layers of both networks, as they stand, on a step's images and latents."""
    state = step.state
    with torch.no_grad():
        real = step.real.batch(0)
        latents = step.latents("generator")
        return [
            *describe_layers(state.generator, "generator", latents),
            *describe_layers(state.discriminator, "discriminator", real),
        ]


def _technique(part: Part) -> Any:
    return TECHNIQUES.build(part.name, part.params)


def _optimizer(part: Part, network: Network) -> Any:
    """Return the optimizer of a network's parameters, but for those that move by a rule of their own."""
    own_rates = {
        parameter: part.learning_rate
        for _, _, part in network.reparametrized()
        if part.learning_rate is not None
        for parameter in part.parameters()
    }
    moved = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [{"params": [parameter for parameter in moved if parameter not in own_rates]}]
    for rate in sorted(set(own_rates.values())):
        groups.append({"params": [parameter for parameter in moved if own_rates.get(parameter) == rate], "lr": rate})
    return OPTIMIZERS.build(part.name, part.params, groups)


def _schedule(config: OptimizerConfig, pace: Pace, until: Length) -> Any:
    def steps_of(length: Length | None) -> int:
        return pace.steps(until if length is None else length)

    return SCHEDULES.build(config.schedule.name, config.schedule.params, steps_of)


def _check_networks(config: RunConfig) -> list[Complaint]:
    """Let the architecture, the image size and the techniques meet where no weight takes memory."""
    # What has no size is made of points.
    size = DATASETS.complete(config.dataset.name, config.dataset.params).get("image_size", 1)
    image = ImageSpec(3, size, size, classes=10)  # labels are asked for once the data set is open
    try:
        build_architecture(config, image)
    except Misfit as misfit:
        return [Complaint(_blamed(config, image), misfit.problem, misfit.remedy)]
    complaints: list[Complaint] = []
    for name, build in (("generator", build_generator), ("discriminator", build_discriminator)):
        try:
            with torch.device("meta"):
                network = build(config, image)
        except Misfit as misfit:
            complaints.append(Complaint(f"normalization.{name}", misfit.problem, misfit.remedy))
            continue
        if network.is_left_alone and not config.force:
            problem = f"{network.technique.name} normalization would leave every layer of this network alone"
            complaints.append(Complaint(f"normalization.{name}", problem, "choose none, or force=true"))
    return complaints


def _blamed(config: RunConfig, image: ImageSpec) -> str:
    """Return whether an architecture that cannot be built has no form for the images, or is wrongly set."""
    if "image_size" not in DATASETS.parameters(config.dataset.name):
        return "architecture"
    try:
        ARCHITECTURES.build(config.architecture.name, {}, image)
    except Misfit:
        return "dataset.image_size"
    return "architecture"


def _check_sense(config: RunConfig) -> list[Complaint]:
    """Return what is senseless about the parts together, though it could be computed; `force` lets it pass."""
    if config.force:
        return []
    names = {network: getattr(config.normalization, network).name for network in ("generator", "discriminator")}
    technique = _technique(config.normalization.discriminator)
    penalties = {name: PENALTIES.build(name, params) for name, params in config.penalty.items()}
    constraint = CONSTRAINTS.build(config.constraint.name, config.constraint.params)
    loss = LOSSES.build(config.loss.name, config.loss.params)
    penalized = any(penalty.bounds_discriminator and penalty.weight > 0 for penalty in penalties.values())
    bounded = technique.bounds_discriminator or constraint is not None or penalized
    found: list[tuple[str, str, str]] = []
    for name, penalty in penalties.items():
        if penalty.per_image and technique.couples_images:
            found.append(
                (
                    f"penalty.{name}",
                    f"is of the score of single images, and {technique.name} normalization couples those of a batch",
                    "choose layer, instance or none for normalization.discriminator",
                )
            )
    if "spectral_regularization" in penalties and technique.fixes_sigma:
        problem = f"has nothing to move where {technique.name} normalization fixes the norms"
        found.append(("penalty.spectral_regularization", problem, "choose one of the two"))
    if constraint is not None and technique.reparametrizes:
        problem = f"clips raw weights, and {technique.name} normalization makes effective ones of whatever size"
        found.append(("constraint", problem, "choose none or an activation norm for normalization.discriminator"))
    if loss.needs_bound and not bounded:
        problem = f"nothing bounds the discriminator, whose {config.loss.name} loss then falls without end"
        clip = "" if technique.reparametrizes else ", constraint=clip"  # which would be refused beside it
        found.append(("loss", problem, f"add penalty=wgan_gp{clip} or normalization=spectral"))
    if config.architecture.params.get("conditional") and names["generator"] != "conditional_batch":
        problem = f"the generator would not see the labels: {names['generator']} takes none"
        found.append(("normalization.generator", problem, "choose conditional_batch"))
    return [Complaint(where, problem, f"{remedy}, or force=true") for where, problem, remedy in found]


def _check_device(config: RunConfig) -> list[Complaint]:
    device = choose_device(config.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        here = f"this machine has {torch.cuda.device_count()} that torch can use"
        return [Complaint("device", f"there is no GPU for '{config.device}'; {here}", "choose device=cpu or auto")]
    if config.train.capture == "compile" and (count := current().count) > 1:
        # One that cannot compile would go on by itself, out of step with the others.
        return [Complaint("train.capture", f"compile is of one process, and the run has {count}", "choose auto")]
    of_gpus = (
        ("train.capture", config.train.capture, "graph", "choose auto or none"),
        ("precision", config.precision, "tf32", "choose fp32 or bf16"),
    )
    return [
        Complaint(where, f"{chosen} is of GPUs, and the device is {device}", remedy)
        for where, chosen, value, remedy in of_gpus
        if chosen == value and device.type != "cuda"
    ]


def _check_ranks(config: RunConfig) -> list[Complaint]:
    """Return what several processes cannot do together."""
    count = current().count
    found = unequal(config.train.batch_size, count)
    device = choose_device(config.device)
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", count)), torch.cuda.device_count()
    if count > 1 and config.device.startswith("cuda:"):
        problem = f"is {config.device} for each of {count} processes"
        found.append(Complaint("device", problem, "choose cuda, with which each takes a GPU of its own"))
    elif count > 1 and device.type == "cuda" and here > gpus:
        problem = f"is too few GPUs: there are {gpus} for {here} processes on this machine"
        found.append(Complaint("device", problem, "start as many processes as there are GPUs, or choose device=cpu"))
    return found


def generator_metadata(config: RunConfig, image: ImageSpec, step: int) -> dict[str, str]:
    """Return what `generator.safetensors` says of itself: all it takes to rebuild the generator."""
    described = {
        "architecture": write(config.architecture),
        "technique": write(config.normalization.generator),
        "image_shape": image[:3],
        "classes": image.classes,
        "step": step,
    }
    return {key: json.dumps(value) for key, value in described.items()}


def generator_from_metadata(metadata: dict[str, str]) -> Generator:
    """Return the generator that `generator_metadata` describes, without its weights; raise ValueError if none."""
    described = {key: json.loads(value) for key, value in metadata.items() if key != "format"}
    try:
        parts = {key: dict(described[key]) for key in ("architecture", "technique")}
        channels, height, width = (int(length) for length in described["image_shape"])
        classes = described.get("classes")
    except (KeyError, TypeError) as error:
        raise ValueError(f"the description of the generator lacks {error}") from None
    architecture, technique = (Part(name=str(part.pop("name")), params=part) for part in parts.values())
    for registry, part in ((ARCHITECTURES, architecture), (TECHNIQUES, technique)):
        if part.name not in registry:
            raise ValueError(f"there is no {part.name} here; --plugins MODULE imports what has it")
    image = ImageSpec(channels, height, width, None if classes is None else int(classes))
    return ARCHITECTURES.build(architecture.name, architecture.params, image).generator(_technique(technique))
