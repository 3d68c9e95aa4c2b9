"""Images on the disk."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from normlab.outputs.atomic import write_atomically
from normlab.outputs.grid_layout import COLUMNS, PADDING, SIDE


def save_grid(images: Tensor, path: Path, columns: int = COLUMNS) -> Tensor:
    """Write float images [n, c, h, w] in [-1, 1] as one PNG, row by row, and return it as uint8 [c, H, W].

    Points, [n, 2, 1, 1], are written as a plot of them. Equal images give equal bytes. Raises ResourceError if the file
    cannot be written.
    """
    points = images.shape[1:] == (2, 1, 1)
    grid = scatter(images[:, :, 0, 0].cpu()) if points else arrange(to_uint8(images).cpu(), columns)
    save_image(grid, path)
    return grid


def to_uint8(images: Tensor) -> Tensor:
    """Bring float images in [-1, 1] of any shape to uint8: rounded to the nearest level, clipped outside."""
    return (images.detach().float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def read_image(path: Path) -> Tensor:
    """Return a PNG as uint8 [c, h, w], c being 1 or 3."""
    with Image.open(path) as image:
        pixels = torch.from_numpy(np.array(image))
    return pixels.unsqueeze(0) if pixels.dim() == 2 else pixels.permute(2, 0, 1)


def arrange(images: Tensor, columns: int = COLUMNS) -> Tensor:
    """Lay out images [n, c, h, w] in rows, padded all around, and return [c, H, W]; a short last row ends in black."""
    count, channels, height, width = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    grid = images.new_zeros(channels, rows * (height + PADDING) + PADDING, columns * (width + PADDING) + PADDING)
    for position, image in enumerate(images):
        top = PADDING + position // columns * (height + PADDING)
        left = PADDING + position % columns * (width + PADDING)
        grid[:, top : top + height, left : left + width] = image
    return grid


def scatter(points: Tensor) -> Tensor:
    """Draw points [n, 2] of the square [-1, 1]^2, x to the right and y upwards, as white pixels, uint8 [1, H, W].

    What lies outside is drawn at the edge.
    """
    pixels = ((points.detach().float().clamp(-1, 1) + 1) / 2 * (SIDE - 1)).round().long()
    picture = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
    picture[0, SIDE - 1 - pixels[:, 1], pixels[:, 0]] = 255
    return picture


def save_image(image: Tensor, path: Path) -> None:
    """Write one uint8 image [c, h, w] as PNG, c being 1 or 3; raise ResourceError if it cannot be written."""
    if image.dtype != torch.uint8 or image.shape[0] not in (1, 3):
        raise ValueError(f"an image is uint8 with 1 or 3 channels, not {image.dtype} {tuple(image.shape)}")
    pixels = image[0] if image.shape[0] == 1 else image.permute(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels.cpu().contiguous().numpy()).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())
