"""What a run ran on: enough to tell later why two runs differ."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from normlab.outputs.machine import cpu_name

_PACKAGES = ("normlab", "torchvision", "torchmetrics", "torch-fidelity", "numpy", "hydra-core")


def describe_environment(device: torch.device, precision: str) -> dict[str, Any]:
    """Return the versions, the code's commit, the machine and the numerical settings in force, as plain values."""
    return {
        "versions": versions(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "git": describe_checkout(Path(__file__).parent),
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu": cpu_name(),
        "device": str(device),
        "device_name": name_of(device),
        "threads": torch.get_num_threads(),
        "precision": precision,
        "determinism": {
            "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
            "cudnn_deterministic": torch.backends.cudnn.deterministic,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
            "matmul_precision": torch.backends.cuda.matmul.fp32_precision,
            # The stubs do not know this one; torch sets it at import.
            "convolution_precision": torch.backends.cudnn.conv.fp32_precision,  # pyright: ignore[reportAttributeAccessIssue]
        },
    }


def name_of(device: torch.device) -> str:
    """Return what a device is called by its maker."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def describe_checkout(folder: Path) -> dict[str, Any] | None:
    """Return the commit of the git checkout that a folder of code belongs to, and whether anything in it was changed.

    None without git, outside a checkout, and where the code is only installed inside someone else's checkout.
    """
    if not _git(folder, "ls-files", "."):
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain")
    return None if commit is None else {"commit": commit, "dirty": changes != ""}


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what a git command prints, None if it fails; no locks are taken, as the code may be in use."""
    command = ["git", "-C", str(folder), "--no-optional-locks", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that a run computes with; None of one that is not installed."""
    # What torch says of itself tells the build too, as in 2.11.0+cu130.
    own = {"python": platform.python_version(), "torch": str(torch.__version__)}
    return own | {package: _version(package) for package in _PACKAGES}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
