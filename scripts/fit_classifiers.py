"""Fit the classifiers that normlab ships, at 32 pixels: `python scripts/fit_classifiers.py digits mnist`.

What is not embedded is read from $NORMLAB_DATA (default: data), and never downloaded. Each new file replaces the
shipped one of its data set; the accuracy is printed.
"""

import argparse
import os
import time

import torch

from normlab.data.sources import DATASETS
from normlab.evaluation.classifier import SHIPPED, fit_classifier, save_classifier, shipped_classifier, shipped_key


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("datasets", nargs="+", choices=DATASETS.names())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.datasets:
        source = {"root": os.environ.get("NORMLAB_DATA", "data"), "download": False}
        known = DATASETS.parameters(name)
        dataset = DATASETS.build(name, {key: value for key, value in source.items() if key in known})
        started = time.perf_counter()
        fitted = fit_classifier(dataset, arguments.seed)
        replaced = shipped_classifier(name, dataset.image_shape)
        if replaced is not None:
            replaced.unlink()
        path = save_classifier(fitted, dataset, SHIPPED, shipped_key(name, dataset.image_shape))
        seconds = time.perf_counter() - started
        print(f"{path.name}: {fitted.held_out_accuracy:.2%} of held-out images, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
