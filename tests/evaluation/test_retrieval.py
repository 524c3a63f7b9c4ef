"""Retrieval and zero-shot classification by embeddings whose figures are known."""

from argparse import Namespace
from itertools import combinations

import numpy as np
import pytest
import torch

from ddpm_hf.data.captioned_digits import understand
from ddpm_hf.data.holdout import Holdout
from ddpm_hf.data.sources import load_images
from ddpm_hf.evaluation.image_sets import ImageSet
from ddpm_hf.evaluation.retrieval import RetrievalExam
from ddpm_hf.judges.clip import chance_of_pictures, nearest_captions, picture_ranks
from ddpm_hf.models.clip import Clip, new_clip, new_image_processor, train_clip_tokenizer

COUNT = 600


@pytest.fixture(scope="module")
def images() -> ImageSet:
    data = load_images(captioned=True, size=(16, 16))
    return ImageSet(data=data, holdout=Holdout(split="test"), size=(16, 16), channels=3, most=COUNT)


@pytest.fixture(scope="module")
def exam(images) -> RetrievalExam:
    return RetrievalExam("--metrics", images)


class Known(Clip):
    """Sees the caption of a picture, and of it what `embed` makes of ids of digit, colour and ground."""

    def look(self, pictures):
        return torch.tensor(np.array([self.embed(*self.seen[bytes(each.numpy())]) for each in pictures]))

    def read(self, captions):
        _, ids = understand(captions)
        return torch.tensor(np.array([self.embed(*each) for each in zip(*ids.values(), strict=True)]))


def measured(exam: RetrievalExam, embed) -> dict[str, dict]:
    tokenizer = train_clip_tokenizer(exam.captions, 12)
    sizes = {"width": 32, "layers": 1, "text_width": 64, "text_layers": 1, "embedding_width": 26, "patch": 4}
    clip = Known(new_clip(16, tokenizer, **sizes), tokenizer, new_image_processor(16))
    batch = next(exam.images.batches(COUNT))
    _, ids = understand([str(caption) for caption in batch["captions"]])
    pairs = zip(batch["images"], zip(*ids.values(), strict=True), strict=True)
    object.__setattr__(clip, "embed", embed)
    object.__setattr__(clip, "seen", {bytes(picture.numpy()): each for picture, each in pairs})
    entries = exam.measure(Namespace(parts=clip))
    assert [entry["name"] for entry in entries] == exam.names
    return {entry["name"]: entry for entry in entries}


def one_hot(*ids: int) -> np.ndarray:
    return np.concatenate([np.eye(10)[ids[0]], np.eye(8)[ids[1]], np.eye(8)[ids[2]]]).astype(np.float32)


def test_a_perfect_clip_is_always_right(exam):
    found = measured(exam, one_hot)
    assert len(found) == 6 + 2 * 4 and all(entry["value"] == 1 for entry in found.values())
    first = found["retrieval_caption_at_1"]
    assert first["n"] == COUNT and first["chance"] == 1 / first["captions"] and 200 < first["captions"] < 560
    assert found["retrieval_picture_at_1"]["n"] == first["captions"]
    assert first["interval_low"] == pytest.approx(COUNT / (COUNT + 1.96**2)) and first["interval_high"] == 1
    assert 0.001 < found["zero_shot_accuracy_unseen"]["chance"] < 0.02


def test_a_clip_that_sees_nothing_is_at_chance(exam):
    generator = np.random.default_rng(0)
    found = measured(exam, lambda *ids: generator.normal(size=26).astype(np.float32))
    for name, entry in found.items():
        error = (entry["chance"] * (1 - entry["chance"]) / entry["n"]) ** 0.5
        assert abs(entry["value"] - entry["chance"]) < 4 * error, name


def test_a_clip_that_sees_colours_alone_is_right_about_them_alone(exam):
    found = measured(exam, lambda digit, colour, ground: one_hot(0, colour, ground))
    for group in ("seen", "unseen"):
        assert found[f"zero_shot_colour_{group}"]["value"] == found[f"zero_shot_ground_{group}"]["value"] == 1
        digit = found[f"zero_shot_digit_{group}"]
        assert digit["value"] < 0.2 and found[f"zero_shot_accuracy_{group}"]["value"] == digit["value"]


def test_ranks_of_a_case_that_is_known():
    captions = np.eye(3)
    pictures = np.array([[9, 1, 0], [8, 2, 0], [0, 2, 1], [3, 2, 1], [0, 0, 1]], dtype=np.float32)
    assert picture_ranks(pictures, captions, np.array([0, 0, 1, 1, 2])).tolist() == [1, 1, 1]
    # For the second caption, pictures 2 and 3 come before 0 and 1; for the first, picture 4 is with 2 the last.
    assert picture_ranks(pictures, captions, np.array([1, 1, 2, 2, 0])).tolist() == [4.5, 3, 2]
    assert nearest_captions(pictures, captions).tolist() == [0, 0, 1, 0, 2]


def test_chance_is_the_share_of_all_orders():
    own = np.array([0, 0, 0, 1, 2, 2])
    for first in (1, 2, 5):
        every = list(combinations(range(6), first))
        shares = [np.mean([any(own[k] == caption for k in some) for some in every]) for caption in range(3)]
        assert chance_of_pictures(own, first) == pytest.approx(np.mean(shares))
