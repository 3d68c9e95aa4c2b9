"""Each technique in the discriminator against none, per full step."""

import argparse
import statistics

from benchmarks.options import add_common, positive
from benchmarks.report import Report
from benchmarks.runs import CPU, run_settings, takes
from benchmarks.timing import AGAIN, EQUAL, ratio_of, time_rounds, window_of
from benchmarks.work import counted_after_warm_up
from normlab import assemble
from normlab.normalizations import TECHNIQUES
from normlab.outputs.environment import describe_environment
from normlab.training.step import Step

REFERENCE = "none"


def normalizations(arguments: argparse.Namespace) -> Report:
    """Time a full step of a GAN under each technique in the discriminator against one under none.

    The generator has batch normalization, and the images are the digits. The operations of a step are counted, too.
    """
    techniques = [name for name in arguments.techniques if name != REFERENCE]
    steps = {name: technique_step(arguments, name) for name in (REFERENCE, *techniques)}
    steps[AGAIN] = technique_step(arguments, REFERENCE)
    operations = {name: counted_after_warm_up(takes(step), 3).operations for name, step in steps.items()}
    windows = {name: window_of(takes(step), arguments.steps) for name, step in steps.items()}
    seconds = time_rounds(windows, arguments.rounds)
    cpu = {name: [window.cpu for window in seconds[name]] for name in seconds}
    control = ratio_of(cpu[AGAIN], cpu[REFERENCE])
    ratios = {name: ratio_of(cpu[name], cpu[REFERENCE]) for name in techniques}
    chosen = {key: getattr(arguments, key) for key in ("width", "batch", "size", "threads", "steps")}
    values = {
        "benchmark": "normalizations",
        **max(ratios.values(), default=EQUAL).headline(),
        "ratios": {name: ratio._asdict() for name, ratio in ratios.items()},
        **{"control": control.median, "control_low": control.low, "control_high": control.high},
        "rounds": arguments.rounds,
        "operations_per_step": {name: operations[name] for name in (REFERENCE, *techniques)},
        "cpu_milliseconds_per_step": 1000 * statistics.median(cpu[REFERENCE]) / arguments.steps,
        "settings": chosen,
        "environment": describe_environment(CPU, "fp32"),
    }
    width = max(map(len, ratios), default=0)
    lines = [
        "a step of a GAN with a technique in the discriminator, against one without",
        f"  dcgan at {arguments.size} px of width {arguments.width}, G:batch, batches of {arguments.batch}, fp32, "
        f"{arguments.threads} thread(s), {arguments.rounds} rounds of {arguments.steps} step(s)",
        *(
            f"  {name:<{width}}  CPU time {ratio}  {operations[name]} operations against {operations[REFERENCE]}"
            for name, ratio in ratios.items()
        ),
        f"  noise control  {control}  (none against itself)",
    ]
    return Report(values, lines)


def technique_step(arguments: argparse.Namespace, name: str) -> Step:
    """Return a step with a technique in the discriminator and batch normalization in the generator."""
    settings = run_settings(
        [
            *(f"dataset.image_size={arguments.size}", f"architecture.width={arguments.width}"),
            *(f"train.batch_size={arguments.batch}", f"normalization={name}", "evaluation=none"),
        ]
    )
    dataset = assemble.open_dataset(settings)
    return assemble.build_step(settings, dataset, assemble.open_batches(settings, dataset, CPU), CPU)


def add_options(parser: argparse.ArgumentParser) -> None:
    add_common(parser, normalizations)
    parser.add_argument("--rounds", type=positive, default=9)
    parser.add_argument("--steps", type=positive, default=1, help="steps of a window")
    parser.add_argument("--size", type=positive, default=64, help="pixels of the images")
    parser.add_argument("--width", type=positive, default=64)
    parser.add_argument("--batch", type=positive, default=64)
    usual = [name for name in TECHNIQUES.names() if name != "conditional_batch"]
    parser.add_argument("techniques", nargs="*", metavar="TECHNIQUE", default=usual, help="all by default")
