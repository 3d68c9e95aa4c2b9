"""Every score together against one bare pass of Inception over the samples."""

import argparse
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from benchmarks.options import add_common, positive
from benchmarks.report import Report
from benchmarks.runs import CPU
from benchmarks.timing import ratio_of, time_rounds
from normlab.evaluation.classes import classifier_score
from normlab.evaluation.frechet import Moments, frechet_distance
from normlab.evaluation.inception import InceptionFeatures
from normlab.evaluation.kernel import kernel_distance
from normlab.evaluation.manifold import overlap
from normlab.evaluation.statistics import Pass, RealStatistics, pass_over, scores
from normlab.outputs.environment import describe_environment


def evaluation(arguments: argparse.Namespace) -> Report:
    """Time what an evaluation does against Inception's pass over as many samples, with the real statistics at hand.

    The pass, and what accompanies it batch by batch, are timed on a few images and scaled up, since they take the same
    for each; what follows the pass is timed whole, on features drawn at random in the numbers of an evaluation.
    """
    rng = torch.Generator().manual_seed(0)
    with TemporaryDirectory() as folder:
        weights = Path(folder) / "random.pth"
        write_random_inception(weights)
        extractor = InceptionFeatures(weights, CPU)
    images = torch.randint(256, (arguments.images, 3, 32, 32), generator=rng, dtype=torch.uint8)
    batches = images.split(arguments.batch)
    kept = torch.ones(arguments.images, dtype=torch.bool)
    real, fake = (random_pass(count, extractor.dimensions, rng) for count in (arguments.kept, arguments.samples))
    of_real = RealStatistics.of(real)

    def bare() -> None:
        for batch in batches:
            extractor.extract(batch)

    seconds = time_rounds(
        {
            "bare": bare,
            "pass": lambda: pass_over(batches, extractor, kept),
            "scores": lambda: scores(of_real, fake, published=True, splits=10),
            "again": bare,
        },
        arguments.rounds,
    )
    each = time_rounds(
        {
            "fid": lambda: frechet_distance(of_real.moments, fake.moments, of_real.factor),
            "inception_score": lambda: classifier_score(fake.logits, 10),
            "kid": lambda: kernel_distance(of_real.kept, fake.kept, of_real.within),
            "precision, recall, density, coverage": lambda: overlap(of_real.kept, fake.kept, of_real.balls),
        },
        3,
    )
    of_each = {name: statistics.median(window.cpu for window in windows) for name, windows in each.items()}
    cpu = {name: [window.cpu for window in windows] for name, windows in seconds.items()}
    share = arguments.samples / arguments.images
    together = [share * passing + scoring for passing, scoring in zip(cpu["pass"], cpu["scores"], strict=True)]
    ratio = ratio_of(together, [share * window for window in cpu["bare"]])
    control = ratio_of(cpu["again"], cpu["bare"])
    medians = {name: statistics.median(windows) for name, windows in cpu.items()}
    chosen = {key: getattr(arguments, key) for key in ("samples", "kept", "images", "batch", "threads", "rounds")}
    values = {
        "benchmark": "evaluation",
        **ratio.headline(),
        **{"control": control.median, "control_low": control.low, "control_high": control.high},
        **chosen,
        "seconds": medians,
        "seconds_of_each": of_each,
        "environment": describe_environment(CPU, "fp32"),
    }
    lines = [
        f"every score of {arguments.samples:,} samples against a bare pass of Inception over them, CPU time",
        f"  ratio          {ratio}",
        f"  noise control  {control}  (the pass against itself)",
        f"  a pass over {arguments.images} images {medians['bare']:.2f} s, with moments and features kept "
        f"{medians['pass']:.2f} s; all scores {medians['scores']:.2f} s",
        *(f"  {name}  {taken:.2f} s" for name, taken in of_each.items()),
    ]
    return Report(values, lines)


def random_pass(count: int, dimensions: int, rng: torch.Generator) -> Pass:
    """Return what a pass over so many images would leave, with features and logits drawn at random."""
    features = torch.randn(count, dimensions, generator=rng).relu()
    logits = torch.randn(count, 1008, generator=rng)
    moments = [Moments.of(part) for part in features.split(500)]
    total = moments[0]
    for part in moments[1:]:
        total += part
    return Pass(total, features, [logits])


def write_random_inception(path: Path) -> None:
    """Write a file of random weights in the form of the published ones, which are as fast."""
    torch.save({}, path)
    original = FeatureExtractorInceptionV3.load_state_dict
    try:
        FeatureExtractorInceptionV3.load_state_dict = lambda self, state: None  # pyright: ignore
        network = FeatureExtractorInceptionV3("random", ["2048"], str(path))
    finally:
        FeatureExtractorInceptionV3.load_state_dict = original
    torch.save(network.state_dict(), path)


def add_options(parser: argparse.ArgumentParser) -> None:
    add_common(parser, evaluation)
    parser.add_argument("--rounds", type=positive, default=6)
    parser.add_argument("--samples", type=positive, default=5000, help="of an evaluation")
    parser.add_argument("--kept", type=positive, default=10_000, help="real images whose features are kept")
    parser.add_argument("--images", type=positive, default=64, help="that passes are timed on")
    parser.add_argument("--batch", type=positive, default=32)
