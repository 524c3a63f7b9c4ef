"""Examples are functions of (seed, position): neither neighbours, workers nor processes change them."""

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from pictures import noise, write_png
from scipy import stats

from ddpm_hf.data.examples import StoredImages
from ddpm_hf.data.holdout import Holdout
from ddpm_hf.data.order import PositionSampler
from ddpm_hf.data.sources import load_images
from ddpm_hf.data.store import PixelStore


@pytest.fixture
def source(tmp_path):
    for i in range(23):
        write_png(tmp_path / "images" / "ab"[i % 2] / f"{i:02d}.png", noise(i, (8, 8 + i)))
    return load_images(train_data_dir=tmp_path / "images", class_conditional=True)


@pytest.fixture
def store(source):
    return PixelStore.build(source, (8, 8), random_crop=True, progress=False)


@pytest.fixture
def examples(source, store):
    """Makes training images of the store from a seed and options."""
    return partial(StoredImages, source, store, holdout=Holdout())


def at(images, positions):
    return next(images.batches([positions]))


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def joined(batches):
    batches = list(batches)
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


def test_types_and_shapes(store, examples):
    batch = at(examples(0), range(5))
    assert batch["images"].dtype == torch.uint8 and batch["images"].shape == (5, 3, 8, 8)
    assert batch["rows"].dtype == batch["class_labels"].dtype == torch.int64
    assert batch["class_labels"].tolist() == store.extra["class_labels"][batch["rows"]].tolist()


def test_an_epoch_shows_each_image_once(examples):
    data = examples(3)
    assert data.count == 23
    for epoch in range(3):
        assert sorted(at(data, range(23 * epoch, 23 * epoch + 23))["rows"].tolist()) == list(range(23))


def test_only_the_images_that_are_not_held_out(store, examples):
    holdout = Holdout(threshold=2**63)
    kept = [row for row, is_out in enumerate(holdout.mask(store.hashes)) if not is_out]
    assert 0 < len(kept) < 23
    data = examples(0, holdout=holdout)
    assert sorted(at(data, range(data.count))["rows"].tolist()) == kept
    with pytest.raises(ValueError, match="`holdout` leaves no image"):
        examples(0, holdout=Holdout(threshold=2**64 - 1))


@pytest.mark.parametrize("random_crop", [False, True])
@pytest.mark.parametrize("random_flip", [False, True])
def test_position_by_position(examples, random_crop, random_flip):
    data = examples(7, random_crop=random_crop, random_flip=random_flip)
    whole = at(data, range(100))
    alone = joined(at(data, [position]) for position in range(100))
    assert equal(whole, alone)


def test_without_augmentation_they_are_the_centres(store, examples):
    batch = at(examples(1), range(23))
    assert np.array_equal(batch["images"].numpy(), store.gather(batch["rows"].numpy()))


def test_flips_are_fair_and_independent_of_the_row(store, examples):
    batch = at(examples(1, random_flip=True), range(23 * 400))
    plain = store.gather(batch["rows"].numpy())
    flipped = (batch["images"].numpy() == plain[..., ::-1]).all(axis=(1, 2, 3))
    assert ((batch["images"].numpy() == plain).all(axis=(1, 2, 3)) ^ flipped).all()
    counts = np.bincount(batch["rows"].numpy(), weights=flipped, minlength=23)
    # 23 binomials of 400 coins: their squared deviations follow chi-squared with 23 degrees of freedom.
    assert stats.chi2.sf(((counts - 200) ** 2 / 100).sum(), 23) > 1e-3


def test_crop_and_flip_are_independent(tmp_path):
    write_png(tmp_path / "ramp.png", np.tile(np.arange(15, dtype=np.uint8) * 10, (8, 1)))
    source = load_images(train_data_dir=tmp_path)
    ramp = PixelStore.build(source, (8, 8), random_crop=True, progress=False)
    images = StoredImages(source, ramp, 2, holdout=Holdout(), random_flip=True, random_crop=True)
    batch = at(images, range(4000))
    ends = batch["images"][:, 0, 0, [0, -1]].numpy().astype(int) // 10
    flipped, left = ends[:, 0] > ends[:, 1], ends.min(axis=1)
    table = np.stack([np.bincount(left[flipped == side], minlength=8) for side in (False, True)])
    assert stats.chisquare(table.ravel()).pvalue > 1e-3  # 8 places x 2 sides, all as likely


def test_seeds_differ(examples):
    first, second = (at(examples(seed, random_flip=True), range(23)) for seed in (0, 1))
    assert not torch.equal(first["rows"], second["rows"])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("processes, accumulation", [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_workers_processes_and_accumulation_change_nothing(examples, num_workers, processes, accumulation):
    data = examples(5, random_flip=True, random_crop=True)
    arguments = {"start_step": 3, "num_steps": 4, "gradient_accumulation_steps": accumulation}
    loaders = [
        data.loader(
            PositionSampler(
                8 // processes // accumulation, num_processes=processes, process_index=process, **arguments
            ),
            num_workers=num_workers,
        )
        for process in range(processes)
    ]
    micro_batches = [batch for together in zip(*loaders, strict=True) for batch in together]
    assert equal(joined(micro_batches), at(data, range(24, 56)))


def test_workers_get_neither_pixels_nor_the_source(examples):
    sent = pickle.dumps(examples(0, random_crop=True))
    assert len(sent) < 2000
    assert equal(at(pickle.loads(sent), range(40)), at(examples(0, random_crop=True), range(40)))


def test_the_loader_takes_nothing_from_the_global_generator(examples):
    before = torch.get_rng_state()
    next(iter(examples(0).loader(PositionSampler(4))))
    assert torch.equal(torch.get_rng_state(), before)


def test_digits_end_to_end(own_cache):
    from ddpm_hf.pixels import normalize

    data = load_images(class_conditional=True, cache_dir=own_cache)
    store = PixelStore.build(data, (16, 16), progress=False)
    examples = StoredImages(data, store, 0, holdout=Holdout())
    batch = next(iter(examples.loader(PositionSampler(64))))
    images = normalize(batch["images"])
    assert images.shape == (64, 1, 16, 16) and images.min() == -1 and images.max() > 0.9
    # White strokes on black: about a fifth of MNIST's pixels is ink (mean 0.1307 of 1 over its training set).
    assert 0.09 < (images.mean().item() + 1) / 2 < 0.18
