"""Checkpoints and generators made to do harm: nothing of theirs is run, nothing is written, and memory stays small."""

import hashlib
import json
import multiprocessing
import os
import pickle
import random
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from normlab.outputs import checkpoints
from tests.faults.driving import PLAIN, Ended, command, only_run, starts_cold

FULL, SHORT = 30, 2
MOST_BYTES_BEYOND = 10**8  # what the same command takes undisturbed, where torch's own libraries may take 1 GB
MOST_SECONDS = 30  # on a busy machine; what hangs, hangs for ever
WORDS = [*PLAIN, "architecture.latent_size=8", "architecture.width=1", "train.until=6 steps"]
# What reads a run's checkpoints beside `train`; the last one writes, too.
VERBS = [["verify"], ["verify", "--digest-only"], ["sample"], ["clean"]]


def trial(number: int, folder: Path) -> dict[str, float]:
    """Put one hostile file where a checkpoint or a generator is read, and use it."""
    cold = starts_cold(number, FULL)
    ended = command(folder, "train", *WORDS, "train.until=4 steps", cold=cold)
    assert ended.exit_code == 0, ended.stderr
    calm = ended.peak_bytes
    run = only_run(folder)
    copied = folder / "copied"
    trap = folder / "trap"
    attack = ATTACKS[number % len(ATTACKS)]
    if attack in ON_GENERATORS:
        file = folder / "generator.safetensors"
        in_a_process_of_its_own(attack, file, trap)
        all_ended = [command(folder, "sample", str(file), cold=cold)]
        assert all_ended[0].exit_code == 4, f"{attack.__name__}: {all_ended[0]}"
    else:
        in_a_process_of_its_own(attack, run / "checkpoints" / "step_00000004.pt", trap)
        # A train may set the file aside, so the verbs get a copy: of links, pipes and holes as they are.
        subprocess.run(["cp", "--archive", str(run), str(copied)], check=True)
        outside = sorted(folder.iterdir())
        ended = command(folder, "train", *WORDS, cold=cold)
        assert ended.exit_code in (0, 4), f"{attack.__name__}: {ended}"
        assert "trying the one before it" in ended.stderr or ended.exit_code == 4, f"{attack.__name__}: {ended}"
        all_ended = [ended, *(use(folder, copied, words, attack.__name__) for words in VERBS)]
        assert sorted(folder.iterdir()) == outside, f"{attack.__name__}: {sorted(folder.iterdir())}"
    for ended in all_ended:
        require_harmless(ended, calm, trap, attack.__name__)
    shutil.rmtree(folder)
    most = max(ended.peak_bytes for ended in all_ended)
    held = {"most MB": most / 1e6, "most MB beyond a calm run": (most - calm) / 1e6}
    return {"refused": 1, **held, "longest, s": max(ended.seconds for ended in all_ended)}


def use(folder: Path, run: Path, words: list[str], name: str) -> Ended:
    """Give a run with a hostile checkpoint to a verb; those that look at every checkpoint, and all of it, refuse."""
    ended = command(folder, *words, str(run))
    codes = (4,) if words in (["verify"], ["clean"]) else (0, 4)
    assert ended.exit_code in codes, f"{words} {name}: {ended}"
    assert (ended.stderr.count("error: ") > 0) == (ended.exit_code == 4), f"{words} {name}: {ended}"
    return ended


def in_a_process_of_its_own(attack: Callable[[Path, Path], None], file: Path, trap: Path) -> None:
    """Make a hostile file without taking the memory that some need: a child's count of it begins with its parent's."""
    process = multiprocessing.get_context("fork").Process(target=attack, args=(file, trap))
    process.start()
    process.join()
    assert process.exitcode == 0, attack.__name__


def require_harmless(ended: Ended, calm: int, trap: Path, name: str) -> None:
    assert not trap.exists(), f"{name} was run"
    assert "Traceback" not in ended.stderr, f"{name}: {ended.stderr}"
    assert ended.peak_bytes < calm + MOST_BYTES_BEYOND, f"{name}: {ended.peak_bytes / 1e6:.0f} MB"
    assert ended.seconds < MOST_SECONDS, f"{name}: {ended.seconds:.0f} s"


class Calls:
    """Something that calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def forge(file: Path, state: Any) -> None:
    """Write a checkpoint that its manifest vouches for, as whoever made both would."""
    torch.save(state, file)
    vouch(file)


def vouch(file: Path, **claims: Any) -> None:
    content = file.read_bytes() if file.is_file() and file.stat().st_size < 10**8 else b""
    manifest = {"step": 4, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), **claims}
    text = checkpoints._manifest_text(checkpoints.Manifest(**manifest))
    file.with_name(f"{file.name}.json").write_text(text)


def true_state(file: Path) -> dict[str, Any]:
    return dict(torch.load(file, weights_only=True))


def a_shell_command(file: Path, trap: Path) -> None:
    forge(file, {"generator": Calls(os.system, f"touch {trap}")})


def an_evaluated_text(file: Path, trap: Path) -> None:
    forge(file, {"generator": Calls(eval, f"open({str(trap)!r}, 'w')")})


def an_executed_text(file: Path, trap: Path) -> None:
    forge(file, Calls(exec, f"open({str(trap)!r}, 'w')"))


def a_made_folder(file: Path, trap: Path) -> None:
    forge(file, {"step": Calls(os.mkdir, str(trap))})


def a_call_within_the_true_state(file: Path, trap: Path) -> None:
    forge(file, {**true_state(file), "step": Calls(os.mkdir, str(trap))})


def a_plain_pickle(file: Path, trap: Path) -> None:
    file.write_bytes(pickle.dumps({"generator": Calls(os.mkdir, str(trap))}))
    vouch(file)


def an_old_format(file: Path, trap: Path) -> None:
    torch.save({"generator": Calls(os.mkdir, str(trap))}, file, _use_new_zipfile_serialization=False)
    vouch(file)


def another_program(file: Path, trap: Path) -> None:
    forge(file, {"generator": Calls(subprocess.Popen, ["touch", str(trap)])})


def an_expanded_tensor(file: Path, trap: Path) -> None:
    forge(file, {**true_state(file), "generator": {"weight": torch.zeros(1).expand(2**36)}})


def one_tensor_many_times(file: Path, trap: Path) -> None:
    forge(file, {**true_state(file), "generator": {str(name): torch.zeros(10**6) for name in range(4)} | _aliases()})


def _aliases() -> dict[str, torch.Tensor]:
    tensor = torch.zeros(10**6)
    return {f"alias{name}": tensor for name in range(2000)}


def lists_in_each_other(file: Path, trap: Path) -> None:
    nested: list[Any] = ["x"] * 10
    for _ in range(12):
        nested = [nested] * 10
    forge(file, {**true_state(file), "generator": nested})


def deep_lists(file: Path, trap: Path) -> None:
    """Written by hand: what could pickle this would need the depth that it takes from who reads it."""
    _forge_pickle(file, b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".")


def a_number_without_end(file: Path, trap: Path) -> None:
    forge(file, {**true_state(file), "step": 1 << 8_000_000})


def a_step_that_is_not_its_own(file: Path, trap: Path) -> None:
    state = true_state(file)
    forge(file, {**state, "step": -1})


def tensors_of_another_shape(file: Path, trap: Path) -> None:
    state = true_state(file)
    state["generator"] = {name: torch.zeros(3) for name in state["generator"]}
    forge(file, state)


def a_key_more(file: Path, trap: Path) -> None:
    state = true_state(file)
    forge(file, {**state, "callback": "os.system"})


def a_network_that_is_a_text(file: Path, trap: Path) -> None:
    forge(file, {**true_state(file), "discriminator": "x" * 1000})


def moments_for_parameters_that_are_not_there(file: Path, trap: Path) -> None:
    state = true_state(file)
    state["generator_optimizer"]["state"][10**6] = {"exp_avg": torch.zeros(1)}
    forge(file, state)


def a_compressed_bomb(file: Path, trap: Path) -> None:
    torch.save({"generator": torch.zeros(2**26)}, file)  # 256 MiB of zeros, more than twice what would be noticed
    with zipfile.ZipFile(file) as plain, zipfile.ZipFile(trap.with_name("bomb"), "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in plain.infolist():
            with plain.open(entry) as source, bomb.open(entry.filename, "w") as target:
                shutil.copyfileobj(source, target, 2**20)
    trap.with_name("bomb").replace(file)
    vouch(file)


def an_archive_that_climbs(file: Path, trap: Path) -> None:
    with zipfile.ZipFile(file) as plain:
        entries = {entry.filename: plain.read(entry) for entry in plain.infolist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
        archive.writestr("../../../../trap", b"out")
        archive.writestr(str(trap), b"out")
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("archive/data.pkl", b"twice")
    vouch(file)


def a_header_that_lies_about_sizes(file: Path, trap: Path) -> None:
    content = bytearray(file.read_bytes())
    at = content.rindex(b"PK\x01\x02")
    struct.pack_into("<II", content, at + 20, 2**31, 2**31)
    file.write_bytes(content)
    vouch(file)


def a_link_to_a_device(file: Path, trap: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def a_link_elsewhere(file: Path, trap: Path) -> None:
    file.unlink()
    file.symlink_to("/etc/passwd")


def a_pipe(file: Path, trap: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def a_folder_of_that_name(file: Path, trap: Path) -> None:
    file.unlink()
    file.mkdir()


def a_sparse_giant(file: Path, trap: Path) -> None:
    os.truncate(file, 2**36)
    vouch(file, bytes=2**36)


def a_giant_manifest(file: Path, trap: Path) -> None:
    os.truncate(file.with_name(f"{file.name}.json"), 2**33)


def a_manifest_of_lists(file: Path, trap: Path) -> None:
    file.with_name(f"{file.name}.json").write_text("[" * 100_000 + "]" * 100_000)


def a_generator_that_claims_to_be_huge(file: Path, trap: Path) -> None:
    _write_generator(file, {"architecture": {"name": "dcgan", "width": 10**7, "latent_size": 100}})


def a_generator_with_a_lying_header(file: Path, trap: Path) -> None:
    file.write_bytes(struct.pack("<Q", 2**60) + b"{}")


ON_GENERATORS = [a_generator_that_claims_to_be_huge, a_generator_with_a_lying_header]
ATTACKS: list[Callable[[Path, Path], None]] = [
    *(a_shell_command, an_evaluated_text, an_executed_text, a_made_folder, a_call_within_the_true_state),
    *(a_plain_pickle, an_old_format, another_program, an_expanded_tensor, one_tensor_many_times),
    *(lists_in_each_other, deep_lists, a_number_without_end, a_step_that_is_not_its_own, tensors_of_another_shape),
    *(a_key_more, a_network_that_is_a_text, moments_for_parameters_that_are_not_there, a_compressed_bomb),
    *(an_archive_that_climbs, a_header_that_lies_about_sizes, a_link_to_a_device, a_link_elsewhere, a_pipe),
    *(a_folder_of_that_name, a_sparse_giant, a_giant_manifest, a_manifest_of_lists),
    *ON_GENERATORS,
]
assert len(ATTACKS) == FULL
# So that a few trials are of every sort.
random.Random(0).shuffle(ATTACKS)


def _forge_pickle(file: Path, content: bytes) -> None:
    """Replace the pickle within a checkpoint."""
    with zipfile.ZipFile(file) as plain:
        entries = {entry.filename: plain.read(entry) for entry in plain.infolist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, kept in entries.items():
            archive.writestr(name, content if name.endswith("data.pkl") else kept)
    vouch(file)


def _write_generator(file: Path, metadata: dict[str, Any]) -> None:
    described = {
        "technique": {"name": "batch", "momentum": 0.1, "eps": 1e-5},
        "image_shape": [1, 32, 32],
        "step": 1,
        **metadata,
    }
    texts = {"__metadata__": {name: json.dumps(value) for name, value in described.items()}}
    header = json.dumps(texts).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header)
