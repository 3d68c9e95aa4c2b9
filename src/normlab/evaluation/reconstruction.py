"""How well a generator can make images that it has not seen: the reconstruction error of Xiang & Li 2017."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from normlab.data.batches import scaled
from normlab.data.images import Images
from normlab.evaluation.batching import batches, never
from normlab.evaluation.features import in_float32
from normlab.randomness import stream

AUTHORS_BATCH = 32  # images whose latents they search for together
PICTURED = 8


@dataclass(frozen=True, kw_only=True)
class Search:
    """Of which images latents are searched for, and how: by RMSprop from 0, unconstrained; as the authors by default.

    count: how many images, or all if there are fewer: the first of a fixed random order, so that fewer are a part of
    more.  form: what is descended. `images`: the mean squared difference of each image, summed over the batch and
    divided by 32; RMSprop acts on every coordinate by itself, so the search for one image does not depend on the
    others. `batch`: the authors' code, the mean over all that the batch holds, so that the larger it is, the more `eps`
    weighs. For a full batch of 32, which is theirs, the two are the same, and so is what `eps` means; on an image's own
    mean it would have to be 3.2e-5.
    """

    count: int = 200
    steps: int = 50
    lr: float = 0.01
    alpha: float = 0.9
    eps: float = 1e-6
    form: Literal["images", "batch"] = "images"


@dataclass(frozen=True)
class Reconstruction:
    """What the searches have found.

    error: the mean of `per_image`.  per_image: float64 [m], with pixels in [0, 1] the sum of an image's squared
    differences (form `images`: the formula of the paper), or their mean (form `batch`: the authors' code); NaN where
    the generator's images are.  pairs: float32 [2, k, c, h, w] in [-1, 1], the first k images, 8 if there are as many,
    and what became of them: `save_grid(pairs.flatten(0, 1), path, columns=k)` writes them one above the other.
    """

    error: float
    per_image: Tensor
    pairs: Tensor


def reconstruct(
    generator: nn.Module,
    images: Images,
    *,
    device: torch.device,
    search: Search = Search(),
    batch_size: int = AUTHORS_BATCH,
    stop: Callable[[], bool] = never,
) -> Reconstruction:
    """Return (1/m) sum_i min_z |G(z) - x_i|^2 over m images, as far as the search comes (Xiang & Li 2017).

    generator: has `latent_size`; a copy of it is used, in evaluation mode, so give it with the batch statistics that it
    is to be scored with. One with `classes` is given each image's own label.
    Raises Interrupted if `stop`, asked before each batch, says so.
    """
    copy = deepcopy(generator).to(device).requires_grad_(False).eval()
    chosen = torch.randperm(len(images), generator=stream(0, "reconstruction"))[: search.count].numpy()
    errors: list[Tensor] = []
    pairs: list[Tensor] = []
    for rows in batches(len(chosen), batch_size, "reconstructing", stop):
        real = scaled(torch.from_numpy(images.pixels[chosen[rows]]).to(device))
        labels = None
        if getattr(generator, "classes", None) is not None:
            assert images.labels is not None, "a conditional generator needs the images' labels"
            labels = torch.from_numpy(images.labels[chosen[rows]]).to(device)
        with in_float32(device), torch.enable_grad():
            made = _nearest_made(copy, real, labels, search)
        errors.append(_errors(made, real, search).cpu())
        if rows.start < PICTURED:
            pairs.append(torch.stack([real, made]).cpu())
    per_image = torch.cat(errors)
    return Reconstruction(float(per_image.mean()), per_image, torch.cat(pairs, dim=1)[:, :PICTURED])


def _nearest_made(generator: nn.Module, real: Tensor, labels: Tensor | None, search: Search) -> Tensor:
    """Return the images that the searches for a batch of images end at."""
    latent_size = generator.latent_size
    assert isinstance(latent_size, int)
    z = torch.zeros(len(real), latent_size, device=real.device, requires_grad=True)
    given = {} if labels is None else {"labels": labels}
    optimizer = torch.optim.RMSprop([z], lr=search.lr, alpha=search.alpha, eps=search.eps)
    batch_size = AUTHORS_BATCH if search.form == "images" else len(real)
    for _ in range(search.steps):
        objective = _squares(generator(z, **given), real).mean(dim=1).sum() / batch_size
        (z.grad,) = torch.autograd.grad(objective, z)
        optimizer.step()
    with torch.no_grad():
        return generator(z, **given)


def _errors(made: Tensor, real: Tensor, search: Search) -> Tensor:
    squares = _squares(made, real).double()
    return squares.sum(dim=1) if search.form == "images" else squares.mean(dim=1)


def _squares(made: Tensor, real: Tensor) -> Tensor:
    """Return the squared differences, [n, values], of images in [-1, 1], as they are with pixels in [0, 1]."""
    return ((made - real) / 2).square().flatten(1)
