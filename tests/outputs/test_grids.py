import numpy as np
import pytest
import torch
from PIL import Image

from normlab.errors import ResourceError
from normlab.outputs.grids import arrange, save_grid, save_image, to_uint8


def test_every_level_is_reached_by_rounding_and_values_outside_are_clipped():
    levels = torch.arange(256)
    assert torch.equal(to_uint8(levels / 127.5 - 1), levels.to(torch.uint8))
    assert to_uint8(torch.tensor([-7.0, -1.0, 0.0, 1.0, 7.0])).tolist() == [0, 0, 128, 255, 255]


def test_a_grid_is_exact_to_the_pixel(tmp_path):
    images = torch.stack([torch.full((1, 2, 3), value / 127.5 - 1) for value in (10, 20, 30, 40, 50)])
    expected = torch.zeros(1, 14, 12, dtype=torch.uint8)
    expected[0, 2:4, 2:5], expected[0, 2:4, 7:10] = 10, 20
    expected[0, 6:8, 2:5], expected[0, 6:8, 7:10] = 30, 40
    expected[0, 10:12, 2:5] = 50
    assert torch.equal(save_grid(images, tmp_path / "grid.png", columns=2), expected)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "grid.png")), expected[0].numpy())


def test_colours_come_back_from_the_file_in_order(tmp_path):
    image = torch.randint(256, (3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    save_image(image, tmp_path / "image.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "image.png")), image.permute(1, 2, 0).numpy())


def test_equal_images_give_equal_bytes(tmp_path):
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    save_grid(images, tmp_path / "a.png")
    save_grid(images.clone(), tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_fewer_images_than_columns_leave_no_empty_columns():
    assert arrange(torch.zeros(3, 1, 4, 4), columns=8).shape == (1, 8, 20)


def test_what_is_no_image_is_refused(tmp_path):
    with pytest.raises(ValueError, match="1 or 3 channels"):
        save_image(torch.zeros(2, 4, 4, dtype=torch.uint8), tmp_path / "image.png")


def test_a_grid_that_cannot_be_written_is_a_resource_error(tmp_path):
    with pytest.raises(ResourceError, match=r"grid\.png"):
        save_grid(torch.zeros(1, 1, 2, 2), tmp_path / "missing" / "grid.png")
