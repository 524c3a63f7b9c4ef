"""Captioned digits: true captions, real handwriting, and nothing of the test side in training."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_hf.data import captioned_digits as module
from ddpm_hf.data.captioned_digits import (
    ATTRIBUTES,
    CAPTIONS,
    HANDWRITING,
    PALETTE,
    attributes_of,
    captioned_digits,
    captions,
    compose,
    coverage,
    digits,
    plans,
    understand,
)
from ddpm_hf.data.sources import load_images
from ddpm_hf.data.store import PixelStore


@pytest.fixture(scope="module", autouse=True)
def all_of_the_training_pictures(few_captioned_digits):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(HANDWRITING, "train", few_captioned_digits)
        yield


@pytest.fixture(scope="module", params=list(CAPTIONS))
def plan(request):
    """A level and its plans: split -> handwriting and ids."""
    return request.param, plans(request.param)


def combinations(plan, *names):
    return Counter(zip(*(plan[name].tolist() for name in names), strict=True))


def test_handwriting_is_on_one_side_only_and_shows_the_digit_asked_for(plan):
    _, splits = plan
    pixels, classes = digits()
    sides = [set(split["handwriting"].tolist()) for split in splits.values()] + [set(HANDWRITING["judge"])]
    assert [len(side) for side in sides] == [2500, 1000, 1500]
    contents = [{pixels[row].tobytes() for row in side} for side in sides]
    assert len(set.union(*contents)) == sum(map(len, contents)) == 5000
    for split in splits.values():
        assert np.array_equal(classes[split["handwriting"]], split["digit"])
    labels = load_images(class_conditional=True).rows["label"]
    assert np.array_equal(classes, labels)


def test_some_combinations_are_only_in_the_test_pictures(plan):
    _, splits = plan
    trained, tested = (combinations(splits[name], "digit", "colour") for name in ("train", "test"))
    assert len(trained) == 70 and len(tested) == 80
    unseen = tested.keys() - trained.keys()
    # One colour of each digit; and each colour with others.
    assert sorted(digit for digit, _ in unseen) == list(range(10)) and {colour for _, colour in unseen} == set(
        range(8)
    )
    pairs = list(zip(splits["test"]["digit"], splits["test"]["colour"], strict=True))
    assert not unseen & set(pairs[::2]) and unseen == set(pairs[1::2])
    assert np.array_equal(splits["test"]["handwriting"][::2], splits["test"]["handwriting"][1::2])
    for split in splits.values():
        assert (split["colour"] != split["ground"]).all()


def test_combinations_come_equally_often(plan):
    level, splits = plan
    for digit in range(10):
        here = splits["train"]["digit"] == digit
        counts = combinations({name: ids[here] for name, ids in splits["train"].items()}, *attributes_of(level))
        assert len(counts) == (49 if level == "coloured" else 490)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_captions_tell_what_pixels_show(plan):
    level, splits = plan
    some = {name: ids[:300] for name, ids in splits["train"].items()}
    names = attributes_of(level)
    for number, picture in enumerate(compose(some).astype(int)):
        words = {name: ATTRIBUTES[name][some[name][number]] for name in names}
        ink, ground = (np.array(PALETTE[words[name]]) for name in ("colour", "ground"))
        assert Counter(map(tuple, picture.reshape(-1, 3))).most_common(1)[0][0] == PALETTE[words["ground"]]
        far = np.abs(picture - ground).sum(2)
        assert np.abs(picture[np.unravel_index(far.argmax(), far.shape)] - ink).max() <= 1
        inked = np.argwhere(far > 0.5 * np.abs(ink - ground).sum())
        (top, left), (bottom, right) = inked.min(0), inked.max(0) + 1
        assert (max(bottom - top, right - left) > 15) == (words.get("size") != "small")
        if level == "placed":
            down, across = (top + bottom) / 2 - 16, (left + right) / 2 - 16
            rows, columns = ("top", "bottom"), ("left", "right")
            corner = f"{rows[int(down > 0)]} {columns[int(across > 0)]}"
            where = "centre" if max(abs(down), abs(across)) <= 2 else corner
            assert where == words["place"] and (where == "centre" or min(abs(down), abs(across)) >= 4)
        for caption in captions(level, [some[name][number] for name in names]):
            assert all(word in caption for word in words.values()) and "{" not in caption


def test_resizing_is_that_of_pillow():
    """An independent resizer: antialiased linear interpolation, then the same darkness and the same place."""
    pixels, _ = digits()
    for side in (16, 25, 36):
        for row in range(0, 5000, 500):
            resized = np.asarray(Image.fromarray(pixels[row]).resize((side, side), Image.Resampling.BILINEAR), float)
            resized *= 255 / resized.max()
            found = coverage(np.array([row]), side)[0]
            inked = np.argwhere(resized > 127)
            (top, left), (bottom, right) = inked.min(0), inked.max(0) + 1
            height, width = bottom - top, right - left
            shown = found[16 - height // 2 :, 16 - width // 2 :][:height, :width]
            # Pillow rounds twice, to 8 bits, before the ink is made darker again.
            np.testing.assert_allclose(shown, resized[top:bottom, left:right], atol=4)


def test_moved_ink_is_the_same_ink():
    rows = np.arange(3)
    still = coverage(rows, 16)
    moved = coverage(rows, 16, right=np.array([0, 3, -7]), down=np.array([2, 0, 5]))
    for one, other, shift in zip(still, moved, ((2, 0), (0, 3), (5, -7)), strict=True):
        assert np.array_equal(np.roll(one, shift, (0, 1)), other)


def test_every_wording_is_understood(plan):
    level, splits = plan
    ids = {name: splits["test"][name] for name in attributes_of(level)}
    several = [captions(level, one) for one in zip(*ids.values(), strict=True)]
    for wording in range(len(CAPTIONS[level])):
        found, asked = understand([each[wording] for each in several])
        assert found == level and list(asked) == list(ids)
        assert all(np.array_equal(asked[name], ids[name]) for name in ids)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ([], "none"),
        (["a red seven on a blue ground", "a photo"], "'a photo'"),
        (
            ["a red seven on a blue ground", "a small red seven on a blue ground, centre"],
            "'a red seven on a blue ground'",
        ),
    ],
)
def test_other_captions_are_not_understood(asked, found):
    with pytest.raises(ValueError, match=f"captions of captioned digits, all of one level, got {found}"):
        understand(asked)


def test_the_folder_is_a_data_set_to_train_on_and_is_built_once(tmp_path, monkeypatch):
    monkeypatch.setitem(HANDWRITING, "train", range(0, 100))
    folder = captioned_digits("placed", tmp_path)
    data = load_images(train_data_dir=folder, cache_dir=tmp_path)
    assert data.num_rows == 800 and data.own_split == "test" and data.own_split_data.num_rows == 2000
    plan = plans("placed")["test"]
    store = PixelStore.build(data.own_split_data, (32, 32), cache_dir=tmp_path, progress=False)
    pictures = torch.from_numpy(store.gather(np.arange(2000))).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(pictures, compose(plan))
    row = data.own_split_data.rows[7]
    assert row["caption"] == captions("placed", [plan[name][7] for name in ATTRIBUTES])
    assert {name: row[name] for name in plan} == {name: ids[7] for name, ids in plan.items()}
    assert data.features["place"].names == list(ATTRIBUTES["place"])
    monkeypatch.setattr(module, "compose", None)
    assert captioned_digits("placed", tmp_path) == folder


def test_what_cannot_be_built(tmp_path):
    with pytest.raises(ValueError, match="`level` must be one of coloured, placed, got 'hard'"):
        captioned_digits("hard", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="`cache_dir` must be writable"):
        captioned_digits("coloured", tmp_path / "file")
