"""Holes in training pictures: random, and functions of the seed and the position alone."""

import numpy as np
import torch

from ddpm_hf.conditions.condition import tell
from ddpm_hf.conditions.hole import Hole, Known

SIZE = (12, 16)


def holes(positions: range, seed: int = 3) -> np.ndarray:
    """Bool (n, height, width)."""
    images = torch.zeros(len(positions), 3, *SIZE, dtype=torch.uint8)
    told = tell([Hole(seed=seed)], {"images": images, "positions": positions})
    return told["hole"][:, 0].numpy()


def test_they_are_of_all_sizes_and_a_fifth_is_everything():
    drawn = holes(range(4000))
    share = drawn.mean((1, 2))
    assert drawn.shape == (4000, *SIZE) and drawn.dtype == bool
    assert share.min() > 0
    everything = (share == 1).mean()
    assert abs(everything - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 4000)
    counts, _ = np.histogram(share[share < 1], bins=(0, 0.1, 0.25, 0.5, 0.75, 1))
    assert counts.min() > 50, "some cover little, some nearly all"
    # A rectangle fills the box around it; a stroke with corners does not.
    boxes = [hole[np.ix_(hole.any(1), hole.any(0))].mean() for hole in drawn[:500]]
    assert 0.1 < np.mean(np.array(boxes) < 0.6) < 0.6


def test_a_hole_is_a_function_of_seed_and_position():
    drawn = holes(range(40))
    np.testing.assert_array_equal(drawn[17:23], holes(range(17, 23)))
    assert not np.array_equal(drawn, holes(range(40), seed=4))
    assert not np.array_equal(drawn[:20], drawn[20:])


def test_without_positions_all_is_drawn_and_held_out_rows_have_holes_of_their_own():
    images = torch.randint(0, 256, (3, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = {"images": images, "rows": torch.tensor([5, 6, 9])}
    assert Hole().of_rows(batch)["hole"].all()
    asked = [[*condition.words_of([batch])] for condition in (Known(), Hole())]
    for picture, mask, image in zip(*asked, images, strict=True):
        np.testing.assert_array_equal(np.asarray(picture), image.permute(1, 2, 0).numpy())
        assert mask.size == picture.size == SIZE[::-1]
    again = [*Hole().words_of([{"images": images[:1], "rows": torch.tensor([9])}])]
    np.testing.assert_array_equal(np.asarray(again[0]), np.asarray(asked[1][2]))
    grey = [*Known().words_of([{"images": images[:, :1]}])]
    assert grey[0].mode == "L", "as the pipeline takes it"
