"""From any image that Pillow opens to a square of 8-bit pixels, always in the same way."""

import numpy as np
from PIL import ExifTags, Image, ImageOps

from normlab.data.pixels import Pixels

GREY_16_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")


class UnusableImage(ValueError):
    """An image that has no one right conversion; the message says why."""


def resized(image: Image.Image, size: int) -> Image.Image:
    """Bring the shorter side to `size` pixels, antialiased bicubic with clamping, and cut out the centre square."""
    shorter = min(image.size)
    if shorter != size:
        sides = [max(size, round(side * size / shorter)) for side in image.size]
        image = image.resize((sides[0], sides[1]), Image.Resampling.BICUBIC)
    width, height = image.size
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size)) if (width, height) != (size, size) else image


def resize_all(pixels: Pixels, size: int) -> Pixels:
    """Bring images uint8 [n, c, h, w] to [n, c, size, size], each as `resized` does."""
    if pixels.shape[2:] == (size, size):
        return pixels
    planes = pixels.reshape(-1, *pixels.shape[2:])
    scaled = [np.asarray(resized(Image.fromarray(plane), size)) for plane in planes]
    return np.stack(scaled).reshape(*pixels.shape[:2], size, size)


def to_pixels(image: Image.Image, size: int, channels: int) -> tuple[Pixels, list[str]]:
    """Return an image as uint8 [channels, size, size], and what had to be done to it.

    In this order: the first frame is taken; the EXIF orientation is applied; 16-bit grey is scaled to 8 bits; a palette
    and CMYK become RGB; transparency is composited on white; colour becomes grey (ITU-R 601 luma) or grey is repeated,
    as `channels` asks; the shorter side is resized to `size` (bicubic, antialiased) and the centre square cut out.
    Colour of 16 bits per channel arrives from Pillow as its upper 8 bits.
    Raises UnusableImage for floating-point and 32-bit pixels, whose range is not known.
    """
    done: list[str] = []
    image = opaque(image, channels, done)
    if min(image.size) < size:
        done.append(f"enlarged to {size} pixels")
    elif min(image.size) > size:
        done.append(f"reduced to {size} pixels")
    if image.width != image.height:
        done.append("cropped to the centre square")
    array = np.asarray(resized(image, size))
    return array.reshape(size, size, channels).transpose(2, 0, 1), done


def opaque(image: Image.Image, channels: int, done: list[str]) -> Image.Image:
    """Return an image as L (1 channel) or RGB (3), of its own size, and add to `done` what had to be done to it.

    As `to_pixels` says, which goes on from here.
    """
    if getattr(image, "is_animated", False):
        done.append("first of several frames taken")
    if image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9):
        image = ImageOps.exif_transpose(image)
        done.append("turned as EXIF says")
    return _to_channels(_to_opaque(_to_8_bits(image, done), done), channels, done)


def _to_8_bits(image: Image.Image, done: list[str]) -> Image.Image:
    if image.mode not in GREY_16_BIT:
        if image.mode == "F":
            raise UnusableImage("has floating-point pixels, whose range is not known")
        return image
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UnusableImage("has 32-bit pixels, whose range is not known")
    done.append("16-bit scaled to 8 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 65535 = 255 * 257, to the nearest


def _to_opaque(image: Image.Image, done: list[str]) -> Image.Image:
    """Return the image as L or RGB."""
    transparent = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    if image.mode in ("P", "PA"):
        done.append("palette looked up")
    elif image.mode not in ("1", "L", "LA", "La", "RGB", "RGBA", "RGBa"):
        done.append(f"{image.mode} brought to RGB")
    if transparent:
        done.append("transparency composited on white")
        image = image.convert("LA") if image.mode == "La" else image
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _to_channels(image: Image.Image, channels: int, done: list[str]) -> Image.Image:
    if channels == 3 and image.mode == "L":
        done.append("grey repeated to 3 channels")
        return image.convert("RGB")
    if channels == 1 and image.mode == "RGB":
        done.append("colour brought to grey")
        return image.convert("L")
    return image
