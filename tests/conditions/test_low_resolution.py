"""The small picture of an upsampler: how it is made smaller, blurred and enlarged, and what cannot be one."""

import re

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

from ddpm_hf.conditions.low_resolution import LowResolution, blur
from ddpm_hf.data.captioned_digits import compose, plans
from ddpm_hf.data.transforms import resize_and_crop

PICTURE = LowResolution(shape=(3, 5, 5), factor=2)


def test_it_is_enlarged_with_corners_on_corners():
    """As stock does; here pixel i of n lies at i (m - 1) / (n - 1) of m, between its two neighbours."""
    small = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1
    places = np.arange(10) * 4 / 9
    weights = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(5)))
    expected = weights @ small.double().numpy() @ weights.T
    told = PICTURE.of_words(list(small), torch.device("cpu"))
    assert told.keys() == {"low_resolution"}
    np.testing.assert_allclose(told["low_resolution"].numpy(), expected, atol=1e-6)
    assert PICTURE.null(told) is told and not PICTURE.has_null, "guidance does not hide it"


def test_the_blur_is_a_gaussian_of_three_pixels_mirrored_at_the_borders():
    pictures = torch.rand(2, 3, 6, 4, generator=torch.Generator().manual_seed(0))
    kernel = np.exp(-np.array([1, 0, 1]) / (2 * 0.6**2))
    kernel /= kernel.sum()
    padded = np.pad(pictures.double().numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    rows = sum(weight * padded[:, :, k : k + 6] for k, weight in enumerate(kernel))
    expected = sum(weight * rows[..., k : k + 4] for k, weight in enumerate(kernel))
    np.testing.assert_allclose(blur(pictures).numpy(), expected, atol=1e-6)


def test_half_of_the_training_images_are_blurred_by_their_position_alone():
    picture = LowResolution(shape=(1, 3, 3), factor=2, blurred=0.5, seed=3)
    images = torch.zeros(10_000, 1, 6, 6, dtype=torch.uint8)
    images[..., 2:4, 2:4] = 255  # one white pixel when it is small

    def told(positions: range, **changes) -> torch.Tensor:
        batch = {"images": images[: len(positions)], "positions": positions} | changes
        return picture.of_rows(batch)["low_resolution"][..., 0, 0]  # black, unless blurred

    corners = told(range(10_000))
    is_blurred = corners > corners.min() + 0.01
    assert abs(is_blurred.float().mean() - 0.5) < 4 * 0.005
    torch.testing.assert_close(told(range(700, 710)), corners[700:710])
    evaluated = picture.of_rows({"images": images[:9]})["low_resolution"]
    assert (evaluated[..., 0, 0] == corners.min()).all(), "without positions none is"
    asked = torch.stack(list(picture.words_of([{"images": images[:2]}])))
    assert torch.equal(picture.of_words(list(asked), images.device)["low_resolution"], evaluated[:2])


def test_noise_has_the_variance_of_its_level_which_is_uniform_and_told():
    """alpha_bar of a linear process, by its definition in float64."""
    total, count = 10, 4000
    noising = DDPMScheduler(num_train_timesteps=total, beta_start=0.01, beta_end=0.5)
    picture = LowResolution(shape=(1, 4, 4), factor=2, noising=noising, seed=3)
    images = torch.full((count, 1, 8, 8), 200, dtype=torch.uint8)

    def told(positions: range) -> tuple[torch.Tensor, torch.Tensor]:
        said = picture.of_rows({"images": images[: len(positions)], "positions": positions})
        return said["low_resolution"], said["class_labels"]

    noisy, levels = told(range(count))
    assert levels.dtype == torch.int64 and levels.unique().tolist() == [*range(total)]
    alpha_bar = np.cumprod(1 - np.linspace(0.01, 0.5, total))
    for level in range(total):
        found = noisy[levels == level].double()
        share, values = len(found) / count, found.numel()
        assert abs(share - 1 / total) < 4 * (0.1 * 0.9 / count) ** 0.5
        variance = 1 - alpha_bar[level]
        mean = alpha_bar[level] ** 0.5 * (200 / 127.5 - 1)
        assert abs(found.mean() - mean) < 5 * (variance / values) ** 0.5
        assert abs(found.var() - variance) < 5 * variance * (2 / values) ** 0.5

    again, same = told(range(700, 710))
    assert torch.equal(again, noisy[700:710]) and torch.equal(same, levels[700:710]), "functions of the position"
    rows = torch.arange(count)
    held_out = picture.of_rows({"images": images, "rows": rows})
    assert held_out["class_labels"].unique().tolist() == [total // 4]
    some = picture.of_rows({"images": images[5:9], "rows": rows[5:9]})["low_resolution"]
    assert torch.equal(some, held_out["low_resolution"][5:9]), "of the row"
    asked = picture.of_words([torch.zeros(1, 4, 4)] * 2, images.device)
    assert not asked["low_resolution"].any() and asked["class_labels"].tolist() == [2, 2], "whoever draws adds noise"


def test_it_is_made_smaller_as_the_pictures_of_a_base_are():
    digits = compose({name: ids[:64] for name, ids in plans("coloured")["test"].items()})
    of_base = np.stack([np.asarray(resize_and_crop(Image.fromarray(digit), (16, 16))) for digit in digits])
    small = LowResolution(shape=(3, 16, 16), factor=2).reduced(torch.from_numpy(digits).movedim(3, 1))
    levels = (small.movedim(1, 3).numpy() + 1) * 127.5
    averages = digits.reshape(64, 16, 2, 16, 2, 3).mean((2, 4))

    def distance(pixels: np.ndarray) -> float:
        return float(np.square(pixels - of_base).mean() ** 0.5)

    assert distance(levels) < 3 and distance(levels) < 0.85 * distance(averages)


@pytest.mark.parametrize(
    ("word", "words"),
    [
        (Image.new("RGB", (4, 5)), "(3, 5, 4)"),
        (Image.new("L", (5, 5)), "(1, 5, 5)"),
        (Image.new("HSV", (5, 5)), "mode=HSV"),
        (torch.zeros(3, 6, 6), "(3, 6, 6)"),
        ("small.png", "'small.png'"),
    ],
)
def test_what_is_no_such_picture_is_refused(word, words):
    choices = "`image` must be a picture of 5x5 pixels and 3 channels (PIL, or a tensor in [-1, 1]) per image, got "
    with pytest.raises(ValueError, match=re.escape(choices) + ".*" + re.escape(words)):
        PICTURE.of_words([word], torch.device("cpu"))
