"""What goes with the images: numbers and words of any column, the same from a store and from a stream."""

from dataclasses import dataclass, replace

import pytest
import torch
from pictures import noise, parquet, png

from ddpm_hf.data.examples import StoredImages
from ddpm_hf.data.holdout import Holdout
from ddpm_hf.data.order import PositionSampler
from ddpm_hf.data.sources import load_images
from ddpm_hf.data.store import PixelStore
from ddpm_hf.data.streaming import StreamedImages

WORDS = ["a red apple", "", "ein Käfer 🐞", "four"]


@dataclass(frozen=True)
class Words:
    name: str

    def read(self, cell):
        if cell is None:
            raise ValueError(f"{self.name!r} must hold words, got none")
        return cell.upper()


@dataclass(frozen=True)
class Length:
    name: str

    def read(self, cell):
        return len(cell) / 2


def described(folder, words, **arguments):
    """Four images with words, which are read as such and as a number."""
    parquet(folder / "0.parquet", {"image": [png(noise(i)) for i in range(4)], "text": words})
    data = load_images(train_data_dir=folder, image_column="image", cache_dir=folder.with_name("c"), **arguments)
    return replace(data, columns={"words": Words("text"), "length": Length("text")})


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("streaming", [False, True])
def test_numbers_and_words_travel_with_their_images(tmp_path, streaming, num_workers):
    data = described(tmp_path / "d", WORDS, streaming=streaming)
    if streaming:
        images = StreamedImages(data, (8, 8), 3, 0, holdout=Holdout(), shuffle_buffer=3)
    else:
        store = PixelStore.build(data, (8, 8), cache_dir=tmp_path / "c", progress=False)
        images = StoredImages(data, store, 0, holdout=Holdout())
    (batch,) = images.loader(PositionSampler(4, num_steps=1), num_workers=num_workers)
    rows = batch["rows"].tolist()
    assert sorted(rows) == [0, 1, 2, 3]
    assert batch["words"].tolist() == [WORDS[row].upper() for row in rows]
    assert torch.equal(batch["length"], torch.tensor([len(WORDS[row]) / 2 for row in rows], dtype=torch.float64))
    for row, image in zip(rows, batch["images"].numpy(), strict=True):
        assert (image == noise(row).transpose(2, 0, 1)).all()


def test_a_cell_that_cannot_be_read_is_named_by_its_row(tmp_path):
    data = described(tmp_path / "d", [*WORDS[:3], None])
    with pytest.raises(ValueError, match=r"^'text' must hold words, got none in row 3 of .*/d\.$"):
        PixelStore.build(data, (8, 8), 3, cache_dir=tmp_path / "c", progress=False)


def test_the_same_column_read_otherwise_is_another_store(tmp_path):
    data = described(tmp_path / "d", WORDS)
    other = replace(data, columns={"words": Length("text")})
    stores = [PixelStore.build(d, (8, 8), cache_dir=tmp_path / "c", progress=False) for d in (data, other, data)]
    assert [store.extra["words"][[0]].tolist() for store in stores] == [["A RED APPLE"], [5.5], ["A RED APPLE"]]
