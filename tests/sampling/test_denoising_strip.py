"""The pictures of the chain show the chain: they end in the very images that the pipeline draws."""

import numpy as np
import pytest
from PIL import Image

from ddpm_hf.sampling.generation import generate
from ddpm_hf.sampling.strips import denoising_chain, save_chain


@pytest.mark.parametrize(
    ("steps", "frames", "wanted"), [(7, 4, [1, 3, 5, 7]), (7, 1, [7]), (3, 25, [1, 2, 3]), (1, 5, [1])]
)
def test_a_chain_ends_in_the_images_that_are_drawn(tiny_pipeline, steps, frames, wanted):
    pipeline = tiny_pipeline(num_classes=2)
    chain, shown = denoising_chain(pipeline, [3, 5], 7, steps, frames, {"class_labels": [0, 1]})
    assert shown == wanted and chain.shape == (len(wanted), 2, 8, 8, 3) and chain.dtype == np.uint8
    ((_, images),) = generate(pipeline, [3, 5], 7, 2, {"class_labels": [0, 1]}, num_inference_steps=steps)
    assert np.array_equal(chain[-1], images)
    if len(wanted) > 1:
        assert np.abs(chain[0].astype(int) - chain[-1]).mean() > 10


def test_strip_and_animation_hold_the_chain(tmp_path):
    # Frame f of image n is a flat grey of its own.
    chain = np.zeros((10, 2, 8, 8, 1), np.uint8) + np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1, 1) * 20
    chain[:, 1] += 5
    shown = save_chain(chain, tmp_path / "strip.png", tmp_path / "moving.gif", columns=4)
    assert shown == [0, 3, 6, 9]
    strip = np.asarray(Image.open(tmp_path / "strip.png").convert("L"))
    height, width = strip.shape
    for row in range(2):
        for column, frame in enumerate(shown):
            centre = strip[int((row + 0.5) * height / 2), int((column + 0.5) * width / 4)]
            assert centre == frame * 20 + 5 * row
    with Image.open(tmp_path / "moving.gif") as moving:
        assert moving.n_frames == 10 and moving.info["loop"] == 0
        for frame in range(10):
            moving.seek(frame)
            greys = np.asarray(moving.convert("L"))
            assert greys[greys.shape[0] // 2, greys.shape[1] // 4] == frame * 20


def test_pictures_of_large_images_stay_small(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (7, 3, 256, 256, 1), dtype=np.uint8)
    save_chain(noise, tmp_path / "strip.png", tmp_path / "moving.gif")
    assert Image.open(tmp_path / "strip.png").width <= 1600 and Image.open(tmp_path / "moving.gif").width <= 640
