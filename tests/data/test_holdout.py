"""Held-out images: by content, whatever the order, the resolution and the reader."""

from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pictures import noise, parquet, png, write_png
from scipy import stats

from ddpm_hf.data.holdout import Holdout, choose_holdout, rows_of_side
from ddpm_hf.data.sources import load_images
from ddpm_hf.data.store import PixelStore
from ddpm_hf.evaluation.image_sets import ImageSet

NO_SPLIT = SimpleNamespace(name="nothing", own_split=None)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(200):
        write_png(folder / f"{i:03d}.png", noise(i))
    return load_images(train_data_dir=folder)


def held_out_batches(data, holdout, batch_size, most=None, decoded=None):
    images = ImageSet(data=data, holdout=holdout, size=(8, 8), channels=3, most=most, decoded=decoded)
    return list(images.batches(batch_size))


def rows_in(batches):
    return sorted(row for batch in batches for row in batch["rows"].tolist())


@pytest.mark.parametrize("holdout, count", [(None, 20), (0, 0), (1, 1), (37, 37), (0.25, 50), (199, 199), (0.001, 0)])
def test_how_many(data, holdout, count):
    hashes = PixelStore.build(data, (8, 8), progress=False).hashes
    chosen = choose_holdout(data, holdout, seed=3, hashes=hashes)
    assert chosen.mask(hashes).sum() == count
    assert Holdout(**asdict(chosen)) == chosen


def test_at_most_five_thousand_by_default(data):
    hashes = np.random.default_rng(0).integers(0, 2**64, 80_000, dtype=np.uint64)
    assert choose_holdout(data, None, hashes=hashes).mask(hashes).sum() == 5000
    assert choose_holdout(data, 8000, hashes=hashes).mask(hashes).sum() == 8000


def test_neither_order_nor_resolution_matters(data, tmp_path):
    store = PixelStore.build(data, (8, 8), progress=False)
    chosen = choose_holdout(data, seed=3, hashes=store.hashes)
    order = np.random.default_rng(0).permutation(200)
    cells = {"x": [png(noise(int(i))) for i in order]}
    other = load_images(train_data_dir=parquet(tmp_path / "x.parquet", cells), cache_dir=tmp_path / "c")
    other_store = PixelStore.build(other, (4, 6), 1, progress=False)
    assert choose_holdout(other, seed=3, hashes=other_store.hashes) == chosen
    there = order[np.flatnonzero(chosen.mask(other_store.hashes))]
    assert sorted(there) == np.flatnonzero(chosen.mask(store.hashes)).tolist()


def test_every_image_is_as_likely_and_seeds_are_independent():
    hashes = np.arange(1000, dtype=np.uint64)  # the worst of hashes
    counts = sum(choose_holdout(NO_SPLIT, 100, seed, hashes).mask(hashes).astype(int) for seed in range(300))
    # Sampling 100 of 1000 without replacement, 300 times: each count has mean 30 and variance 300 * 0.1 * 0.9.
    assert stats.chi2.sf(((counts - 30) ** 2 / 27).sum(), 999) > 1e-3


def test_equal_images_fall_on_the_same_side(tmp_path):
    for i in range(100):
        write_png(tmp_path / "i" / f"{i:03d}.png", noise(i // 4))
    store = PixelStore.build(load_images(train_data_dir=tmp_path / "i"), (8, 8), progress=False)
    for seed in range(20):
        mask = choose_holdout(NO_SPLIT, 10, seed, store.hashes).mask(store.hashes)
        assert mask.sum() in (8, 10 - 10 % 4) and (mask.reshape(25, 4) == mask[::4, None]).all()


def test_batches_are_the_images_left_out(data):
    store = PixelStore.build(data, (8, 8), progress=False)
    chosen = choose_holdout(data, 0.2, hashes=store.hashes)
    batches = held_out_batches(data, chosen, 16)
    assert [len(batch["images"]) for batch in batches] == [16, 16, 8]
    assert rows_in(batches) == np.flatnonzero(chosen.mask(store.hashes)).tolist()
    for batch in batches:
        assert np.array_equal(batch["images"].numpy(), store.gather(batch["rows"].numpy()))
    first = rows_in(held_out_batches(data, chosen, 16, most=10))
    smaller = choose_holdout(data, 10, hashes=store.hashes)
    assert first == np.flatnonzero(smaller.mask(store.hashes)).tolist()  # fewer are a part of more


def test_it_opens_the_store_that_training_made(data, own_cache):
    PixelStore.build(data, (8, 8), progress=False)
    held_out_batches(data, Holdout(threshold=2**63), 16)
    assert len([path for path in (own_cache / "ddpm_hf").iterdir() if path.is_dir()]) == 1


def test_the_centres_of_images_stored_for_random_crops_need_no_second_store(tmp_path, own_cache):
    for i in range(20):
        write_png(tmp_path / f"{i:02d}.png", noise(i, (8, 8 + i % 3)))
    data = load_images(train_data_dir=tmp_path)
    store = PixelStore.build(data, (8, 8), random_crop=True, progress=False)
    chosen = choose_holdout(data, 7, hashes=store.hashes)
    batches = held_out_batches(data, chosen, 4, decoded=store)
    assert [len(batch["rows"]) for batch in batches] == [4, 3]
    assert len([path for path in (own_cache / "ddpm_hf").iterdir() if path.is_dir()]) == 1
    # Another reader, which decodes everything in this size, finds the same pixels in the same order.
    for batch, other in zip(batches, held_out_batches(data, chosen, 4), strict=True):
        assert torch.equal(batch["rows"], other["rows"]) and torch.equal(batch["images"], other["images"])
    # A file that was read for training and has gone since is missed, even where unreadable ones are left out.
    lost = tmp_path / f"{batches[1]['rows'][0]:02d}.png"
    lost.unlink()
    images = ImageSet(data=data, holdout=chosen, size=(8, 8), channels=3, decoded=store, skip_unreadable=True)
    with pytest.raises(ValueError, match=rf"{lost.name}\): the file cannot be read"):
        list(images.batches(4))


@pytest.mark.parametrize("streaming", [False, True])
def test_own_split(tmp_path, streaming):
    parquet(tmp_path / "d" / "train.parquet", {"x": [png(noise(i)) for i in range(20)]})
    parquet(tmp_path / "d" / "test.parquet", {"x": [png(noise(100 + i)) for i in range(7)]})
    data = load_images(train_data_dir=tmp_path / "d", cache_dir=tmp_path / "c", streaming=streaming)
    chosen = choose_holdout(data, hashes=np.arange(20, dtype=np.uint64))
    assert chosen.split == "test" and not chosen.mask(np.arange(20, dtype=np.uint64)).any()
    batches = held_out_batches(data, chosen, 4)
    assert rows_in(batches) == list(range(7))
    for batch in batches:
        for row, image in zip(batch["rows"].tolist(), batch["images"].numpy(), strict=True):
            assert np.array_equal(image, noise(100 + row).transpose(2, 0, 1))
    number = choose_holdout(data, 5, hashes=np.arange(20, dtype=np.uint64))
    assert number.split is None and number.threshold > 0
    with pytest.raises(ValueError, match="must have the split 'validation'"):
        held_out_batches(data, Holdout(split="validation"), 4)


class TestStreaming:
    @pytest.fixture
    def stream(self, tmp_path, data):
        for shard in range(4):
            cells = {"x": [png(noise(50 * shard + i)) for i in range(50)]}
            parquet(tmp_path / "shards" / f"{shard}.parquet", cells)
        return load_images(train_data_dir=tmp_path / "shards", streaming=True)

    def test_the_same_images_as_out_of_a_store(self, stream, data):
        store = PixelStore.build(data, (8, 8), progress=False)
        chosen = choose_holdout(data, 0.2, hashes=store.hashes)
        expected = np.flatnonzero(chosen.mask(store.hashes)).tolist()
        assert [row.index for row in rows_of_side(stream, chosen, True)] == expected
        kept = [row.index for row in rows_of_side(stream, chosen, False)]
        assert sorted(kept + expected) == list(range(200)) and kept == sorted(kept)
        batches = held_out_batches(stream, chosen, 16)
        assert rows_in(batches) == expected
        for batch in batches:
            assert np.array_equal(batch["images"].numpy(), store.gather(batch["rows"].numpy()))
        assert rows_in(held_out_batches(stream, chosen, 16, most=20)) == expected[:20]

    @pytest.mark.parametrize("holdout, share", [(None, 0.1), (0.3, 0.3), (50, 0.25), (0, 0)])
    def test_shares_are_met_on_average(self, stream, holdout, share):
        chosen = choose_holdout(stream, holdout)
        count = sum(1 for _ in rows_of_side(stream, chosen, True))
        assert stats.binomtest(count, 200, share).pvalue > 1e-3
        assert chosen.threshold == pytest.approx(share * 2**64)

    def test_what_cannot_be_read_is_not_held_out(self, tmp_path):
        write_png(tmp_path / "there.png", noise(0))
        cells = {"image": [str(tmp_path / "there.png"), str(tmp_path / "gone.png")]}
        stream = load_images(train_data_dir=parquet(tmp_path / "t" / "x.parquet", cells), streaming=True)
        everything = Holdout(threshold=2**64 - 1)
        assert [row.index for row in rows_of_side(stream, everything, True)] == [0]
        assert [row.index for row in rows_of_side(stream, everything, False)] == [1]

    def test_a_number_needs_a_length(self, tmp_path):
        import datasets

        rows = datasets.Dataset.from_dict({"x": [png(noise(0))] * 3})
        rows.save_to_disk(tmp_path / "saved")
        arrow = next((tmp_path / "saved").glob("*.arrow"))
        stream = load_images(train_data_dir=arrow, streaming=True)
        assert stream.num_rows is None
        with pytest.raises(ValueError, match="`holdout` must be a share below 1, .* is unknown, got 2"):
            choose_holdout(stream, 2)
        assert choose_holdout(stream).threshold == int(0.1 * 2**64)


@pytest.mark.parametrize("wrong", [-1, 1.5, -0.1, float("nan"), float("inf")])
def test_impossible_numbers(data, wrong):
    with pytest.raises(ValueError, match="`holdout` must be a number of images, a share below 1, or 0, got"):
        choose_holdout(data, wrong, hashes=np.arange(200, dtype=np.uint64))


@pytest.mark.parametrize("wrong", [200, 1000, 0.999])
def test_nothing_left(data, wrong):
    with pytest.raises(ValueError, match="`holdout` must be less than the 200 images of"):
        choose_holdout(data, wrong, hashes=np.arange(200, dtype=np.uint64))
