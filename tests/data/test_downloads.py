"""Downloads against a server of our own: resumed, checked, whole or absent."""

import errno
import hashlib
import multiprocessing
import os
import tarfile
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from normlab.data import downloads, originals
from normlab.data.downloads import DownloadFailed, download, md5_of
from normlab.data.originals import Archive, fetch_archive
from normlab.errors import DataError, ResourceError

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves one file at every path but /missing; the test sets how it behaves and reads what was asked of it."""

    content = CONTENT
    cuts: list[int]  # after how many bytes of the file the coming answers break off
    ranges = True  # whether it knows partial content
    pause = 0.0  # seconds before an answer
    silence = 0.0  # seconds before the end of an answer that breaks off
    starts: list[int]  # from which byte on each answer sent the file

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        time.sleep(server.pause)
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.ranges else 0
        if "missing" in self.path or start >= len(server.content):
            self.send_error(404 if "missing" in self.path else 416)
            return
        server.starts.append(start)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Length", str(len(server.content) - start))
        self.end_headers()
        end = server.cuts.pop(0) if server.cuts else len(server.content)
        self.wfile.write(server.content[start:end])
        if end < len(server.content):
            time.sleep(server.silence)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.cuts, server.starts = [], []
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "file.bin"


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


def test_a_file_arrives_whole_and_alone_without_a_word(
    server: Server, path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    download([server.address], path, MD5)
    assert path.read_bytes() == CONTENT
    assert names(path) == ["file.bin"]
    assert capfd.readouterr() == ("", "")  # a bar is for a terminal


def test_a_connection_that_is_cut_is_taken_up_where_it_broke_off(server: Server, path: Path) -> None:
    server.cuts = [100_000, 250_000]
    download([server.address], path, MD5)
    assert path.read_bytes() == CONTENT
    assert server.starts == [0, 100_000, 250_000]


def test_what_an_earlier_process_left_is_gone_on_with(server: Server, path: Path) -> None:
    path.parent.mkdir()
    (path.parent / "file.bin.partial").write_bytes(CONTENT[:1234])
    download([server.address], path, MD5)
    assert path.read_bytes() == CONTENT
    assert server.starts == [1234]


def fetch_file(address: str, path: Path) -> None:
    download([address], path, MD5)


def test_a_killed_download_is_gone_on_with(server: Server, path: Path) -> None:
    server.cuts, server.silence = [200_000], 2
    child = multiprocessing.get_context("fork").Process(target=fetch_file, args=(server.address, path))
    child.start()
    partial, deadline = path.parent / "file.bin.partial", time.monotonic() + 10
    while (not partial.is_file() or partial.stat().st_size < 100_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.kill()
    child.join()
    assert not path.exists()
    download([server.address], path, MD5)
    assert path.read_bytes() == CONTENT
    assert server.starts[0] == 0
    assert server.starts[1] >= 100_000


def test_a_whole_file_that_was_never_renamed_is_not_fetched_again(server: Server, path: Path) -> None:
    path.parent.mkdir()
    (path.parent / "file.bin.partial").write_bytes(CONTENT)
    download([server.address], path, MD5)
    assert (path.read_bytes(), server.starts) == (CONTENT, [])


@pytest.mark.parametrize("left", [b"\0" * 1234, CONTENT + b"more"], ids=["other bytes", "longer than the file"])
def test_a_part_that_is_not_of_this_file_is_thrown_away(server: Server, path: Path, left: bytes) -> None:
    path.parent.mkdir()
    (path.parent / "file.bin.partial").write_bytes(left)
    download([server.address], path, MD5)
    assert path.read_bytes() == CONTENT
    assert server.starts[-1] == 0


def test_a_server_that_knows_no_ranges_sends_the_file_from_its_beginning(server: Server, path: Path) -> None:
    server.ranges, server.cuts = False, [100_000]
    download([server.address], path, MD5)
    assert path.read_bytes() == CONTENT
    assert server.starts == [0, 0]


def test_a_wrong_md5_is_refused_and_nothing_is_kept(server: Server, path: Path) -> None:
    server.content = b"<html>Quota exceeded</html>"
    found = hashlib.md5(server.content).hexdigest()
    with pytest.raises(DownloadFailed) as caught:
        download([server.address], path, MD5)
    assert str(caught.value) == f"fetching failed: {server.address}: its md5 is {found}, not {MD5}"
    assert names(path) == []


def test_a_file_that_is_not_there_is_refused_and_the_next_address_asked(server: Server, path: Path) -> None:
    missing = server.address.replace("file", "missing")
    with pytest.raises(DownloadFailed, match=r"missing\.bin: HTTP Error 404: Not Found"):
        download([missing], path, MD5)
    download([missing, server.address], path, MD5)
    assert path.read_bytes() == CONTENT


def test_no_network_is_one_line(path: Path) -> None:
    with pytest.raises(DownloadFailed, match=r"^fetching failed: http://127\.0\.0\.1:9/file\.bin: .*refused$"):
        download(["http://127.0.0.1:9/file.bin"], path, MD5)


def test_a_server_that_says_nothing_is_not_waited_for(
    server: Server, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "SECONDS_WITHOUT_AN_ANSWER", 0.05)
    server.pause = 0.5
    with pytest.raises(DownloadFailed, match="timed out"):
        download([server.address], path, MD5)


def test_a_server_that_always_cuts_is_given_up_and_what_came_is_kept(server: Server, path: Path) -> None:
    server.cuts = list(range(1000, 1000 * 100, 1000))
    with pytest.raises(DownloadFailed, match="the connection was cut time and again"):
        download([server.address], path, MD5)
    assert (path.parent / "file.bin.partial").read_bytes() == CONTENT[:10_000]
    assert not path.exists()


def test_a_full_disk_is_a_matter_of_resources(server: Server, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("normlab.data.downloads.os.fsync", full)
    with pytest.raises(ResourceError, match="cannot be written: no space left on device"):
        download([server.address], path, MD5)
    assert not path.exists()


def test_a_disk_without_room_is_found_before_the_first_byte(
    server: Server, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = downloads.shutil.disk_usage("/")._replace(free=100_000)
    monkeypatch.setattr("normlab.data.downloads.shutil.disk_usage", lambda _: usage)
    with pytest.raises(ResourceError, match="needs 0 MB more, but there are 0 MB free — make room"):
        download([server.address], path, MD5)
    assert names(path) == []


def test_a_folder_that_cannot_be_written_is_a_matter_of_resources(server: Server, path: Path) -> None:
    path.parent.write_text("a file stands where the folder should be")
    with pytest.raises(ResourceError, match="cannot be written: file exists"):
        download([server.address], path, MD5)
    archive = Archive(server.address, MD5, "folder", {"a": ""})
    with pytest.raises(ResourceError, match="cannot be written: file exists"):
        fetch_archive(archive, path.parent, allowed=True)


@pytest.fixture
def archive(server: Server, tmp_path: Path) -> Archive:
    """An archive of two files on the server."""
    folder = tmp_path / "made" / "folder"
    folder.mkdir(parents=True)
    for name in ("a", "b"):
        (folder / name).write_bytes(name.encode() * 1000)
    with tarfile.open(tmp_path / "file.bin", "w:gz") as content:
        content.add(folder, "folder")
    server.content = (tmp_path / "file.bin").read_bytes()
    files = {name: md5_of(folder / name) for name in ("a", "b")}
    return Archive(server.address, md5_of(tmp_path / "file.bin"), "folder", files)


def contents(root: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((root / "folder").iterdir())}


WHOLE = {"a": b"a" * 1000, "b": b"b" * 1000}


def fetch(archive: Archive, root: str) -> None:
    fetch_archive(archive, Path(root), allowed=True)


def test_two_processes_at_once_fetch_once(server: Server, archive: Archive, tmp_path: Path) -> None:
    server.pause = 0.3
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=fetch, args=(archive, str(tmp_path / "data"))) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert server.starts == [0]
    assert contents(tmp_path / "data") == WHOLE


@pytest.mark.parametrize("left", [["a"], []], ids=["a file is missing", "the folder is empty"])
def test_a_half_unpacked_archive_is_completed_and_other_files_are_left_alone(
    server: Server, archive: Archive, tmp_path: Path, left: list[str]
) -> None:
    folder = tmp_path / "data" / "folder"
    folder.mkdir(parents=True)
    (folder / "mine").write_bytes(b"mine")
    for name in left:
        (folder / name).write_bytes(WHOLE[name])
    fetch_archive(archive, tmp_path / "data", allowed=True)
    assert contents(tmp_path / "data") == {**WHOLE, "mine": b"mine"}


def kill_while_moving(archive: Archive, root: Path) -> None:
    originals.move_into = lambda *_: os._exit(9)
    fetch_archive(archive, root, allowed=True)


def test_a_kill_while_unpacking_leaves_nothing_that_is_trusted(
    server: Server, archive: Archive, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    child = multiprocessing.get_context("fork").Process(target=kill_while_moving, args=(archive, root))
    child.start()
    child.join()
    assert child.exitcode == 9
    assert (root / ".folder.partial").is_dir()
    assert not (root / "folder").exists()
    fetch_archive(archive, root, allowed=False)  # the archive is there, so this needs no network
    assert contents(root) == WHOLE
    assert not (root / ".folder.partial").exists()


def test_a_damaged_archive_is_fetched_again_or_named(server: Server, archive: Archive, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (root / "file.bin").write_bytes(server.content[:100])
    with pytest.raises(DataError, match=r"lacks a, b, and .*file\.bin is damaged: its md5 is not"):
        fetch_archive(archive, root, allowed=False)
    fetch_archive(archive, root, allowed=True)
    assert contents(root) == WHOLE


def test_an_archive_whose_members_point_elsewhere_writes_nothing_there(server: Server, tmp_path: Path) -> None:
    packed = tmp_path / "data" / "file.bin"
    packed.parent.mkdir()
    with tarfile.open(packed, "w:gz") as content:
        for name in ("../escaped", "folder/a"):
            (tmp_path / "x").write_bytes(b"x")
            content.add(tmp_path / "x", name)
        link = tarfile.TarInfo("folder/b")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        content.addfile(link)
    archive = Archive(server.address, md5_of(packed), "folder", {"a": "", "b": "", "../../escaped": ""})
    with pytest.raises(DataError, match="lacks b"):
        fetch_archive(archive, tmp_path / "data", allowed=False)
    with pytest.raises(DataError, match="lacks c"):
        fetch_archive(Archive(server.address, md5_of(packed), "other", {"c": ""}), tmp_path / "data", allowed=False)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data", "x"]
