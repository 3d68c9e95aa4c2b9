"""Wrong command lines: each gets its lines, which name the keys, exit code 2 and no folder."""

import random
import shutil
import string
from pathlib import Path

from normlab import config
from tests.faults.driving import command, starts_cold

FULL, SHORT = 1000, 4

NUMBERS = ["abc", "-1", "1.5", "nan", "[1,2]", "{a: 1}", "0x", "1e999", "null"]
RATES = ["abc", "-1", "0", "nan", "inf", "[1]", "'1e-3 '", "true"]
LENGTHS = ["5", "abc", "-1 epochs", "0 steps", "5 parsecs", "1.5.5 epochs", "[1]", "nan epochs", "epochs"]
SWITCHES = ["maybe", "3", "[true]", "null", "''"]
NAMES = ["foo", "spectrl", "-1", "NONE", "../none", "[a]"]
# What each setting cannot be.
WRONG: dict[str, list[str]] = {
    "seed": NUMBERS,
    "device": ["gpu", "cuda:x", "3", "tpu", "''"],
    "precision": ["fp16", "32", "null", "[fp32]"],
    "name": ["../x", "a/b", "''", ".hidden", "a b", "x" * 300, "[a]"],
    "debug": SWITCHES,
    "fresh": SWITCHES,
    "plugins": ["abc", "3", "[no_such_module_here]", "null"],
    "train.until": [*LENGTHS, "5 minutes", "null"],
    "train.batch_size": [*NUMBERS, "0"],
    "train.discriminator_steps": [*NUMBERS, "0"],
    "train.time_limit": [*LENGTHS, "5 steps", "5 epochs"],
    "every.log": [*LENGTHS, "5 minutes"],
    "every.sample": [*LENGTHS, "5 minutes"],
    "every.checkpoint": LENGTHS,
    "every.evaluate": [*LENGTHS, "5 minutes"],
    "every.spectra": [*LENGTHS, "5 minutes"],
    "optimizer.lr": [*RATES, "null"],
    "optimizer.generator.lr": RATES,
    "optimizer.discriminator.lr": RATES,
    "optimizer.betas": ["0.5", "[0.5]", "[0.5,2]", "[a,b]", "[0,-1]", "null"],
    "optimizer.eps": RATES,
    "ema.decay": ["1.5", "-0.1", "abc", "nan", "[0.9]"],
    "evaluation.samples": [*NUMBERS, "0", "5"],
    "evaluation.batch_size": [*NUMBERS, "0"],
    "evaluation.features": NAMES,
    "evaluation.split": ["test", "3", "null"],
    "architecture.width": [*NUMBERS, "0"],
    "architecture.latent_size": [*NUMBERS, "0"],
    "dataset.image_size": [*NUMBERS, "0", "31", "33", "129", "1000"],
    "dataset.limit": ["0", "-3", "abc", "1.5", "nan"],
    "dataset.flip": SWITCHES,
    "normalization.discriminator.power_iterations": [*NUMBERS, "0"],
    "normalization.discriminator": NAMES,
    "normalization.generator": NAMES,
    "normalization": NAMES,
    "dataset": NAMES,
    "architecture": NAMES,
    "loss": NAMES,
    "optimizer": NAMES,
    "optimizer.schedule": NAMES,
    "ema": NAMES,
    "evaluation": NAMES,
    "experiment": NAMES,
}
FOREIGN = [  # a parameter that the chosen part does not have
    (["normalization.discriminator=layer", "normalization.discriminator.power_iterations=3"], "power_iterations"),
    (["optimizer=sgd", "optimizer.betas=[0.5,0.9]"], "betas"),
    (["dataset.root=x"], "dataset.root"),
    (["optimizer.schedule.horizon=3 epochs"], "optimizer.schedule.horizon"),
    (["optimizer.generator.momentum=0.5"], "optimizer.generator.momentum"),
    (["resume=no/such/run"], "resume"),
]
GARBAGE = [
    "train.until",
    "==",
    "=3",
    "seed=[1",
    "seed='1",
    "seed=1,2",
    "~seed",
    "a b",
    "+seed=1=2",
    "optimizer.lr:3",
    "seed=",
]


def trial(number: int, folder: Path) -> dict[str, int]:
    """Give one to four wrong words among right ones."""
    rng = random.Random(number)
    wrong = [rng.choice([a_wrong_value, a_wrong_value, a_mistyped_key, a_foreign_parameter])(rng)]
    for _ in range(rng.randrange(3)):
        words, named = a_wrong_value(rng)
        # Two words about one part may hide each other: the second is judged by what the first would choose.
        if all(part(named) != part(other) for _, other in wrong):
            wrong.append((words, named))
    words = [word for group, _ in wrong for word in group]
    if rng.random() < 0.2:
        words, wrong = [rng.choice(GARBAGE)], [([], "")]
    ended = command(folder, "train", *words, cold=starts_cold(number, FULL))
    told = f"{words}: {ended.exit_code}: {ended.stdout}{ended.stderr}"
    assert ended.exit_code == 2, told
    lines = ended.stderr.splitlines()
    assert lines, told
    assert all(line.startswith("error: ") for line in lines), told
    assert "Traceback" not in told, told
    assert all(named in ended.stderr for _, named in wrong), told
    assert not (folder / "outputs").exists(), told
    shutil.rmtree(folder)
    return {"wrong words": len(wrong), "longest, s": ended.seconds}


def part(key: str) -> str:
    return key.partition(".")[0]


def a_wrong_value(rng: random.Random) -> tuple[list[str], str]:
    key = rng.choice(list(WRONG))
    return [f"{key}={rng.choice(WRONG[key])}"], key


def a_mistyped_key(rng: random.Random) -> tuple[list[str], str]:
    keys = {key for key, _ in config.flatten(config.write(config.RunConfig()))} | set(WRONG)
    while True:
        letters = list(rng.choice(sorted(keys)))
        at = rng.randrange(len(letters))
        change = rng.choice(["drop", "double", "replace"])
        if change == "replace":
            letters[at] = rng.choice(string.ascii_lowercase)
        else:
            letters[at] = "" if change == "drop" else 2 * letters[at]
        key = "".join(letters)
        if key not in keys and key and not key.startswith(".") and not key.endswith(".") and ".." not in key:
            return [f"{key}=1"], key


def a_foreign_parameter(rng: random.Random) -> tuple[list[str], str]:
    return rng.choice(FOREIGN)
