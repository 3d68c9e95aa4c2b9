import json
import platform
import subprocess

import pytest
import torch

from normlab.outputs.environment import describe_checkout, describe_environment


def git(folder, *arguments):
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", *who, "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A checkout with a committed package in `src`."""
    source = tmp_path / "checkout" / "src"
    source.mkdir(parents=True)
    (source / "code.py").write_text("x = 1\n")
    git(source.parent, "init", "--quiet")
    git(source, "add", ".")
    git(source, "commit", "--quiet", "-m", "first")
    return source


def test_the_environment_is_plain_json_and_tells_what_is_in_force():
    environment = describe_environment(torch.device("cpu"), "fp32")
    assert json.loads(json.dumps(environment)) == environment
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["versions"]["python"] == platform.python_version()
    assert environment["precision"] == "fp32"
    assert environment["device"] == "cpu"
    assert environment["threads"] == torch.get_num_threads()
    assert environment["device_name"]


def test_determinism_is_told_as_it_is_set(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    told = describe_environment(torch.device("cpu"), "fp32")["determinism"]
    assert told["cudnn_benchmark"] is True
    assert told["deterministic_algorithms"] == torch.are_deterministic_algorithms_enabled()


def test_a_clean_checkout_is_told_by_its_commit(checkout):
    assert describe_checkout(checkout) == {"commit": git(checkout, "rev-parse", "HEAD"), "dirty": False}


def test_a_changed_or_an_added_file_makes_it_dirty(checkout):
    (checkout / "code.py").write_text("x = 2\n")
    assert describe_checkout(checkout)["dirty"]
    git(checkout, "checkout", "--quiet", ".")
    (checkout.parent / "plugin.py").touch()
    assert describe_checkout(checkout)["dirty"]


def test_outside_a_checkout_there_is_no_commit(tmp_path):
    assert describe_checkout(tmp_path) is None


def test_code_installed_inside_the_checkout_of_another_project_has_no_commit(checkout):
    installed = checkout.parent / ".venv" / "normlab"
    installed.mkdir(parents=True)
    (installed / "code.py").touch()
    assert describe_checkout(installed) is None


def test_without_git_there_is_no_commit(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert describe_checkout(checkout) is None
