"""Damaged checkpoints: none is loaded in silence, and the one before it is used."""

import functools
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.faults.driving import PLAIN, command, continued_from, digest, only_run, starts_cold, undisturbed

FULL, SHORT = 1000, 2
WORDS = [*PLAIN, "architecture.latent_size=8", "architecture.width=1", "train.until=6 steps"]


def trial(number: int, folder: Path) -> dict[str, int]:
    """Damage the newest checkpoint of a run that was stopped, and let the run go on."""
    rng = random.Random(number)
    template, expected = _template(folder.parent / "template")
    shutil.copytree(template, folder)
    run = only_run(folder)
    damage = rng.choice(DAMAGES)
    harmless = damage(run / "checkpoints" / "step_00000004.pt", rng)
    ended = command(folder, "train", *WORDS, cold=starts_cold(number, FULL))
    assert ended.exit_code == 0, ended.stderr
    noticed = "trying the one before it" in ended.stderr
    assert noticed != harmless, f"{damage.__name__}: {ended.stderr}"
    assert continued_from(ended.stderr) == (2 if noticed else 4), f"{damage.__name__}: {ended.stderr}"
    assert digest(run) == expected, damage.__name__
    shutil.rmtree(folder)
    return {"fell back": int(noticed), "damage to white space alone": int(harmless)}


@functools.cache
def _template(folder: Path) -> tuple[Path, str]:
    """Return a folder with a run that was killed after step 4 of 6, and the digest in which it should end."""
    folder = folder.with_name(f"{folder.name}-{os.getpid()}")
    expected = undisturbed(folder / "undisturbed", *WORDS)
    stopped = folder / "stopped"
    ended = command(stopped, "train", *WORDS, "train.until=4 steps")
    assert ended.exit_code == 0, ended.stderr
    steps = sorted(path.name for path in (only_run(stopped) / "checkpoints").glob("*.pt"))
    assert steps == ["step_00000002.pt", "step_00000004.pt"], steps
    return stopped, expected


def flip_a_bit(file: Path, rng: random.Random) -> bool:
    return _change(
        file, rng, lambda content, at: content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    )


def zero_a_block(file: Path, rng: random.Random) -> bool:
    size = rng.choice([1, 64, 512, 4096])
    return _change(
        file, rng, lambda content, at: content[:at] + bytes(len(content[at : at + size])) + content[at + size :]
    )


def cut_short(file: Path, rng: random.Random) -> bool:
    os.truncate(file, rng.randrange(file.stat().st_size))
    return False


def grow(file: Path, rng: random.Random) -> bool:
    with file.open("ab") as end:
        end.write(rng.randbytes(rng.randint(1, 100)))
    return False


def take_the_file_away(file: Path, rng: random.Random) -> bool:
    file.unlink()
    return False


def use_another_manifest(file: Path, rng: random.Random) -> bool:
    shutil.copy(file.with_name("step_00000002.pt.json"), _manifest(file))
    return False


def use_another_file(file: Path, rng: random.Random) -> bool:
    shutil.copy(file.with_name("step_00000002.pt"), file)
    return False


def damage_the_manifest(file: Path, rng: random.Random) -> bool:
    """A bit of white space may flip: the manifest then says what it said."""
    before = json.loads(_manifest(file).read_text())
    flip_a_bit(_manifest(file), rng)
    try:
        return bool(json.loads(_manifest(file).read_text()) == before)
    except ValueError:
        return False


DAMAGES: list[Callable[[Path, random.Random], bool]] = [
    *(flip_a_bit, flip_a_bit, flip_a_bit, zero_a_block, zero_a_block, cut_short, grow),
    *(take_the_file_away, use_another_manifest, use_another_file, damage_the_manifest),
]


def _manifest(file: Path) -> Path:
    return file.with_name(f"{file.name}.json")


def _change(file: Path, rng: random.Random, change: Callable[[bytes, int], bytes]) -> bool:
    """Change a file at a random place, and another if nothing was changed there; never harmless."""
    before = file.read_bytes()
    while (after := change(before, rng.randrange(len(before)))) == before:
        pass
    file.write_bytes(after)
    return False
