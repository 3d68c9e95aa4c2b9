"""What a machine calls its parts, asked without torch."""

import platform
import subprocess
from pathlib import Path


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def of_gpus(what: str, gpu: str | None = None) -> list[str]:
    """Return what `nvidia-smi` says of one GPU or all, such as their `name` or `uuid`; nothing where there is none."""
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader", *([] if gpu is None else ["-i", gpu])]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return said.splitlines()
