"""Grids: every pixel where it belongs."""

import numpy as np
import pytest

from ddpm_hf.sampling.pictures import captioned_grid, image_grid


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


@pytest.mark.parametrize(("side", "factor"), [(8, 20), (64, 3), (200, 1)])
def test_captions_stand_under_their_pictures_whatever_the_size(side, factor):
    captions = ["a small red seven on a blue ground, top left", "красный", "W" * 100, "one"]
    images = np.full((4, side, side, 3), (200, 210, 220), np.uint8)
    grid = np.asarray(captioned_grid(images, captions)).astype(int)
    width = side * factor
    columns = (grid.shape[1] - 2) // (width + 2)
    height = (grid.shape[0] - 2) // -(-4 // columns)
    cells = [
        grid[2 + row * height : (row + 1) * height, 2 + column * (width + 2) : (column + 1) * (width + 2)]
        for row, column in (divmod(k, columns) for k in range(4))
    ]
    inked = []
    for cell in cells:
        assert (cell[:width] == (200, 210, 220)).all()
        rows = np.flatnonzero((cell[width:] < 100).all(2).any(1))
        inked.append(np.ptp(rows) / width)
    assert inked[0] > 2 * inked[3], "wrapped"
    assert inked[2] > inked[0], "a word longer than the picture is wrapped too"
    assert inked[3] > 1 / 32, "letters do not shrink beside the picture"


def test_letters_beyond_ascii_are_not_all_the_same_box():
    words = np.asarray(captioned_grid(np.zeros((4, 64, 64, 3), np.uint8), ["é", "Ж", "ع", "☃"]))
    cells = [words[y : y + 25, x : x + 192] for y in (194, words.shape[0] // 2 + 193) for x in (2, 196)]
    assert len({cell.tobytes() for cell in cells}) == 4


def test_of_a_very_long_caption_the_first_lines_are_shown():
    images = np.zeros((1, 64, 64, 3), np.uint8)
    heights = [captioned_grid(images, ["word " * count]).height for count in (20, 10_000, 100_000)]
    assert heights[0] < heights[1] == heights[2]
