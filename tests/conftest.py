"""Shared fixtures: one thread, a cache and an outputs folder of each test's own, and the command line in a child."""

import importlib
import logging
import os
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from normlab import cli, composition
from normlab.data.digits import digits
from normlab.evaluation import evaluator
from normlab.outputs.plots import SpectraPicture

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


class Result(NamedTuple):
    """How a command ended: its exit code (-9 for a child killed by signal 9) and what it wrote."""

    exit_code: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session", autouse=True)
def _warm() -> None:
    """Do once what every command line that is forked from here would do; not where tests are only handed out."""
    for name in (
        *("normlab.launching", "normlab.verbs.train", "normlab.verbs.verify"),
        # What they import when it is needed; torch's compiler is what the first optimizer brings.
        *("torch._dynamo", "torch.utils.tensorboard", "torchmetrics.image.fid", "torchmetrics.image.inception"),
    ):
        importlib.import_module(name)
    # What they would all make for themselves: Hydra's grammar, and the digits at the size that networks take.
    composition.compose([])
    digits()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what is packed and fitted out of the user's cache, and share it between the tests of a process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


# Drawing takes longer than a small run, and all of them draw; what is drawn has tests of its own.
_draw = SpectraPicture.draw
SpectraPicture.draw = lambda self, rows: None


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs draw their spectra."""
    monkeypatch.setattr(SpectraPicture, "draw", _draw)


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for runs, which is $NORMLAB_OUTPUTS and not the current folder."""
    folder = tmp_path / "outputs"
    monkeypatch.setenv("NORMLAB_OUTPUTS", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights of torch-fidelity's Inception: 96 MB, so once a session.

    Weights as He et al. 2015 draw them keep the size of what passes through: those that torch draws itself let it fade,
    and images would then hardly differ in their features, nor in their classes.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    folder = tmp_path_factory.mktemp("weights")
    torch.save({}, folder / "empty.pth")
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = FeatureExtractorInceptionV3("random", ["2048"], str(folder / "empty.pth"))
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        torch.nn.init.normal_(network.fc.weight, std=0.5)
    torch.save(network.state_dict(), folder / "random.pth")
    return folder / "random.pth"


Command = Callable[..., Result]


@pytest.fixture
def normlab(tmp_path: Path) -> Command:
    """Run a command line of normlab in a forked child, which has torch imported already, and return how it ended."""

    def command(*words: str) -> Result:
        child = start(tmp_path, *words)
        _, status = os.waitpid(child, 0)
        return result(tmp_path, status)

    return command


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function from a command to the run that it trains, once for all tests: they only look at it."""

    @cache
    def train(*words: str) -> Path:
        outputs = tmp_path_factory.mktemp("trained")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NORMLAB_OUTPUTS", str(outputs))
            ended = result(outputs, os.waitpid(start(outputs, *words), 0)[1])
        assert ended.exit_code == 0, ended.stderr
        (config,) = outputs.glob("*/*/config.yaml")
        return config.parent

    return train


@pytest.fixture
def copy_of(trained: Callable[..., Path], outputs: Path) -> Callable[..., Path]:
    """Return a function from a command to a copy of the run that it trains, where the same command goes on with it."""

    def place(*words: str) -> Path:
        run = trained(*words)
        return shutil.copytree(run, outputs / run.parent.name / run.name)

    return place


def start(folder: Path, *words: str) -> int:
    """Start a command line of normlab in a forked child and return its process id."""
    child = os.fork()
    if child:
        return child
    exit_code = 1
    try:
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        with os.fdopen(1, "w", closefd=False) as stdout, os.fdopen(2, "w", closefd=False) as stderr:
            import sys

            sys.stdout, sys.stderr = stdout, stderr
            # As in a process of its own: the log goes where no test has put it, and Ctrl-C is heard.
            logging.getLogger().handlers.clear()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            # Of the 50 batches for the statistics of a generator a few are enough: no claim here is on their error.
            pytest.MonkeyPatch().setattr(evaluator, "STATISTICS_BATCHES", 3)
            exit_code = cli.run(list(words))
    except BaseException:
        (folder / "stderr").write_text(traceback.format_exc())
    finally:
        os._exit(exit_code)


def result(folder: Path, status: int) -> Result:
    code = os.waitstatus_to_exitcode(status)
    return Result(code, (folder / "stdout").read_text(), (folder / "stderr").read_text())


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Have a shell script stand in for the processes that train."""

    def place(*lines: str) -> None:
        script = tmp_path / "python"
        script.write_text("\n".join(["#!/bin/sh", *lines]))
        script.chmod(0o755)
        monkeypatch.setattr("sys.executable", str(script))

    return place
