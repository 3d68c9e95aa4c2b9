"""Right command lines, whatever they combine: they train, and resumed they end in the same bits."""

import random
import shutil
from pathlib import Path

from tests.faults.driving import command, digest, only_run, starts_cold

FULL, SHORT = 100, 1
TECHNIQUES = ["none", "batch", "instance", "layer", "group", "weight", "spectral"]


def trial(number: int, folder: Path) -> dict[str, int]:
    """Train three steps at once, and two and one, by the same random configuration."""
    words = random_words(random.Random(number))
    for where, lengths in (("once", ["3 steps"]), ("twice", ["2 steps", "3 steps"])):
        for length in lengths:
            ended = command(folder / where, "train", *words, f"train.until={length}", cold=starts_cold(number, FULL))
            assert ended.exit_code == 0, f"{words}: {ended.stderr}"
    once, twice = (digest(only_run(folder / where)) for where in ("once", "twice"))
    assert once == twice, words
    shutil.rmtree(folder)
    return {"equal digests": 1}


def random_words(rng: random.Random) -> list[str]:
    schedule = rng.choice(["constant", "linear", "cosine", "step"])
    optimizer = rng.choice(["adam", "adamw", "rmsprop", "sgd"])
    return [
        f"seed={rng.randrange(1000)}",
        f"normalization={rng.choice(['', 'both/'])}{rng.choice(TECHNIQUES)}",
        f"normalization.{rng.choice(['generator', 'discriminator'])}={rng.choice(TECHNIQUES)}",
        f"loss={rng.choice(['non_saturating', 'hinge', 'wasserstein', 'least_squares'])}",
        "force=true",  # Wasserstein's loss with nothing that bounds the discriminator
        f"optimizer={optimizer}",
        *(["optimizer.lr=1e-4"] if optimizer == "sgd" else []),  # at its default least squares may diverge in 3 steps
        f"optimizer.schedule={schedule}",
        *([] if schedule == "constant" else [f"optimizer.schedule.horizon={rng.randint(2, 5)} steps"]),
        f"optimizer.{rng.choice(['generator', 'discriminator'])}.lr={rng.choice(['1e-3', '5e-5'])}",
        f"ema={rng.choice(['none', 'standard'])}",
        f"precision={rng.choice(['fp32', 'fp32', 'bf16'])}",
        f"train.batch_size={rng.randint(2, 24)}",
        f"train.discriminator_steps={rng.randint(1, 3)}",
        "architecture.width=16",
        f"architecture.latent_size={rng.randint(1, 20)}",
        f"dataset.flip={rng.choice(['true', 'false'])}",
        f"dataset.limit={rng.choice(['null', '100', '73'])}",
        f"every.log={rng.choice(['1 step', '2 steps', 'null'])}",
        f"every.sample={rng.choice(['1 step', '1 epoch', 'null'])}",
        f"every.checkpoint={rng.choice(['1 step', '1 epoch', '5 minutes', 'null'])}",
        "every.evaluate=null",
        # The shipped classifier is for 32 pixels; for others one would be fitted first, which takes a minute.
        *rng.choice(
            [
                ["evaluation=none", f"dataset.image_size={rng.choice([40, 48, 64])}"],
                ["evaluation=none"],
                ["evaluation.samples=50", "evaluation.batch_size=20"],
            ]
        ),
    ]
