"""What the command line makes of signals at moments when no verb listens."""

import subprocess
import sys
from pathlib import Path

INTERRUPTED_WITHIN_AN_IMPORT = """
import importlib
from normlab import cli


def load(name):
    exec("import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(10)")


importlib.import_module = load
cli.main(["status"])
"""


def test_an_interrupt_within_an_import_has_its_exit_code(tmp_path: Path) -> None:
    # By -m, as with `python -m normlab`: only there does Python look for what an `exec` has left behind.
    (tmp_path / "interrupted.py").write_text(INTERRUPTED_WITHIN_AN_IMPORT)
    ended = subprocess.run([sys.executable, "-m", "interrupted"], cwd=tmp_path, capture_output=True, text=True)

    assert (ended.returncode, ended.stderr) == (130, "interrupted\n")
