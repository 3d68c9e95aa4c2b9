import hashlib
import json
import logging
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
import zipfile
from collections import OrderedDict

import pytest
import torch

from normlab.errors import CheckpointError, NumericalError, ResourceError
from normlab.outputs import checkpoints as module
from normlab.outputs.checkpoints import Checkpoints, require_finite, state_digest

CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["normlab.outputs.run_dir", "normlab.outputs.checkpoints"])


def state_of(step, size=1000):
    generator = torch.Generator().manual_seed(step)
    return {"step": step, "generator": {"weight": torch.randn(size, generator=generator)}, "moments": [0.5, None, True]}


@pytest.fixture
def saved(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (10, 20, 30):
        checkpoints.save(step, state_of(step))
    return checkpoints


def assert_is_step(checkpoint, step):
    assert checkpoint.step == step
    assert state_digest(checkpoint.state) == state_digest(state_of(step))


def flip_bit(path, position):
    content = bytearray(path.read_bytes())
    content[position // 8 % len(content)] ^= 1 << position % 8
    path.write_bytes(content)


def test_the_newest_checkpoint_comes_back_bit_by_bit(saved):
    assert_is_step(saved.newest(), 30)


def test_a_training_state_with_optimizer_survives_the_round_trip(tmp_path):
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(network.parameters(), betas=(0.0, 0.9))
    network(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    state = {"generator": network.state_dict(), "optimizer": optimizer.state_dict()}
    Checkpoints(tmp_path).save(1, state)
    assert state_digest(Checkpoints(tmp_path).load(1)) == state_digest(state)


def test_the_manifest_tells_the_sha256_and_size_of_the_file(saved):
    manifest = json.loads((saved.folder / "step_00000010.pt.json").read_text())
    content = saved.file(10).read_bytes()
    assert manifest["sha256"] == hashlib.sha256(content).hexdigest()
    assert (manifest["bytes"], manifest["step"], manifest["schema"]) == (len(content), 10, 1)


def test_a_folder_without_manifests_is_a_fresh_start(tmp_path):
    assert Checkpoints(tmp_path / "missing").newest() is None
    (tmp_path / "step_00000010.pt").write_bytes(b"never finished")
    assert Checkpoints(tmp_path).newest() is None


@pytest.mark.parametrize("seed", range(60))
def test_a_flipped_bit_is_detected_and_the_one_before_is_used(saved, seed, caplog):
    flip_bit(saved.file(30), random.Random(seed).randrange(10**9))
    assert_is_step(saved.newest(), 20)
    assert "sha256" in caplog.text
    assert sorted(path.name for path in saved.folder.glob("*.corrupt")) == [
        "step_00000030.pt.corrupt",
        "step_00000030.pt.json.corrupt",
    ]


def test_no_flipped_bit_of_a_manifest_changes_what_it_says(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(30, state_of(30, size=1))
    manifest = tmp_path / "step_00000030.pt.json"
    original = manifest.read_bytes()
    for position in range(8 * len(original)):
        flip_bit(manifest, position)
        (verification,) = checkpoints.verify()
        manifest.write_bytes(original)
        # A flip in white space may pass, for nothing is said there; and damage must never look like another schema.
        assert not verification.ok or original[position // 8 : position // 8 + 1].isspace()
        assert "schema" not in verification.problem


@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_a_truncated_file_is_detected_and_the_one_before_is_used(saved, length, caplog):
    os.truncate(saved.file(30), length % saved.file(30).stat().st_size)
    assert_is_step(saved.newest(), 20)
    assert "were written; trying the one before it" in caplog.text


def test_a_zeroed_block_or_a_missing_file_is_detected(saved):
    content = saved.file(30).read_bytes()
    saved.file(30).write_bytes(content[:1024] + bytes(512) + content[1536:])
    saved.file(20).unlink()
    assert_is_step(saved.newest(), 10)


def test_swapped_manifests_vouch_for_nothing(saved):
    first, second = (saved.folder / f"step_{step:08d}.pt.json" for step in (20, 30))
    texts = first.read_text(), second.read_text()
    second.write_text(texts[0])
    first.write_text(texts[1])
    assert_is_step(saved.newest(), 10)


def test_where_all_are_damaged_it_refuses_and_goes_on_refusing(saved):
    for step in saved.steps():
        flip_bit(saved.file(step), 4000)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="no sound one — fresh=true starts over") as caught:
            saved.newest()
    assert caught.value.exit_code == 4


def test_loading_a_step_that_is_missing_or_damaged_says_so_and_changes_nothing(saved):
    with pytest.raises(CheckpointError, match="no checkpoint of step 7 — there are: 10, 20, 30"):
        saved.load(7)
    flip_bit(saved.file(20), 4000)
    with pytest.raises(CheckpointError, match="sha256"):
        saved.load(20)
    assert saved.steps() == [10, 20, 30]


def test_verifying_names_the_damaged_ones_and_changes_nothing(saved):
    flip_bit(saved.file(20), 4000)
    os.truncate(saved.file(30), 5)
    verified = saved.verify()
    assert [(each.step, each.ok) for each in verified] == [(10, True), (20, False), (30, False)]
    assert "sha256" in verified[1].problem
    assert "5 bytes" in verified[2].problem
    assert saved.steps() == [10, 20, 30]


def test_another_schema_is_refused_by_its_number(saved, monkeypatch):
    monkeypatch.setattr(module, "SCHEMA", 2)
    with pytest.raises(CheckpointError, match="written in schema 1, this normlab reads schema 2"):
        saved.newest()
    assert saved.steps() == [10, 20, 30]


def test_pruning_keeps_the_newest_two_and_those_named(saved):
    for step in (40, 50):
        saved.save(step, state_of(step))
    saved.prune({20})
    assert saved.steps() == [20, 40, 50]
    assert sorted(path.name for path in saved.folder.glob("*.pt")) == [f"step_{n:08d}.pt" for n in (20, 40, 50)]


def test_pruning_does_not_count_damaged_ones(saved):
    os.truncate(saved.file(30), 5)
    saved.prune(set())
    assert_is_step(saved.newest(), 20)
    assert_is_step(saved.newest(), 20)
    assert saved.file(10).exists()


def test_pruning_removes_files_that_were_never_finished(saved):
    saved.file(25).write_bytes(b"no manifest")
    saved.prune(set())
    assert not saved.file(25).exists()


def test_less_than_two_cannot_be_kept(tmp_path):
    with pytest.raises(ValueError, match="at least 2"):
        Checkpoints(tmp_path, keep=1)


def test_saving_a_step_again_replaces_it(saved):
    other = {**state_of(31), "step": 30}
    saved.save(30, other)
    assert state_digest(saved.load(30)) == state_digest(other)


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def forge(checkpoints, step, state):
    """Write a checkpoint whose manifest is right, as an attacker would."""
    torch.save(state, checkpoints.file(step))
    vouch(checkpoints, step)


def vouch(checkpoints, step):
    content = checkpoints.file(step).read_bytes()
    manifest = module.Manifest(step, len(content), hashlib.sha256(content).hexdigest())
    (checkpoints.folder / f"step_{step:08d}.pt.json").write_text(module._manifest_text(manifest))


def test_code_in_a_checkpoint_is_not_run(saved, tmp_path, caplog):
    trap = tmp_path / "trap"
    forge(saved, 40, {"generator": Harmful(trap)})
    assert_is_step(saved.newest(), 30)
    assert "cannot be loaded" in caplog.text
    assert not trap.exists()


def test_a_small_file_that_claims_huge_tensors_is_refused(saved, caplog):
    forge(saved, 40, {"generator": {"weight": torch.zeros(1).expand(10**12)}})
    assert_is_step(saved.newest(), 30)
    assert "claims 4000000000000 bytes for generator.weight" in caplog.text


def lists_in_each_other(levels):
    nested = ["x"] * 10
    for _ in range(levels):
        nested = [nested] * 10
    return nested


def deep_list(levels):
    nested = []
    for _ in range(levels):
        nested = [nested]
    return nested


@pytest.mark.parametrize(
    ("value", "message"),
    [
        pytest.param([torch.zeros(2000)] * 2000, "more than the whole file", id="one tensor many times"),
        pytest.param(lists_in_each_other(9), "holds more than any state does", id="lists in each other"),
        pytest.param(deep_list(50), "holds more than any state does", id="deep"),
        pytest.param({1, 2}, "holds a set at 'generator'", id="set"),
        pytest.param({(1, 2): 3}, "holds what no state does at 'generator'", id="key"),
        pytest.param(torch.zeros(2, 2).to_sparse(), "holds a Tensor at 'generator'", id="sparse"),
        pytest.param(torch.zeros(2, device="meta"), "holds a Tensor at 'generator'", id="meta"),
    ],
)
def test_a_state_that_is_not_plain_or_unfolds_without_end_is_refused(saved, caplog, value, message):
    forge(saved, 40, {"generator": value})
    assert_is_step(saved.newest(), 30)
    assert message in caplog.text


def test_a_compressed_archive_is_refused_before_it_is_unpacked(saved, caplog):
    torch.save({"generator": torch.zeros(10**6)}, saved.file(41))
    with zipfile.ZipFile(saved.file(41)) as plain, zipfile.ZipFile(saved.file(40), "w", zipfile.ZIP_DEFLATED) as small:
        for entry in plain.infolist():
            small.writestr(entry.filename, plain.read(entry))
    saved.file(41).unlink()
    vouch(saved, 40)
    assert_is_step(saved.newest(), 30)
    assert "unpacks to more than the whole file" in caplog.text


def test_without_room_for_another_nothing_is_written(saved, monkeypatch):
    usage = shutil.disk_usage(saved.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ResourceError, match=r"step_00000040.pt: needs 0.0 MB of disk, and there are 0.0 MB free"):
        saved.save(40, state_of(40))
    assert saved.steps() == [10, 20, 30]


def test_the_state_of_another_step_is_refused(saved):
    saved.save(40, {"step": 10**9, "weights": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="holds the state of another step"):
        saved.load(40)


def test_a_file_that_holds_no_mapping_is_refused(saved):
    forge(saved, 40, [1, 2])
    assert_is_step(saved.newest(), 30)


def save_for_ever(folder, saved_once):
    checkpoints = Checkpoints(folder)
    step = (checkpoints.steps() or [0])[-1]
    while True:
        step += 1
        checkpoints.save(step, state_of(step, size=100_000))
        checkpoints.prune(set())
        saved_once.set()


def kill_a_saver(folder, seconds):
    saved_once = CHILDREN.Event()
    process = CHILDREN.Process(target=save_for_ever, args=(folder, saved_once), daemon=True)
    process.start()
    assert saved_once.wait(30)
    time.sleep(seconds)
    process.kill()
    process.join()


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_after_any_kill_the_newest_checkpoint_is_loadable_and_steps_only_rise(tmp_path, caplog, kills):
    rng, last = random.Random(0), 0
    with caplog.at_level(logging.WARNING):
        for _ in range(kills):
            kill_a_saver(tmp_path, rng.uniform(0, 0.05))
            newest = Checkpoints(tmp_path).newest()
            assert state_digest(newest.state) == state_digest(state_of(newest.step, size=100_000))
            assert newest.step > last
            last = newest.step
    assert caplog.text == ""
    assert not list(tmp_path.glob("*.corrupt"))


def save_on_a_full_disk(folder, limit, answer):
    torch.set_num_threads(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        Checkpoints(folder).save(40, state_of(40, size=100_000))
    except ResourceError as error:
        answer.put((str(error), error.exit_code))


@pytest.mark.parametrize("limit", [0, 700, 50_000, 399_000])
def test_a_disk_that_fills_up_costs_only_the_checkpoint_being_written(saved, limit):
    answer = CHILDREN.Queue()
    process = CHILDREN.Process(target=save_on_a_full_disk, args=(saved.folder, limit, answer), daemon=True)
    process.start()
    message, code = answer.get(timeout=30)
    process.join()
    assert message.startswith(f"error: {saved.file(40)}: cannot be written: file too large")
    assert code == 5
    assert len(list(saved.folder.iterdir())) == 6
    assert_is_step(saved.newest(), 30)


def test_the_digest_does_not_depend_on_the_order_of_keys_the_layout_or_the_kind_of_mapping():
    matrix = torch.arange(6.0).reshape(2, 3)
    first = {"a": {0: matrix, "x": (1, 2)}, "b": None}
    second = OrderedDict(b=None, a={"x": [1, 2], 0: matrix.t().contiguous().t()})
    assert state_digest(first) == state_digest(second)


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.zeros(2, 3, dtype=torch.bfloat16)},
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(6)},
        {"a": -torch.zeros(2, 3)},
        {"a": torch.zeros(2, 3, dtype=torch.int32)},
        {"b": torch.zeros(2, 3)},
        {"a": torch.zeros(2, 3), "b": None},
        {"a": [torch.zeros(2, 3)]},
    ],
)
def test_the_digest_tells_states_apart_by_value_type_shape_and_key(other):
    assert state_digest({"a": torch.zeros(2, 3)}) != state_digest(other)


def test_the_digest_tells_apart_plain_values_that_compare_equal():
    digests = {state_digest({"a": value}) for value in (1, 1.0, True, "1", [1], None, 0, "", [])}
    assert len(digests) == 9
    assert state_digest({1: 0}) != state_digest({"1": 0})
    assert state_digest({"a": ["b", "c"]}) != state_digest({"a": ["bc"]})


def test_the_digest_covers_tensors_without_dimensions_or_elements():
    assert state_digest({"a": torch.tensor(1.0)}) != state_digest({"a": torch.tensor([1.0])})
    assert state_digest({"a": torch.zeros(0, 2)}) != state_digest({"a": torch.zeros(2, 0)})


def test_the_digest_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="not set"):
        state_digest({"a": {1, 2}})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_state_that_is_not_finite_is_refused_by_its_key(value):
    state = {"optimizer": {"state": {0: {"exp_avg": torch.tensor([1.0, value])}}}, "step": torch.tensor(3)}
    with pytest.raises(NumericalError, match=r"optimizer\.state\.0\.exp_avg: holds 1 of 2 values that are not finite"):
        require_finite(state)


def test_a_finite_state_is_accepted():
    require_finite({"a": torch.zeros(3), "b": [torch.tensor([2**62]), {"c": torch.zeros(0)}], "d": float("nan")})


def test_the_digest_does_not_depend_on_strides():
    odd = torch.randn(3, 1024)[:, 5][:1]

    assert state_digest({"u": odd}) == state_digest({"u": odd.clone().reshape(1).contiguous() + 0})
    assert state_digest({"u": odd}) != state_digest({"u": odd + 1})


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_what_does_not_fit_into_memory_is_not_damaged(tmp_path, monkeypatch, error):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"step": 1})
    checkpoints.save(2, {"step": 2})
    before = sorted(path.name for path in tmp_path.iterdir())

    def fail(*arguments, **named):
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(ResourceError, match=r"step_00000002\.pt: does not fit into memory"):
        checkpoints.newest()
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_disk_that_cannot_be_read_for_a_moment_damages_nothing(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"step": 1})

    def fail(*arguments):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("hashlib.file_digest", fail)
        with pytest.raises(ResourceError, match="cannot be read: Input/output error"):
            checkpoints.newest()
    assert checkpoints.newest() == (1, {"step": 1})


@pytest.mark.parametrize("at", ["before the file", "before the manifest"])
def test_a_save_over_a_checkpoint_that_is_cut_short_loses_neither(tmp_path, monkeypatch, at):
    checkpoints = Checkpoints(tmp_path)
    old, new = {"step": 3, "values": torch.ones(4)}, {"step": 3, "values": torch.zeros(40)}
    checkpoints.save(3, old)
    write, calls = module.write_atomically, []

    def cut(path, content):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(path, content)
        if at == "before the file":
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_atomically", cut)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(3, new)
    monkeypatch.undo()

    found = Checkpoints(tmp_path).newest()
    assert found is not None
    expected = old if at == "before the file" else new
    assert torch.equal(found.state["values"], expected["values"])
    checkpoints.save(3, new)
    assert "successor" not in (tmp_path / "step_00000003.pt.json").read_text()
    assert torch.equal(checkpoints.load(3)["values"], new["values"])
