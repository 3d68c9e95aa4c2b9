import fcntl
import json
import multiprocessing
import os
import threading
import time

import pytest

from normlab.errors import BusyError, ResourceError
from normlab.outputs.run_dir import RunDir, Status

# A server that has imported everything once, so that a child starts in milliseconds.
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["normlab.outputs.run_dir", "normlab.outputs.checkpoints"])


@pytest.fixture
def run(tmp_path):
    run = RunDir(tmp_path / "study" / "run")
    run.create()
    return run


def hold(path, held):
    with RunDir(path).lock():
        held.set()
        time.sleep(60)


@pytest.fixture
def holder(run):
    """A process that holds the lock of the run."""
    held = CHILDREN.Event()
    process = CHILDREN.Process(target=hold, args=(run.path, held), daemon=True)
    process.start()
    assert held.wait(30)
    yield process
    process.kill()
    process.join()


def test_a_created_folder_is_no_run_until_it_has_its_configuration(run):
    assert not run.exists()
    run.config.write_text("seed: 1\n")
    assert run.exists()
    assert run.config.read_text() == "seed: 1\n"


def test_creating_twice_keeps_what_is_there(run):
    run.config.write_text("seed: 1\n")
    run.create()
    assert run.exists()


def test_a_folder_that_cannot_be_made_is_a_resource_error_that_names_it(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=f"error: {tmp_path}/file/run: cannot be written: not a directory"):
        RunDir(tmp_path / "file" / "run").create()


def test_a_second_process_is_told_who_holds_the_folder_within_two_seconds(run, holder):
    began = time.monotonic()
    with (
        pytest.raises(BusyError, match=rf"{run.path}: is in use by process {holder.pid} on .+ since 2") as caught,
        run.lock(),
    ):
        pass
    assert time.monotonic() - began < 2
    assert caught.value.exit_code == 7


def test_the_lock_is_free_after_the_holder_is_killed(run, holder):
    assert run.is_locked()
    holder.kill()
    holder.join()
    assert not run.is_locked()
    with run.lock():
        assert json.loads((run.path / ".lock.json").read_text())["pid"] == os.getpid()


def test_the_lock_excludes_within_one_process_too_and_ends_with_its_block(run):
    with run.lock(), pytest.raises(BusyError), RunDir(run.path).lock():
        pass
    with run.lock():
        pass
    assert not (run.path / ".lock.json").exists()


def test_the_lock_ends_with_a_block_that_fails(run):
    with pytest.raises(KeyError), run.lock():
        raise KeyError
    assert not run.is_locked()


def test_asking_whether_a_folder_is_locked_leaves_no_trace(run, tmp_path):
    assert not run.is_locked()
    assert not RunDir(tmp_path / "nowhere").is_locked()
    assert not (run.path / ".lock").exists()


@pytest.fixture
def asker(run):
    """A file that somebody who asks whether the run is alive has locked, which takes them a moment."""
    with (run.path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield file


@pytest.mark.usefixtures("asker")
def test_two_who_ask_at_once_do_not_take_each_other_for_a_run(run):
    assert not run.is_locked()


def test_somebody_who_asks_keeps_no_run_out(run, asker):
    threading.Timer(0.1, fcntl.flock, (asker, fcntl.LOCK_UN)).start()
    with run.lock():
        assert run.is_locked()


def test_locking_sweeps_what_a_killed_process_left(run):
    stray = run.samples / "step_00000001.png.00ff.partial"
    stray.touch()
    with run.lock():
        assert not stray.exists()


def test_setting_aside_renames_to_the_first_free_name_and_loses_nothing(run):
    paths = []
    for seed in range(2):
        run.create()
        run.config.write_text(f"seed: {seed}\n")
        with run.lock():
            paths.append(run.set_aside())
    assert [path.name for path in paths] == ["run.old-1", "run.old-2"]
    assert [RunDir(path).config.read_text() for path in paths] == ["seed: 0\n", "seed: 1\n"]
    assert not run.path.exists()


def test_a_status_comes_back_as_it_was_written_with_the_time_of_writing(run):
    status = Status(state="failed", step=7, epoch=0.5, images_seen=64, exit_code=5, error="no room", resumes=2)
    before = time.time()
    run.write_status(status)
    back = run.read_status()
    assert before <= back.updated <= time.time()
    assert Status(**{**vars(back), "updated": 0.0}) == status


@pytest.mark.parametrize("text", ["", '{"state": "run', "[1]", "{}", "\x00\x00"])
def test_a_status_that_is_missing_or_half_written_is_none(run, text):
    assert run.read_status() is None
    run.status.write_text(text)
    assert run.read_status() is None


def test_a_status_of_a_newer_version_is_read_without_what_it_added(run):
    run.status.write_text('{"state": "done", "step": 3, "mood": "good"}')
    assert run.read_status() == Status(state="done", step=3)


def test_the_samples_of_all_steps_sort_by_name(run):
    assert [run.sample(step).name for step in (5, 120_000)] == ["step_00000005.png", "step_00120000.png"]
