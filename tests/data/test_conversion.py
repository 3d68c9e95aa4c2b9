import io

import numpy as np
import pytest
from PIL import ExifTags, Image

from normlab.data.conversion import UnusableImage, resize_all, resized, to_pixels


def through_file(image: Image.Image, kind: str, **options: object) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(file)


def uniform(image: Image.Image, channels: int) -> list[int]:
    """The one colour of an image after conversion."""
    pixels, _ = to_pixels(image, 32, channels)
    assert (pixels == pixels[:, :1, :1]).all()
    return pixels[:, 0, 0].tolist()


def test_an_image_of_the_right_size_and_mode_keeps_its_pixels():
    array = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    pixels, done = to_pixels(through_file(Image.fromarray(array), "PNG"), 32, 3)
    assert np.array_equal(pixels, array.transpose(2, 0, 1))
    assert done == []


@pytest.mark.parametrize(
    ("image", "channels", "expected"),
    [
        (Image.new("L", (32, 32), 7), 3, [7, 7, 7]),
        (Image.new("L", (32, 32), 7), 1, [7]),
        (Image.new("1", (32, 32), 1), 1, [255]),
        (Image.new("RGB", (32, 32), (255, 0, 0)), 1, [76]),  # 0.299 * 255
        (Image.new("RGBA", (32, 32), (0, 0, 0, 0)), 3, [255, 255, 255]),
        (Image.new("RGBA", (32, 32), (200, 100, 0, 255)), 3, [200, 100, 0]),
        (Image.new("RGBA", (32, 32), (0, 0, 0, 51)), 3, [204, 204, 204]),  # a fifth black on white
        (Image.new("LA", (32, 32), (0, 51)), 1, [204]),
    ],
)
def test_modes_are_converted_exactly(image: Image.Image, channels: int, expected: list[int]):
    assert uniform(image if image.mode == "1" else through_file(image, "PNG"), channels) == expected


def test_a_palette_is_looked_up_and_its_transparent_entry_becomes_white():
    image = Image.new("P", (32, 32), 1)
    image.putpalette([9, 9, 9, 10, 20, 30])
    assert uniform(through_file(image, "PNG"), 3) == [10, 20, 30]
    assert uniform(through_file(image, "PNG", transparency=1), 3) == [255, 255, 255]


def test_a_transparent_colour_of_an_rgb_png_becomes_white():
    image = through_file(Image.new("RGB", (32, 32), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert uniform(image, 3) == [255, 255, 255]


def test_cmyk_becomes_rgb():
    assert uniform(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), 3) == [255, 0, 0]


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (257, 1), (128, 0), (129, 1), (40_000, 156), (65_535, 255)])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(kind: str, value: int, expected: int):
    image = through_file(Image.fromarray(np.full((32, 32), value, np.uint16)), kind)
    assert uniform(image, 1) == [expected]


@pytest.mark.parametrize(
    ("array", "what"),
    [(np.zeros((32, 32), np.float32), "floating-point"), (np.full((32, 32), 70_000, np.int32), "32-bit")],
)
def test_pixels_of_unknown_range_are_refused(array: np.ndarray, what: str):
    with pytest.raises(UnusableImage, match=what):
        to_pixels(through_file(Image.fromarray(array), "TIFF"), 32, 3)


def test_the_orientation_of_exif_is_applied():
    array = np.zeros((32, 32), np.uint8)
    array[0] = 255  # a white line at the top
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned right by a quarter
    pixels, done = to_pixels(through_file(Image.fromarray(array), "PNG", exif=exif), 32, 1)
    assert np.array_equal(pixels[0], np.rot90(array, -1))
    assert done == ["turned as EXIF says"]


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("L", (32, 32), value) for value in (10, 200)]
    image = through_file(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert uniform(image, 1) == [10]
    assert "first of several frames taken" in to_pixels(image, 32, 1)[1]


def test_the_centre_is_kept_of_a_wide_and_of_a_tall_image():
    wide = np.tile(np.arange(40, dtype=np.uint8), (32, 1))
    assert np.array_equal(np.asarray(resized(Image.fromarray(wide), 32)), wide[:, 4:36])
    assert np.array_equal(np.asarray(resized(Image.fromarray(wide.T), 32)), wide.T[4:36])


def test_a_reduced_image_is_antialiased():
    # Alternating columns: without antialiasing a reduction by four would pick columns of one kind.
    stripes = np.tile(np.array([0, 255], np.uint8), (128, 64))
    pixels = np.asarray(resized(Image.fromarray(stripes), 32)).astype(int)
    assert abs(pixels - 127.5).max() < 12


def test_an_enlarged_image_is_clamped_and_not_wrapped():
    steps = np.repeat(np.array([[0, 255]], np.uint8), 8, axis=0).repeat(4, axis=1)
    pixels = np.asarray(resized(Image.fromarray(steps), 32))
    assert (pixels[:, :12] < 20).all()
    assert (pixels[:, 20:] > 235).all()


def test_notes_name_every_conversion():
    image = through_file(Image.new("RGBA", (64, 80), (0, 0, 0, 0)), "PNG")
    assert to_pixels(image, 32, 1)[1] == [
        "transparency composited on white",
        "colour brought to grey",
        "reduced to 32 pixels",
        "cropped to the centre square",
    ]


def test_arrays_of_the_right_size_are_left_alone_and_others_resized_plane_by_plane():
    array = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    assert resize_all(array, 32) is array
    enlarged = resize_all(array, 64)
    assert enlarged.shape == (2, 3, 64, 64)
    assert np.array_equal(enlarged[1, 2], np.asarray(resized(Image.fromarray(array[1, 2]), 64)))
