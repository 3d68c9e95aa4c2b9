"""`normlab train`: one run, new or continued; a sweep with -m; Hydra's own flags passed on to Hydra."""

from typing import Any

from normlab import composition, ranks
from normlab.config import RunConfig
from normlab.errors import DONE, Complaint, ConfigurationError
from normlab.outputs.run_dir import RunDir
from normlab.signals import postponed
from normlab.sweeps import dry, planning, sweep, tuning
from normlab.verbs.arguments import Arguments

# Flags of Hydra that do something else than a sweep.
ALONE = ("--run", "-r", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc")


def run(arguments: list[str]) -> int:
    """Train what the command line describes and return the exit code."""
    arguments = ["--config-dir" if word == "-cd" else word for word in arguments]
    parser = Arguments("train", add_help=False)
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("--config-dir")
    parser.add_argument("--check", action="store_true")
    known, words = parser.parse_known_args(arguments)
    if plugins := composition.plugins_of(words):
        _offer_parts_of(plugins)
    flags = [word for word in words if word.startswith("-")]
    for flag in flags:
        if known.check or (known.multirun and flag.partition("=")[0] in ALONE):
            beside = "--check" if known.check else "-m"
            raise ConfigurationError(flag, f"is no flag that goes with {beside}", "leave it out")
    if known.multirun and ranks.started() > 1:
        problem = (
            f"sweeps over runs that are processes of their own, and this is one of {ranks.started()} of a single run"
        )
        remedy = (
            "leave torchrun out; with hydra/launcher=submitit_slurm and hydra.launcher.tasks_per_node=N a run has N"
        )
        raise ConfigurationError("-m", problem, remedy)
    if flags:
        if not known.multirun:  # whose words are no single run's
            composition.refuse(composition.compose([word for word in words if "=" in word], known.config_dir)[1])
        composition.hand_to_hydra(arguments, task=_refuse_to_train)
        return DONE
    if known.multirun:
        return _sweep(words, known.config_dir, known.check)

    for_sweeps = [word for word in words if composition.for_hydra(word) and not word.startswith("hydra.searchpath=")]
    settings, complaints = composition.configure([word for word in words if word not in for_sweeps], known.config_dir)
    remedy = "add -m for a sweep, or leave it out; NORMLAB_OUTPUTS and name= say where a run goes"
    complaints += [Complaint(word.partition("=")[0], "changes nothing in a single run", remedy) for word in for_sweeps]
    with postponed():  # and only here, since importing torch takes seconds
        from normlab import launching

    completed = launching.checked(settings, complaints)
    # Of the settings as they were given, as a sweep has them, which knows nothing of the parts' own defaults.
    run_dir = RunDir(composition.run_folder(settings))
    return launching.preview(completed, run_dir) if known.check else launching.launch(completed, run_dir)


def _sweep(words: list[str], config_dir: str | None, check: bool) -> int:
    settings = planning.first_settings(words, config_dir)
    if not settings.tuning.keys:
        return _check_sweep(words, config_dir) if check else sweep.run(words, config_dir)
    if not check:
        return tuning.run(words, config_dir)
    print("tuning; the best of each arm is then trained on the sweep's own seeds")
    return _check_sweep(tuning.of_grid(words, settings.name, settings.tuning.seeds), config_dir)


def _offer_parts_of(plugins: tuple[str, ...]) -> None:
    """Let the parts of a user's modules be chosen like any other; what is wrong with a module is said later."""
    with postponed():
        from normlab import assemble

    if assemble.import_plugins(RunConfig(plugins=plugins)):
        return
    for group, registry in assemble.REGISTRIES.items():
        for name in registry.names():
            composition.offer(group, name, registry.complete(name, {}))


def _check_sweep(words: list[str], config_dir: str | None) -> int:
    with postponed():
        from normlab import assemble, footprint

    def judge(settings: RunConfig) -> list[Complaint]:
        return [*assemble.import_plugins(settings), *assemble.check(settings)]

    def estimate(settings: RunConfig) -> int:
        completed = assemble.completed(settings)
        return footprint.CHECKPOINTS * footprint.checkpoint_bytes(completed, footprint.largest_image(completed))

    return dry.check(words, config_dir, judge, estimate)


def _refuse_to_train(tree: Any) -> None:
    raise ConfigurationError("train", "got a flag of Hydra that changes nothing here", "see `normlab train --help`")
