"""Which images are measured on: the recorded ones, and all others only when asked for."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ddpm_hf.evaluation.image_sets import find_images


@pytest.fixture
def run(trained_run):
    """The settings of the run."""
    return yaml.safe_load((trained_run / "training_config.yaml").read_text())


def everything(images, batch_size=4):
    batches = list(images.batches(batch_size))
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def test_held_out_and_training_images_make_up_the_whole(run, trained_run):
    kept, held = (find_images((8, 8), 3, run=run, split=split) for split in ("train", None))
    assert (held.split, held.count, kept.split, kept.count) == ("held_out", 10, "train", 30)
    rows = [everything(images)["rows"].tolist() for images in (held, kept)]
    assert sorted(rows[0] + rows[1]) == list(range(40))
    # The loop trained on the second ones: it says how many they were.
    assert run["recorded"]["training_images"] == 30
    # A first few are the same few, and a fixed sample of both classes rather than the first rows.
    few = find_images((8, 8), 3, run=run, most=7, labelled=True)
    assert few.count == 7
    assert everything(few)["rows"].tolist() == everything(held)["rows"].tolist()[:7]
    assert set(everything(few)["class_labels"].tolist()) == {0, 1}


def test_images_are_those_of_their_rows(run, image_folder):
    found = everything(find_images((12, 10), 3, run=run, labelled=True))
    files = sorted(image_folder.rglob("*.png"))
    known = {hashlib.sha256(np.asarray(Image.open(f)).tobytes()).digest(): f.parent.name for f in files}
    for image, label in zip(found["images"], found["class_labels"].tolist(), strict=True):
        name = known[hashlib.sha256(image.permute(1, 2, 0).contiguous().numpy().tobytes()).digest()]
        assert ("cat", "dog")[label] == name


def test_captions_are_read_if_asked_for_or_if_the_run_had_them(run, image_folder):
    template = {"init_caption_from_labels": "a photo of a {}", "label_column": "label"}
    (batch,) = find_images((12, 10), 3, train_data_dir=str(image_folder), captioned=True, **template).batches(40)
    labels = everything(find_images((12, 10), 3, train_data_dir=str(image_folder), labelled=True))["class_labels"]
    assert "class_labels" not in batch
    assert batch["captions"].tolist() == [f"a photo of a {('cat', 'dog')[label]}" for label in labels.tolist()]
    captioned = {**run, **template, "recorded": {**run["recorded"], "caption_column": "label"}}
    (batch,) = find_images((12, 10), 3, run=captioned).batches(40)
    assert len(batch["captions"]) == 10
    assert all("captions" not in batch for batch in find_images((12, 10), 3, run=run).batches(40))


def test_moved_data_hold_out_the_same_images(run, image_folder, tmp_path):
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for k, file in enumerate(sorted(image_folder.rglob("*.png"), reverse=True)):
        (moved / f"{k}.png").write_bytes(file.read_bytes())
    here = everything(find_images((8, 8), 3, run=run))["images"]
    there = everything(find_images((8, 8), 3, run=run, split="held_out", train_data_dir=str(moved)))["images"]
    torch.testing.assert_close(here, there)


def folder_with_splits(folder: Path) -> Path:
    for split, value in (("train", 10), ("test", 200)):
        (folder / split).mkdir(parents=True)
        for k in range(3):
            Image.new("L", (8, 8), value + k).save(folder / split / f"{k}.png")
    return folder


@pytest.mark.parametrize(
    ("split", "word", "brightest"), [(None, "test", 202), ("test", "test", 202), ("train", "train", 12)]
)
def test_another_data_set_gives_its_own_test_split(run, tmp_path, split, word, brightest):
    folder = folder_with_splits(tmp_path / "data")
    images = find_images((8, 8), 1, run=run, split=split, train_data_dir=str(folder))
    assert (images.split, images.count, everything(images)["images"].max()) == (word, 3, brightest)


def test_without_splits_all_of_another_data_set(run, image_folder):
    images = find_images((8, 8), 3, train_data_dir=str(image_folder))
    assert (images.split, images.count, len(everything(images)["rows"])) == ("all", 40, 40)


@pytest.mark.parametrize("split", ["held_out", "train"])
def test_a_streamed_run_has_the_same_sides(run, split):
    stored, streamed = (
        everything(find_images((8, 8), 3, run={**run, "streaming": streaming}, split=split))
        for streaming in (False, True)
    )
    order = stored["rows"].argsort()
    torch.testing.assert_close(stored["rows"][order], streamed["rows"])
    torch.testing.assert_close(stored["images"][order], streamed["images"])
    assert find_images((8, 8), 3, run={**run, "streaming": True}, split=split).count is None


def test_a_recorded_split_is_found_again(run, tmp_path):
    folder = folder_with_splits(tmp_path / "data")
    record = {"holdout": {"split": "test", "seed": 0, "threshold": 0}}
    settings = {**run, "train_data_dir": str(folder), "recorded": record}
    images = find_images((8, 8), 1, run=settings)
    assert (images.split, images.count, everything(images)["images"].min()) == ("test", 3, 200)
    kept = find_images((8, 8), 1, run=settings, split="train")
    assert (kept.count, everything(kept)["images"].max()) == (3, 12)


def test_what_is_not_known_is_said(run):
    with pytest.raises(ValueError, match="no data set is known; give --run"):
        find_images((8, 8), 3)
    nothing = {**run, "recorded": {"holdout": {"split": None, "seed": 0, "threshold": 0}}}
    with pytest.raises(ValueError, match="held nothing out of training; give --split train"):
        find_images((8, 8), 3, run=nothing)
    with pytest.raises(ValueError, match="does not record what was held out"):
        find_images((8, 8), 3, run={**run, "recorded": {}})
    with pytest.raises(ValueError, match="`dataset_split` must be .*, got 'dev'"):
        find_images((8, 8), 3, run=run, split="dev")
