"""Streams keep the clock: positions decide, and neither workers, processes nor where one starts."""

import datasets
import numpy as np
import pytest
import torch
from pictures import noise, parquet, png

from ddpm_hf.data.holdout import Holdout, choose_holdout
from ddpm_hf.data.order import PositionSampler
from ddpm_hf.data.sources import load_images
from ddpm_hf.data.streaming import StreamedImages
from ddpm_hf.data.transforms import Decoder

ROWS, BLOCK = 53, 10


def shards(folder, damaged=(), size=(8, 8)):
    """Rows 0 to 52 in five parquet shards of unequal length, with two classes."""
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])}
    for shard, (start, stop) in enumerate([(0, 7), (7, 8), (8, 30), (30, 49), (49, ROWS)]):
        numbers = range(start, stop)
        cells = [{"bytes": b"no" if i in damaged else png(noise(i, size)), "path": None} for i in numbers]
        parquet(folder / f"{shard}.parquet", {"image": cells, "label": [i % 2 for i in numbers]}, features)
    return load_images(train_data_dir=folder, streaming=True, class_conditional=True)


@pytest.fixture
def data(tmp_path):
    return shards(tmp_path / "shards")


def stream(data, seed=3, holdout=None, **arguments):
    arguments = {"shuffle_buffer": BLOCK, **arguments}
    return StreamedImages(data, (8, 8), 3, seed, holdout=holdout or Holdout(), **arguments)


def rows_at(streaming_data, *slices):
    return [batch["rows"].tolist() for batch in streaming_data.batches(slices)]


def joined(batches):
    batches = list(batches)
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_batches_are_those_of_a_store(data):
    (batch,) = stream(data).batches([range(20)])
    assert batch["images"].dtype == torch.uint8 and batch["images"].shape == (20, 3, 8, 8)
    assert batch["class_labels"].tolist() == [row % 2 for row in batch["rows"].tolist()]
    for row, image in zip(batch["rows"].tolist(), batch["images"].numpy(), strict=True):
        assert np.array_equal(image, noise(row).transpose(2, 0, 1))


def test_blocks_in_file_order_each_in_an_order_of_its_own(data):
    (rows,) = rows_at(stream(data), range(3 * ROWS))
    orders = set()
    for epoch in range(3):
        for start in range(0, ROWS, BLOCK):
            length = min(BLOCK, ROWS - start)
            block = rows[epoch * ROWS + start : epoch * ROWS + start + length]
            assert sorted(block) == list(range(start, start + length))
            orders.add((length, tuple(row - start for row in block)))
    assert len(orders) == 18  # 6 blocks in each of 3 epochs, none shuffled like another


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("start", [0, 9, 10, 37, 52, 53, 54, 106, 400])
def test_starting_anywhere_is_the_same(data, start, known):
    whole = joined(stream(data, random_flip=True).batches([range(start + 30)]))
    here = stream(data, random_flip=True)
    here.epoch_size = ROWS if known else None
    assert equal(
        joined(here.batches([range(start, start + 30)])), {key: value[start:] for key, value in whole.items()}
    )
    if start + 30 > ROWS:
        assert here.epoch_size == ROWS


def test_seeds_differ(data):
    assert rows_at(stream(data, seed=0), range(30)) != rows_at(stream(data, seed=1), range(30))


def test_without_shuffling(data):
    assert rows_at(stream(data, shuffle_buffer=1), range(60)) == [[*range(ROWS), *range(7)]]
    with pytest.raises(ValueError, match="`shuffle_buffer` must be at least 1, got 0"):
        stream(data, shuffle_buffer=0)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("processes, accumulation", [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_workers_processes_and_accumulation_change_nothing(data, num_workers, processes, accumulation):
    examples = stream(data, random_flip=True)
    arguments = {"start_step": 5, "num_steps": 4, "gradient_accumulation_steps": accumulation}
    loaders = [
        examples.loader(
            PositionSampler(
                8 // processes // accumulation, num_processes=processes, process_index=process, **arguments
            ),
            num_workers=num_workers,
        )
        for process in range(processes)
    ]
    micro_batches = [batch for together in zip(*loaders, strict=True) for batch in together]
    assert equal(joined(micro_batches), joined(stream(data, random_flip=True).batches([range(40, 72)])))


def test_nothing_that_is_skipped_is_decoded(data, monkeypatch):
    examples = stream(data)
    decode, decoded = Decoder.__call__, []
    monkeypatch.setattr(Decoder, "__call__", lambda self, payload: decoded.append(1) or decode(self, payload))
    sampler = PositionSampler(4, start_step=10_000, num_steps=2, num_processes=2, process_index=1)
    assert len(list(examples.loader(sampler))) == 2
    assert len(decoded) == 8


def test_held_out_rows_are_never_seen(data):
    chosen = choose_holdout(data, 0.3, seed=1)
    examples = stream(data, holdout=chosen)
    (rows,) = rows_at(examples, range(3 * ROWS))
    size = examples.epoch_size
    assert 0 < size < ROWS
    for epoch in range(2):
        epoch_rows = rows[epoch * size : (epoch + 1) * size]
        assert len(set(epoch_rows)) == size and set(epoch_rows) == set(rows)
    assert rows_at(stream(data, holdout=chosen), range(100, 120)) == [rows[100:120]]
    with pytest.raises(ValueError, match="`holdout` must leave images"):
        rows_at(stream(data, holdout=Holdout(threshold=2**64 - 1)), range(1))


def test_random_crops_are_those_of_a_store(tmp_path):
    from ddpm_hf.data.examples import StoredImages
    from ddpm_hf.data.store import PixelStore

    shards(tmp_path / "wide", size=(8, 19))
    arguments = {"train_data_dir": tmp_path / "wide", "cache_dir": tmp_path / "c"}
    source = load_images(**arguments)
    store = PixelStore.build(source, (8, 8), random_crop=True, progress=False)
    streamed = stream(load_images(**arguments, streaming=True), random_crop=True, random_flip=True)
    (batch,) = streamed.batches([range(ROWS)])
    # The store shuffles otherwise, so the same rows are put at the same positions.
    stored = StoredImages(source, store, 3, holdout=Holdout(), random_crop=True, random_flip=True)
    order = batch["rows"].numpy()
    from ddpm_hf.data.order import shuffled_rows

    stored.indices = order[np.argsort(shuffled_rows(3, np.arange(ROWS), ROWS))]
    assert torch.equal(next(stored.batches([range(ROWS)]))["images"], batch["images"])


class TestUnreadable:
    def test_named(self, tmp_path):
        data = shards(tmp_path / "shards", damaged={31})
        with pytest.raises(ValueError, match="row 31: not an image .*; `skip_unreadable` leaves such images out"):
            rows_at(stream(data), range(ROWS))

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_skipped_listed_and_replaced_within_the_block(self, tmp_path, num_workers):
        damaged = {0, 8, 31, 52}
        data = shards(tmp_path / "shards", damaged)
        whole = shards(tmp_path / "whole")
        examples = stream(data, skip_unreadable=True)
        sampler = PositionSampler(1, num_steps=ROWS)
        rows = joined(examples.loader(sampler, num_workers=num_workers))["rows"].tolist()
        (clean,) = rows_at(stream(whole), range(ROWS))
        for position, (got, planned) in enumerate(zip(rows, clean, strict=True)):
            assert got == planned if planned not in damaged else got not in damaged and got // 10 == position // 10
        assert sorted(examples.skipped) == sorted(damaged)
        assert "row 31: not an image" in examples.skipped[31]

    def test_a_block_of_them(self, tmp_path):
        data = shards(tmp_path / "shards", set(range(10, 20)))
        with pytest.raises(ValueError, match="10 rows in a row are unreadable, such as row"):
            rows_at(stream(data, skip_unreadable=True), range(ROWS))


def test_a_stream_that_told_a_wrong_length(data):
    examples = stream(data)
    examples.epoch_size = 60
    with pytest.raises(ValueError, match="53 training rows in this epoch, not 60"):
        rows_at(examples, range(60))


def test_channels_are_deduced(tmp_path):
    parquet(tmp_path / "d" / "0.parquet", {"x": [png(noise(i, channels=1)) for i in range(5)]})
    data = load_images(train_data_dir=tmp_path / "d", streaming=True)
    examples = StreamedImages(data, (8, 8), None, 0, holdout=Holdout())
    assert examples.shape == (1, 8, 8)


def test_a_folder_of_files_streams_too(tmp_path):
    from pictures import write_png

    for i in range(12):
        write_png(tmp_path / f"{i:02d}.png", noise(i))
    data = load_images(train_data_dir=tmp_path, streaming=True)
    assert data.num_rows == 12
    assert sorted(rows_at(stream(data), range(12))[0]) == list(range(12))
