import errno
import os

import pytest

from normlab.errors import ResourceError
from normlab.outputs.atomic import replacing, sweep, unwritable, write_atomically


def test_the_new_content_takes_the_place_of_the_old_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "value"
    path.write_bytes(b"a longer old content")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["value"]


def test_a_block_that_fails_leaves_the_old_file_and_no_trace(tmp_path):
    path = tmp_path / "value"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write_half(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["value"]


def write_half(path):
    with replacing(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt


def test_until_the_block_ends_readers_see_the_old_file(tmp_path):
    path = tmp_path / "value"
    path.write_bytes(b"old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_two_writers_of_one_file_do_not_share_a_temporary_file(tmp_path):
    path = tmp_path / "value"
    with replacing(path) as first:
        first.write(b"first")
        write_atomically(path, b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"


def test_a_folder_that_is_missing_is_a_resource_error_that_names_the_path(tmp_path):
    path = tmp_path / "missing" / "value"
    with pytest.raises(ResourceError) as caught:
        write_atomically(path, b"")
    assert str(caught.value) == (
        f"error: {path}: cannot be written: no such file or directory — check the path and its permissions"
    )


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_with_the_room_there_is(tmp_path, number):
    error = unwritable(tmp_path / "value", OSError(number, os.strerror(number)))
    assert "MB free) — make room" in str(error)


def test_sweeping_removes_the_partial_files_of_killed_writers_and_nothing_else(tmp_path):
    (tmp_path / "samples").mkdir()
    for name in ("a.json.0011.partial", "samples/b.png.2233.partial", "a.json", "samples/b.png"):
        (tmp_path / name).touch()
    assert sweep(tmp_path) == 2
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["a.json", "b.png"]
