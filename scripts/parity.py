"""Train the same small SNGAN with torch-mimicry and with normlab, on the same images, and score both alike.

    pip install --no-deps torch-mimicry    # in an environment of its own, beside normlab
    python scripts/parity.py IMAGES [--seeds 0 1 2] [--sides normlab mended torch-mimicry]

torch-mimicry brings its networks, losses, updates and trainer; normlab the first weights, the latents, the order of the
images and the scorer. Both train the ResNet of Miyato et al. 2018 at 32 px with spectral normalization in the
discriminator; torch-mimicry once with its networks mended where they depart from the authors' code, and once with them
as they are. First normlab's and the mended ones must make the same scores and images, and lose the same over the first
updates. Then all train per seed, and the ratios of the Fréchet distances, with their intervals, are held against the
margin. A finished training is not repeated: its row stands in `--out`. Exit codes: 0, 1 if the networks or their first
updates differ or the interval of the mended ones leaves the margin.
"""

import argparse
import importlib
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, Literal

import tensorboard.compat
import torch
import torch.nn.functional as F
from scipy.stats import ttest_1samp
from torch import Tensor, nn
from tqdm import tqdm

from normlab import assemble
from normlab.composition import configure
from normlab.data.batches import RealBatches
from normlab.networks.network import ImageSpec
from normlab.normalizations.spectral import SpectralNorm
from normlab.outputs.grids import save_grid
from normlab.randomness import stream
from normlab.training.state import TrainState

MARGIN = 1.25  # the interval of a ratio has to lie between 1 / MARGIN and MARGIN
CPU = torch.device("cpu")
Side = Literal["normlab", "torch-mimicry", "mended"]
SIDES: tuple[Side, ...] = ("normlab", "mended", "torch-mimicry")
FIRST_UPDATES = 20  # over which losses have to agree; rounding grows in a GAN, so they cannot for ever


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
    """Import torch-mimicry; what its metrics and readers want, and what torch has no more, is stubbed meanwhile."""
    assert tensorboard.compat.tf.io  # which looks now whether there is TensorFlow
    wanted = ("tensorflow", "torch._six", "skimage", "sklearn", "sklearn.metrics", "sklearn.metrics.pairwise")
    absent = [name for name in wanted if name not in sys.modules]
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
    """Make torch-mimicry's networks those of the authors' code, from which they depart in three things.

    They enlarge maps by bilinear interpolation where the authors repeat pixels, their ReLU works in place, so that
    shortcuts of the discriminator see what ReLU made of their input, and their score has a bias that is learned.
    """
    generator, discriminator = networks
    for block in generator.children():
        if hasattr(block, "_upsample_conv"):
            block._upsample_conv = _repeating
    for module in discriminator.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    discriminator.l5.bias.requires_grad_(False)
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


def start_alike(networks: tuple[Any, Any], state: TrainState) -> None:
    """Give torch-mimicry's networks the weights of normlab's, and the vectors of their power iteration."""
    with torch.no_grad():
        for ours, theirs in zip((state.generator, state.discriminator), networks, strict=True):
            for our_layer, their_layer in zip(weight_layers(ours), weight_layers(theirs), strict=True):
                getattr(their_layer, "weight_orig", their_layer.weight).copy_(our_layer.weight)
                their_layer.bias.zero_()
                if our_layer.bias is not None:
                    their_layer.bias.copy_(our_layer.bias)
        for (_, layer), their_layer in zip(state.discriminator.layers(), weight_layers(networks[1]), strict=True):
            assert isinstance(layer.reparametrization, SpectralNorm)
            their_layer.weight_u.copy_(layer.reparametrization.u)
            their_layer.weight_v.copy_(layer.reparametrization.v)


def weight_layers(network: nn.Module) -> list[Any]:
    return [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def draw_alike(generator: Any, seed: int, batch_size: int, discriminator_steps: int) -> None:
    """Let torch-mimicry's generator see normlab's latents; it is asked for them in the order of the updates."""
    purposes = [*(f"discriminator {update}" for update in range(discriminator_steps)), "generator"]
    asked = itertools.count()

    def generate_images(num_images: int, device: Any = None) -> Tensor:
        step, purpose = divmod(next(asked), len(purposes))
        rng = stream(seed, "latents", purposes[purpose], step)
        return generator(torch.randn(batch_size, generator.nz, generator=rng))

    generator.generate_images = generate_images


def mimicry_trainer(
    options: argparse.Namespace, seed: int, folder: Path, mend: bool, real: RealBatches, state: TrainState
) -> Any:
    """Return torch-mimicry's trainer at the first weights of a normlab run of the same seed."""
    config, _ = configure(words(options, seed))
    networks = mimicry_networks(options.width)
    generator, discriminator = mended(networks) if mend else networks
    start_alike((generator, discriminator), state)
    draw_alike(generator, seed, real.batch_size, options.discriminator_steps)
    rates = [config.optimizer.of(name).params for name in ("generator", "discriminator")]
    optimizers = [
        torch.optim.Adam(
            (parameter for parameter in network.parameters() if parameter.requires_grad),
            lr=adam["lr"],
            betas=tuple(adam["betas"]),
        )
        for network, adam in zip((generator, discriminator), rates, strict=True)
    ]
    return mimicry().training.Trainer(
        netD=discriminator,
        netG=generator,
        optG=optimizers[0],
        optD=optimizers[1],
        dataloader=Loader(real),
        num_steps=options.steps,
        n_dis=options.discriminator_steps,
        lr_decay="linear",
        device=CPU,
        log_dir=str(folder / "log"),
        log_steps=1,
        print_steps=options.steps,
        vis_steps=2 * options.steps,  # never: its pictures would take latents
        save_steps=options.steps,
    )


def train_mimicry(options: argparse.Namespace, seed: int, folder: Path, mend: bool) -> dict[str, Any]:
    """Train with torch-mimicry's trainer and return the scores of its generator."""
    config, _ = configure(words(options, seed))
    materials = assemble.gather(config, CPU)
    assert materials.scorer is not None
    step = assemble.build_step(config, materials.dataset, materials.real, CPU)
    trainer = mimicry_trainer(options, seed, folder, mend, materials.real, step.state)
    trainer.train()
    generator = trainer.netG
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


# --- The same networks and updates -----------------------------------------------------------------------------------


def same_weights(width: int) -> dict[str, float]:
    """Give normlab's and the mended networks the same weights; return how far apart their scores and images are.

    The largest difference, relative to the largest score and pixel.
    """
    config, _ = configure(["experiment=miyato_resnet", f"architecture.width={width}"])
    state = assemble.build_state(config, ImageSpec(3, 32, 32), CPU)
    theirs = mended(mimicry_networks(width))
    start_alike(theirs, state)
    for network in theirs:
        network.train()
    for layer in weight_layers(theirs[1]):
        for hook in layer._forward_pre_hooks.values():
            hook.n_power_iterations = 0
    rng = torch.Generator().manual_seed(0)
    latents, images = torch.randn(16, 128, generator=rng), torch.rand(16, 3, 32, 32, generator=rng) * 2 - 1
    with torch.no_grad():
        pairs = {
            "images": (state.generator(latents), theirs[0](latents)),
            "scores": (state.discriminator(images), theirs[1](images).flatten()),
        }
    return {name: float((ours - others).abs().max() / others.abs().max()) for name, (ours, others) in pairs.items()}


def same_updates(options: argparse.Namespace) -> dict[str, float]:
    """Train normlab's and the mended networks side by side; return how far apart their losses come, relatively."""
    config, _ = configure(words(options, 0))
    dataset = assemble.open_dataset(config)
    real = assemble.open_batches(config, dataset, CPU)
    step = assemble.build_step(config, dataset, real, CPU)
    ours = {"loss/discriminator": list[float](), "loss/generator": list[float]()}
    theirs: dict[str, list[float]] = {name: [] for name in ours}
    with tempfile.TemporaryDirectory() as folder:
        trainer = mimicry_trainer(options, 0, Path(folder), mend=True, real=real, state=step.state)
        trainer.num_steps = FIRST_UPDATES
        trainer.logger.write_summaries = lambda log_data, global_step: [
            theirs[name].append(log_data[key])
            for name, key in (("loss/discriminator", "errD"), ("loss/generator", "errG"))
        ]
        trainer.train()
    for _ in range(FIRST_UPDATES):
        scalars = step.take()
        for name, losses in ours.items():
            losses.append(float(scalars[name]))
    return {name: max(abs(a - b) / abs(b) for a, b in zip(ours[name], theirs[name], strict=True)) for name in ours}


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
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
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
    of_updates = same_updates(options)
    print(f"over {FIRST_UPDATES} updates: " + ", ".join(f"{name} by {gap:.1e}" for name, gap in of_updates.items()))
    if max(differences.values()) > 1e-5 or max(of_updates.values()) > 1e-3:
        return 1
    sides: list[Side] = [side for side in SIDES if side in options.sides]
    wanted: list[tuple[Side, int]] = [(side, seed) for seed in options.seeds for side in sides]
    with ProcessPoolExecutor(options.jobs) as pool:
        futures = [pool.submit(trained, options, side, seed) for side, seed in wanted]
        rows = [future.result() for future in tqdm(futures, desc="trainings", disable=None)]
    print("seed  " + "  ".join(f"{side:>14}" for side in sides))
    distances = {side: [row["frechet_distance"] for row in rows if row["side"] == side] for side in sides}
    for place, seed in enumerate(options.seeds):
        print(f"{seed:<4}  " + "  ".join(f"{distances[side][place]:14.2f}" for side in sides))
    print(rows[0]["protocol"])
    within = {side: compare(distances["normlab"], distances[side], side) for side in sides if side != "normlab"}
    return 0 if within.get("mended", True) else 1


def compare(ours: Sequence[float], theirs: Sequence[float], name: str) -> bool:
    """Print the ratio of two sides' distances, seed by seed, with its interval; return whether the margin holds it."""
    ratios = [math.log(our) - math.log(their) for our, their in zip(ours, theirs, strict=True)]
    interval = ttest_1samp(ratios, 0.0).confidence_interval(0.95)
    ratio, low, high = (math.exp(value) for value in (sum(ratios) / len(ratios), interval.low, interval.high))
    print(f"normlab / {name}: {ratio:.3f}  [{low:.3f}, {high:.3f}]  margin [{1 / MARGIN:.3f}, {MARGIN:.3f}]")
    return low > 1 / MARGIN and high < MARGIN


if __name__ == "__main__":
    sys.exit(main())
