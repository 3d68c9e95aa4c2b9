"""Checkpoints that can be trusted: written whole, verified byte by byte, and skipped when damaged.

A checkpoint is a file and its manifest. The manifest is written last, so it is what makes a checkpoint: a file
without one was never finished.
"""

import hashlib
import json
import logging
import pickle
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import torch
from torch import Tensor

from normlab.errors import CheckpointError, NumericalError, ResourceError, is_out_of_memory
from normlab.outputs import plain_json
from normlab.outputs.atomic import replacing, write_atomically

logger = logging.getLogger(__name__)

SCHEMA = 1

_START_OVER = "fresh=true starts over; the old folder is set aside"

# What reading a file that is not what it says may raise: the file may come from anybody.
UNREADABLE = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, MemoryError, RuntimeError, EOFError),
    *(ValueError, LookupError, TypeError, AttributeError),
)

# No state of a run comes near these: its values are counted in thousands, and stand five levels deep.
_MOST_VALUES, _MOST_LEVELS = 1_000_000, 20

_LARGEST_MANIFEST = 10_000  # bytes

# Room beside the last checkpoint's size that a save asks for: a state grows a little, and so does the log.
_ROOM = 1.2


class Checkpoint(NamedTuple):
    step: int
    state: dict[str, Any]


class Verification(NamedTuple):
    """Whether the checkpoint of a step is sound, and what is wrong with it if not."""

    step: int
    ok: bool
    problem: str


class Manifest(NamedTuple):
    """What is known about a checkpoint's file without reading it."""

    step: int
    bytes: int
    sha256: str


class Damaged(Exception):
    """A checkpoint that cannot be used, and why; the one before it may be sound."""


class TooLarge(Damaged):
    """A checkpoint of more bytes than a state takes: not read, and maybe sound for other settings."""


class Checkpoints:
    """The checkpoints in a folder: `step_00001234.pt`, each with `step_00001234.pt.json` to vouch for it.

    One process writes, under the run's lock; any may read. `keep` is how many of the newest survive `prune`, at
    least 2, so that there is always one to fall back to.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        if keep < 2:
            raise ValueError(f"keep at least 2 checkpoints, not {keep}")
        self.folder = folder
        self.keep = keep

    def file(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}.pt"

    def misfit(self, step: int, problem: str, remedy: str) -> CheckpointError:
        """Return the error of a checkpoint that is whole, but holds the state of another run."""
        return CheckpointError(str(self.file(step)), f"does not fit this run: {problem}", remedy)

    def steps(self) -> list[int]:
        """Return the steps that have a manifest, the oldest first, sound or not."""
        matches = (re.fullmatch(r"step_(\d+)\.pt\.json", path.name) for path in self._listing())
        return sorted(int(match[1]) for match in matches if match)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a state of nested dictionaries, lists, tensors and plain values, so that a kill can only lose this one.

        Raises ResourceError if the disk does not take it; nothing half-written stays.
        """
        path = self.file(step)
        self._require_room(path)
        with replacing(path) as file:
            writer = _HashingWriter(file)
            writer.save(state)
            manifest = Manifest(step, writer.bytes, writer.digest.hexdigest())
            if self._looks_sound(step):
                # Until the new manifest stands the old one vouches for both, so that a kill loses neither.
                both = _manifest_text(self._manifest(step)[0], successor=manifest)
                write_atomically(_manifest_file(path), both.encode())
            else:
                _manifest_file(path).unlink(missing_ok=True)
        write_atomically(_manifest_file(path), _manifest_text(manifest).encode())

    def load(self, step: int, largest: int | None = None) -> dict[str, Any]:
        """Return the state of one step, tensors on the CPU; raise CheckpointError if it is missing or damaged.

        A file of more than `largest` bytes is not read.
        """
        if step not in self.steps():
            there = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(str(self.folder), f"has no checkpoint of step {step}", f"there are: {there}")
        try:
            return self._read(step, largest)
        except Damaged as damage:
            raise CheckpointError(str(self.file(step)), str(damage), "choose another step") from None

    def newest(self, set_aside: bool = True, largest: int | None = None) -> Checkpoint | None:
        """Return the newest sound checkpoint, or None where none was ever made.

        A damaged one is renamed to `*.corrupt`, with a warning; `set_aside` is off for readers without the run's lock.
        A file of more than `largest` bytes is not read, and stays: it is sound if the settings were changed.
        Raises CheckpointError if none can be used, or if another version of normlab wrote the newest.
        """
        damaged = sum(path.name.endswith(".corrupt") for path in self._listing())
        too_large = 0
        for step in reversed(self.steps()):
            try:
                return Checkpoint(step, self._read(step, largest))
            except Damaged as damage:
                logger.warning("%s %s; trying the one before it", self.file(step), damage)
                if isinstance(damage, TooLarge):
                    too_large += 1
                    continue
                damaged += 1
                if set_aside:
                    self._set_aside(step)
        if too_large:
            problem = "has checkpoints, but only of more bytes than a state of this run takes"
            raise CheckpointError(str(self.folder), problem, f"set back what was changed, or {_START_OVER}")
        if damaged:
            raise CheckpointError(str(self.folder), "has checkpoints, but no sound one", _START_OVER)
        return None

    def unvouched(self) -> list[int]:
        """Return the steps whose file has no manifest: what was never finished, or whose manifest was lost."""
        names = (re.fullmatch(r"step_(\d+)\.pt", path.name) for path in self._listing())
        return sorted({int(match[1]) for match in names if match} - set(self.steps()))

    def set_aside_beyond(self, step: int) -> None:
        """Rename to `*.corrupt` what lies beyond the step that a run goes on from: it will save those steps itself."""
        for later in self.steps():
            if later > step:
                self._set_aside(later)

    def verify(self, largest: int | None = None) -> list[Verification]:
        """Read every checkpoint as loading would, and change nothing; `largest` is as `newest` has it."""
        return [self._verify(step, largest) for step in self.steps()]

    def prune(self, keep_steps: set[int]) -> None:
        """Delete all but the newest `keep` sound checkpoints and those named, and what was never finished.

        Sound is judged by manifest and size here, not by content. Damaged ones neither count nor are touched.
        """
        sound = [step for step in self.steps() if self._looks_sound(step)]
        for step in sound[: -self.keep]:
            if step not in keep_steps:
                # The manifest first: without it the rest is only a file that was never finished.
                _manifest_file(self.file(step)).unlink(missing_ok=True)
                self.file(step).unlink(missing_ok=True)
        for path in self._listing():
            if re.fullmatch(r"step_\d+\.pt", path.name) and not _manifest_file(path).exists():
                path.unlink(missing_ok=True)

    def _require_room(self, path: Path) -> None:
        """Raise ResourceError if there is less room than another checkpoint like the newest one takes."""
        newest = [self.file(step) for step in self.steps()[-1:]]
        needed = sum(_ROOM * file.stat().st_size for file in newest if file.exists())
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            problem = f"needs {needed / 1e6:,.1f} MB of disk, and there are {free / 1e6:,.1f} MB free"
            raise ResourceError(str(path), problem, "make room, then give the same command again")

    def _listing(self) -> list[Path]:
        return list(self.folder.iterdir()) if self.folder.is_dir() else []

    def _manifest(self, step: int) -> list[Manifest]:
        """Return what a step's manifest vouches for and the file's size fits; raise Damaged or CheckpointError.

        It is one, but for a save over another that was cut short.
        """
        path = self.file(step)
        try:
            if _manifest_file(path).stat().st_size > _LARGEST_MANIFEST:
                raise Damaged("has a manifest larger than any")
            values = json.loads(_manifest_file(path).read_text())
            schema = values["schema"]
            manifest = Manifest(values["step"], values["bytes"], values["sha256"])
            successor = None if "successor" not in values else Manifest(**values["successor"])
            check = values["check"]
        except (OSError, *UNREADABLE):
            raise Damaged("has an unreadable manifest") from None
        if check != _check(schema, manifest, successor) or manifest.step != step:
            raise Damaged("has a manifest that contradicts itself")
        if schema != SCHEMA:
            problem = f"is written in schema {schema}, this normlab reads schema {SCHEMA}"
            raise CheckpointError(str(path), problem, f"use the version that wrote it, or {_START_OVER}")
        if not path.is_file():
            raise Damaged("is missing")
        fitting = [each for each in (manifest, successor) if each is not None and each.bytes == path.stat().st_size]
        if not fitting:
            raise Damaged(f"has {path.stat().st_size} bytes where {manifest.bytes} were written")
        return fitting

    def _looks_sound(self, step: int) -> bool:
        try:
            self._manifest(step)
        except (Damaged, CheckpointError):
            return False
        return True

    def _verify(self, step: int, largest: int | None) -> Verification:
        try:
            self._read(step, largest)
        except Damaged as damage:
            return Verification(step, False, str(damage))
        except CheckpointError as error:
            return Verification(step, False, error.complaints[0].problem)
        return Verification(step, True, "")

    def _read(self, step: int, largest: int | None = None) -> dict[str, Any]:
        manifests = self._manifest(step)
        size = manifests[0].bytes
        if largest is not None and size > largest:
            raise TooLarge(f"has {size} bytes, more than a state of this run takes")
        try:
            with self.file(step).open("rb") as file:
                # torch.load alone hands back wrong tensors after a flipped bit, without a word.
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                if digest not in {manifest.sha256 for manifest in manifests}:
                    raise Damaged("is not what was written (its sha256 differs)")
                _refuse_compressed(file, size)
                file.seek(0)
                # Neither code nor classes are loaded; a mapped file could change under the tensors.
                state = torch.load(file, weights_only=True, mmap=False, map_location="cpu")
                _refuse_inflated(state, size)
        except OSError as error:
            # That may pass, and says nothing of what the file holds.
            remedy = "mend the disk; or take the file away, and the run goes on from the checkpoint before it"
            raise ResourceError(str(self.file(step)), f"cannot be read: {error.strerror}", remedy) from None
        except UNREADABLE as error:
            if is_out_of_memory(error):
                raise ResourceError(str(self.file(step)), "does not fit into memory", "make room for it") from None
            raise Damaged(f"cannot be loaded: {str(error).partition(chr(10))[0][:200]}") from None
        if not isinstance(state, dict):
            raise Damaged(f"holds no state but a {type(state).__name__}")
        if cast(dict[str, Any], state).get("step", step) != step:
            raise Damaged("holds the state of another step")
        return cast(dict[str, Any], state)

    def _set_aside(self, step: int) -> None:
        for path in (self.file(step), _manifest_file(self.file(step))):
            try:
                path.rename(path.with_name(path.name + ".corrupt"))
            except FileNotFoundError:
                continue
            except OSError as error:
                # Somebody else's folder, say; the fallback works without the renaming.
                logger.warning("%s cannot be renamed: %s", path, error.strerror)


def state_digest(state: Mapping[str, Any]) -> str:
    """Return the sha256 of what a state says: equal for equal values, whatever the file, device or order of keys.

    Raises ValueError for values other than mappings, lists, tensors, text, numbers, booleans and None.
    """
    digest = hashlib.sha256()
    for token in _tokens(state):
        # The length keeps two neighbours from reading like two others.
        digest.update(len(token).to_bytes(8, "little"))
        digest.update(token)
    return digest.hexdigest()


def require_finite(state: Mapping[str, Any]) -> None:
    """Raise NumericalError, with the key, if a floating tensor of a state holds a value that is not finite."""
    for key, tensor in _tensors(state):
        if (tensor.is_floating_point() or tensor.is_complex()) and not bool(tensor.isfinite().all()):
            count = int((~tensor.isfinite()).sum())
            problem = f"holds {count} of {tensor.numel()} values that are not finite"
            raise NumericalError(key, problem, "lower optimizer.lr, or choose a steadier normalization or loss")


class _HashingWriter:
    """What `torch.save` writes to: passes everything on, and keeps its length and its hash."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.bytes = 0

    def save(self, state: dict[str, Any]) -> None:
        try:
            torch.save(state, cast(Any, self))
        except RuntimeError as error:
            # torch.save answers what ends its writing, a full disk or Ctrl-C, with an error of its own about positions.
            if error.__context__ is None:
                raise
            raise error.__context__ from None

    def write(self, content: bytes) -> int:
        self._file.write(content)
        self.digest.update(content)
        self.bytes += len(content)
        return len(content)

    def flush(self) -> None:
        self._file.flush()


def _manifest_file(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _manifest_text(manifest: Manifest, successor: Manifest | None = None) -> str:
    """Return what a manifest's file says of a checkpoint, and of the one that is about to take its place, if any."""
    more = {} if successor is None else {"successor": successor._asdict()}
    check = _check(SCHEMA, manifest, successor)
    return plain_json.dump({"schema": SCHEMA, **manifest._asdict(), **more, "check": check}) + "\n"


def _check(schema: Any, manifest: Manifest, successor: Manifest | None) -> str:
    """Tell a damaged manifest from one of another version: a flipped bit could make one look like the other."""
    text = repr((schema, *manifest, *(successor or ())))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _refuse_compressed(file: BinaryIO, size: int) -> None:
    """Raise Damaged for an archive that would take more memory than its file has bytes; ours are not compressed."""
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    if sum(entry.file_size for entry in entries) > size or any(entry.compress_type for entry in entries):
        raise Damaged("unpacks to more than the whole file")


def _refuse_inflated(state: Any, size: int) -> None:
    """Raise Damaged for a state that is not plain, or claims more than the file holds: a small one can claim anything.

    Nothing is copied, and the walk ends early: lists that hold each other are short to write and endless to read.
    """
    claimed = visited = 0
    waiting = [("", state, 0)]
    while waiting:
        key, value, level = waiting.pop()
        visited += 1
        if visited > _MOST_VALUES or level > _MOST_LEVELS:
            raise Damaged("holds more than any state does")
        if type(value) is Tensor and value.layout is torch.strided and value.device.type == "cpu":
            claimed += value.nbytes
            if claimed > size:
                raise Damaged(f"claims {value.nbytes} bytes for {key}, more than the whole file")
        elif isinstance(value, (Mapping, list, tuple)):
            items = _items(value)
            if len(items) > _MOST_VALUES or not all(isinstance(name, (str, int)) for name, _ in items):
                raise Damaged(f"holds what no state does at '{key}'")
            waiting += [(f"{key}.{name}" if key else str(name), item, level + 1) for name, item in items]
        elif value is not None and not isinstance(value, (bool, int, float, str)):
            raise Damaged(f"holds a {type(value).__name__} at '{key}'")


def _tensors(value: Any, key: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield key, value
    for name, item in _items(value):
        yield from _tensors(item, f"{key}.{name}" if key else str(name))


def _items(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(cast(Mapping[Any, Any], value).items())
    if isinstance(value, (list, tuple)):
        return list(enumerate(cast(Sequence[Any], value)))
    return []


def _tokens(value: Any) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        # A fresh tensor, since one of a single element may keep any stride through `contiguous`.
        plain = torch.empty(value.shape, dtype=value.dtype).copy_(value.detach())
        yield f"tensor {plain.dtype} {tuple(plain.shape)}".encode()
        yield plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, Mapping):
        entries = sorted(_items(value), key=lambda entry: repr(entry[0]))
        yield f"mapping {len(entries)}".encode()
        for name, item in entries:
            yield from _tokens(name)
            yield from _tokens(item)
    elif isinstance(value, (list, tuple)):
        items = cast(Sequence[Any], value)
        yield f"sequence {len(items)}".encode()
        for item in items:
            yield from _tokens(item)
    elif value is None or isinstance(value, (bool, int, float, str)):
        yield f"{type(value).__name__} {value!r}".encode()
    else:
        raise ValueError(f"a state holds plain values and tensors, not {type(value).__name__}")
