"""A process that takes steps of a run when it is asked to."""

import argparse
import os
from pathlib import Path

import torch

from benchmarks.runs import run_settings
from benchmarks.workers import answers_alone, windows
from normlab import assemble


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    answers = answers_alone(Path(os.devnull))
    settings = run_settings(options.changes)
    device = assemble.choose_device(settings.device)
    dataset = assemble.open_dataset(settings)
    step = assemble.build_step(settings, dataset, assemble.open_batches(settings, dataset, device), device)
    for steps in windows(answers):
        for _ in range(steps):
            step.take()
        if device.type == "cuda":
            torch.cuda.synchronize()


if __name__ == "__main__":
    main()
