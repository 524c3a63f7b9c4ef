"""Grids: every pixel where it belongs."""

import numpy as np

from ddpm_hf.sampling.pictures import image_grid


def test_cells_are_enlarged_by_whole_factors_and_lie_row_by_row():
    images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1) * 40 + np.zeros((6, 8, 8, 1), np.uint8)
    grid = np.asarray(image_grid(images, columns=3))
    factor = 64 // 8
    assert grid.shape == (2 + 2 * (64 + 2), 2 + 3 * (64 + 2), 3)
    for k in range(6):
        row, column = divmod(k, 3)
        cell = grid[2 + row * 66 : 2 + row * 66 + 8 * factor, 2 + column * 66 : 2 + column * 66 + 8 * factor]
        assert (cell == 40 * k).all()


def test_large_images_keep_their_size_and_transparency_shows_white():
    images = np.zeros((1, 80, 60, 4), np.uint8)
    images[0, :, :30] = (10, 20, 30, 255)
    grid = np.asarray(image_grid(images))
    assert grid.shape == (84, 64, 3)
    assert (grid[2:82, 2:32] == (10, 20, 30)).all() and (grid[2:82, 32:62] == 255).all()


def test_row_names_take_room_on_the_left():
    images = np.zeros((4, 64, 64, 3), np.uint8)
    plain, named = image_grid(images, 2), image_grid(images, 2, ["a cat", "a dog"])
    assert named.height == plain.height and named.width > plain.width
    left = np.asarray(named)[:, : named.width - plain.width + 2]
    assert (left < 128).any(), "the names are written"
