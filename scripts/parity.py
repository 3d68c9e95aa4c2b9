"""Train the same small SNGAN with torch-mimicry and with normlab, on the same images, and score both alike.

    pip install --no-deps torch-mimicry && pip install scikit-image    # in an environment of its own, beside normlab
    python scripts/parity.py IMAGES [--seeds 0 1 2]

torch-mimicry brings its networks, losses, updates and trainer; normlab the order of the images and the scorer. Both
train the ResNet of Miyato et al. 2018 at 32 px with spectral normalization in the discriminator; torch-mimicry once
with its networks as they are, and once with them mended where they depart from the authors' code. First normlab's and
the mended ones are given the same weights, and must make the same scores and images. Then all train per seed, and the
ratios of the Fréchet distances, with their intervals, are held against the margin. A finished training is not
repeated: its row stands in `--out`. Exit codes: 0, 1 if the networks differ or an interval leaves the margin.
"""

import argparse
import importlib
import json
import math
import os
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, Literal

import tensorboard.compat
import torch
import torch.nn.functional as F
from scipy.stats import ttest_ind
from torch import Tensor, nn
from tqdm import tqdm

from normlab import assemble
from normlab.composition import configure
from normlab.data.batches import RealBatches
from normlab.networks.network import ImageSpec
from normlab.outputs.grids import save_grid
from normlab.randomness import stream

MARGIN = 1.25  # the interval of a ratio has to lie between 1 / MARGIN and MARGIN
CPU = torch.device("cpu")
Side = Literal["normlab", "torch-mimicry", "mended"]
SIDES: tuple[Side, ...] = ("normlab", "torch-mimicry", "mended")


def words(options: argparse.Namespace, seed: int) -> list[str]:
    """Return normlab's command line; torch-mimicry's arguments are read from the configuration that it composes."""
    return [
        "experiment=miyato_resnet",
        *("dataset=image_folder", f"dataset.root={options.images}"),
        f"architecture.width={options.width}",
        "normalization.discriminator.advance=forward",  # as torch-mimicry has it: before every pass in training
        f"train.until={options.steps} steps",
        f"train.discriminator_steps={options.discriminator_steps}",
        *(f"every.{kind}={options.steps} steps" for kind in ("sample", "checkpoint", "evaluate")),
        *("evaluation.features=classifier", f"evaluation.samples={options.samples}"),
        *(f"seed={seed}", "device=cpu"),
    ]


# --- torch-mimicry ---------------------------------------------------------------------------------------------------


class Absent(types.ModuleType):
    """Stands for a module that torch-mimicry imports and that nothing here uses."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(name)


def mimicry() -> Any:
    """Import torch-mimicry, whose TensorFlow metrics and old torch modules are stubbed while it is imported."""
    assert tensorboard.compat.tf.io  # which looks now whether there is TensorFlow
    absent = ("tensorflow", "torch._six")
    sys.modules.update({name: Absent(name) for name in absent})
    package = importlib.import_module("torch_mimicry")
    for name in absent:
        del sys.modules[name]
    return package


def mimicry_networks(width: int) -> tuple[Any, Any]:
    """Return torch-mimicry's generator and discriminator for 32 px, initialised from the global random state."""
    nets = mimicry().nets.sngan
    return nets.SNGANGenerator32(ngf=2 * width), nets.SNGANDiscriminator32(ndf=width)


def mended(networks: tuple[Any, Any]) -> tuple[Any, Any]:
    """Make torch-mimicry's networks those of the authors' code, from which they depart in two things.

    They enlarge maps by bilinear interpolation where the authors repeat pixels, and their ReLU works in place, so that
    shortcuts of the discriminator see what ReLU made of their input.
    """
    generator, discriminator = networks
    for block in generator.children():
        if hasattr(block, "_upsample_conv"):
            block._upsample_conv = _repeating
    for module in discriminator.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return generator, discriminator


def _repeating(input: Tensor, convolution: nn.Module) -> Tensor:
    return convolution(F.interpolate(input, scale_factor=2, mode="nearest"))


class Loader:
    """Real images in normlab's order as what torch-mimicry's trainer iterates over."""

    def __init__(self, real: RealBatches) -> None:
        self.real = real
        self.batch_size = real.batch_size

    def __len__(self) -> int:
        return len(self.real.images) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        position = 0
        while True:
            yield self.real.batch(position), torch.zeros(self.batch_size)
            position += self.batch_size


def train_mimicry(options: argparse.Namespace, seed: int, folder: Path, mend: bool) -> dict[str, Any]:
    """Train with torch-mimicry's trainer and return the scores of its generator."""
    config, _ = configure(words(options, seed))
    materials = assemble.gather(config, CPU)
    assert materials.scorer is not None
    torch.manual_seed(seed)
    networks = mimicry_networks(options.width)
    generator, discriminator = mended(networks) if mend else networks
    rates = [config.optimizer.of(name).params for name in ("generator", "discriminator")]
    optimizers = [
        torch.optim.Adam(network.parameters(), lr=adam["lr"], betas=tuple(adam["betas"]))
        for network, adam in zip((generator, discriminator), rates, strict=True)
    ]
    trainer = mimicry().training.Trainer(
        netD=discriminator,
        netG=generator,
        optG=optimizers[0],
        optD=optimizers[1],
        dataloader=Loader(materials.real),
        num_steps=options.steps,
        n_dis=options.discriminator_steps,
        lr_decay="linear",
        device=CPU,
        log_dir=str(folder / "log"),
        print_steps=options.steps,
        vis_steps=options.steps,
        save_steps=options.steps,
    )
    trainer.train()
    generator.latent_size = generator.nz
    with torch.no_grad():
        save_grid(
            generator.eval()(torch.randn(64, generator.nz, generator=stream(seed, "parity"))), folder / "grid.png"
        )
    scores = materials.scorer(generator, lambda: False)
    assert scores is not None
    return dict(scores)


# --- normlab ---------------------------------------------------------------------------------------------------------


def train_normlab(options: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    """Train by the command line and return the last row of scores."""
    environment = {**os.environ, "NORMLAB_OUTPUTS": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "normlab", "train", *words(options, seed)]
    with (folder / "log.txt").open("wb") as log:
        subprocess.run(command, env=environment, stdout=log, stderr=log, check=True)
    (rows,) = folder.glob("*/*/evaluations.jsonl")
    return dict(json.loads(rows.read_text().splitlines()[-1]))


# --- The same weights ------------------------------------------------------------------------------------------------


def weight_layers(network: nn.Module) -> list[Any]:
    return [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def same_weights(width: int) -> dict[str, float]:
    """Give normlab's and the mended networks the same weights; return how far apart their scores and images are.

    The largest difference, relative to the largest score and pixel.
    """
    torch.manual_seed(0)
    theirs = mended(mimicry_networks(width))
    power_iterations = 500  # until sigma has converged
    config, _ = configure(
        [
            *("experiment=miyato_resnet", f"architecture.width={width}"),
            f"normalization.discriminator.power_iterations={power_iterations}",
        ]
    )
    image = ImageSpec(3, 32, 32)
    ours = assemble.build_generator(config, image), assemble.build_discriminator(config, image)
    with torch.no_grad():
        for our_network, their_network in zip(ours, theirs, strict=True):
            for our_layer, their_layer in zip(weight_layers(our_network), weight_layers(their_network), strict=True):
                their_weight = getattr(their_layer, "weight_orig", their_layer.weight)
                our_layer.weight.copy_(their_weight)
                their_layer.bias.zero_()
                if our_layer.bias is not None:
                    our_layer.bias.zero_()
        for _, layer in ours[1].layers():
            assert layer.reparametrization is not None
            layer.reparametrization.reset(layer.layer.weight, torch.Generator().manual_seed(0))
        for layer in weight_layers(theirs[1]):
            for hook in layer._forward_pre_hooks.values():
                hook.n_power_iterations = power_iterations
        latents, images = torch.randn(16, 128), torch.rand(16, 3, 32, 32) * 2 - 1
        pairs = {"images": [pair[0](latents) for pair in (ours, theirs)]}
        pairs["scores"] = [ours[1](images, ours[1].weights_of_pass()), theirs[1](images).flatten()]
    return {name: float((a - b).abs().max() / b.abs().max()) for name, (a, b) in pairs.items()}


# --- Comparing -------------------------------------------------------------------------------------------------------


def trained(options: argparse.Namespace, side: Side, seed: int) -> dict[str, Any]:
    """Return the scores of one training, made now or before."""
    torch.set_num_threads(1)
    folder: Path = options.out / f"{side}-{seed}"
    row = folder / "row.json"
    if not row.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        if side == "normlab":
            scores = train_normlab(options, seed, folder)
        else:
            scores = train_mimicry(options, seed, folder, mend=side == "mended")
        seconds = time.perf_counter() - began
        row.write_text(json.dumps({"side": side, "seed": seed, "seconds": seconds, **scores}) + "\n")
    return dict(json.loads(row.read_text()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="a folder of images, as dataset=image_folder reads it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1000, help="updates of the generator")
    parser.add_argument("--discriminator-steps", type=int, default=1)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, of one thread each")
    parser.add_argument("--out", type=Path, default=Path("outputs/.parity"))
    options = parser.parse_args()
    options.out, options.images = options.out.resolve(), options.images.resolve()

    differences = same_weights(options.width)
    print("with the same weights: " + ", ".join(f"{name} differ by {gap:.1e}" for name, gap in differences.items()))
    if max(differences.values()) > 1e-4:
        return 1
    wanted: list[tuple[Side, int]] = [(side, seed) for seed in options.seeds for side in SIDES]
    with ProcessPoolExecutor(options.jobs) as pool:
        futures = [pool.submit(trained, options, side, seed) for side, seed in wanted]
        rows = [future.result() for future in tqdm(futures, desc="trainings", disable=None)]
    print("seed  " + "  ".join(f"{side:>14}" for side in SIDES))
    distances = {side: [row["frechet_distance"] for row in rows if row["side"] == side] for side in SIDES}
    for place, seed in enumerate(options.seeds):
        print(f"{seed:<4}  " + "  ".join(f"{distances[side][place]:14.2f}" for side in SIDES))
    print(rows[0]["protocol"])
    within = [compare(distances["normlab"], distances[other], other) for other in SIDES[1:]]
    return 0 if all(within) else 1


def compare(ours: list[float], theirs: list[float], name: str) -> bool:
    """Print the ratio of two sides' distances with its interval, and return whether it lies within the margin."""
    logs = [[math.log(distance) for distance in distances] for distances in (ours, theirs)]
    interval = ttest_ind(*logs, equal_var=False).confidence_interval(0.95)
    means = [sum(values) / len(values) for values in logs]
    ratio, low, high = (math.exp(value) for value in (means[0] - means[1], interval.low, interval.high))
    print(f"normlab / {name}: {ratio:.3f}  [{low:.3f}, {high:.3f}]  margin [{1 / MARGIN:.3f}, {MARGIN:.3f}]")
    return low > 1 / MARGIN and high < MARGIN


if __name__ == "__main__":
    sys.exit(main())
