"""The exam of a prior, by priors of which it is known what they deserve."""

from functools import cached_property

import numpy as np
import pytest
import torch
from diffusers.pipelines.kandinsky import KandinskyPriorPipelineOutput
from priors import make_prior

from ddpm_hf.data.captioned_digits import captions, never_shown, plans
from ddpm_hf.data.holdout import Holdout
from ddpm_hf.data.sources import load_images
from ddpm_hf.evaluation.image_sets import ImageSet
from ddpm_hf.evaluation.prior_exam import PriorExam
from ddpm_hf.pipelines.prior import PriorPipeline
from ddpm_hf.statistics.centroids import nearness


class Answering(PriorPipeline):
    """Draws nothing: its embeddings are those that `answer` gives for a caption and a generator."""

    def __call__(self, prompt, *, generator, **_):
        pairs = zip(prompt, generator, strict=True)
        return KandinskyPriorPipelineOutput(np.stack([self.answer(*pair) for pair in pairs]), None)


class Held:
    """Held-out pictures of captioned digits, their captions, and what a random CLIP sees in both."""

    def __init__(self, count: int):
        data = load_images(captioned=True, size=(8, 8), dataset_split="test")
        self.images = ImageSet(
            data=data, holdout=Holdout(), others="all", size=(8, 8), channels=3, most=count, skip_unreadable=False
        )
        self.exam, self.prior = PriorExam("--metrics", self.images), Answering(**make_prior().components)
        batch = next(self.images.batches(count))
        self.captions = [str(caption) for caption in batch["captions"]]
        self.pictures = self.prior.codec.embeddings(batch).double().numpy()

    @cached_property
    def texts(self) -> dict[str, np.ndarray]:
        tokens = self.prior.tokenizer([*{*self.captions}], padding="max_length", max_length=12, truncation=True)
        with torch.no_grad():
            embeddings = self.prior.text_encoder(torch.tensor(tokens.input_ids)).text_embeds.numpy()
        return dict(zip({*self.captions}, embeddings, strict=True))

    def judged(self, answer) -> dict[str, dict]:
        self.prior.answer = answer
        return {entry["name"]: entry for entry in self.exam.measure(self.prior)}


@pytest.fixture(scope="module")
def held() -> Held:
    return Held(600)


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / (one @ one) ** 0.5 / (other @ other) ** 0.5)


def test_the_figures_are_those_of_their_definition(held):
    """By loops over pictures, for the first 40 captions; the prior's answer is the embedding of the first picture."""
    exam = PriorExam("--metrics", held.images, 40)
    found = {entry["name"]: entry for entry in exam.measure(_always(held, held.pictures[0]))}
    assert set(found) == set(exam.names) and len(found) == 4
    everything = {caption: held.pictures[np.array(held.captions) == caption] for caption in held.captions}
    centres = {other: members.mean(0) for other, members in everything.items()}
    norms = {other: (centre @ centre) ** 0.5 for other, centre in centres.items()}
    nearest = [max(centres, key=lambda other: picture @ centres[other] / norms[other]) for picture in held.pictures]
    figures = {}
    for k, caption in enumerate(held.captions[:40]):
        alike = [j for j, other in enumerate(held.captions) if other == caption and j != k]
        aim = held.pictures[alike].mean(0) if alike else held.pictures[k]
        digit, colour = _ids(caption)
        group = "unseen" if never_shown(digit, colour) else "seen"
        for what, vector in (
            ("value", held.pictures[0]),
            ("floor", held.texts[caption].astype(np.float64)),
            ("ceiling", held.pictures[k]),
        ):
            if what == "ceiling" and not alike:
                continue
            others = [cosine(vector, members.mean(0)) for other, members in everything.items() if other != caption]
            own = cosine(vector, aim)
            figures.setdefault((f"prior_cosine_{group}", what), []).append(own)
            figures.setdefault((f"prior_recall_at_1_{group}", what), []).append(own > max(others))
        chance = [cosine(picture, aim) for picture in held.pictures]
        figures.setdefault((f"prior_cosine_{group}", "chance"), []).append(np.mean(chance))
        figures.setdefault((f"prior_recall_at_1_{group}", "chance"), []).append(nearest.count(caption) / len(nearest))
    for (name, what), values in figures.items():
        assert found[name][what] == pytest.approx(np.mean(values), abs=1e-6), (name, what)
        assert what != "value" or found[name]["n"] == len(values)


def _always(held: Held, vector: np.ndarray) -> Answering:
    held.prior.answer = lambda caption, generator: vector
    return held.prior


def _ids(caption: str) -> tuple[int, int]:
    asked = plans("coloured")["test"]
    for ids in zip(*(asked[name].tolist() for name in ("digit", "colour", "ground")), strict=True):
        if caption in captions("coloured", ids):
            return ids[:2]
    raise AssertionError(caption)


def test_a_prior_that_ignores_its_caption_scores_at_chance(held):
    def any_picture(caption, generator):
        return held.pictures[torch.randint(len(held.pictures), (), generator=generator)]

    for entry in held.judged(any_picture).values():
        assert entry["interval_low"] <= entry["chance"] <= entry["interval_high"], entry


def test_one_that_copies_the_embedding_of_its_caption_is_told_apart_from_one_that_has_learned(held):
    places = {caption: np.flatnonzero(np.array(held.captions) == caption) for caption in held.captions}

    def like_a_picture(caption, generator):
        return held.pictures[places[caption]][torch.randint(len(places[caption]), (), generator=generator)]

    copied = held.judged(lambda caption, generator: held.texts[caption])
    learned = held.judged(like_a_picture)
    for name, entry in copied.items():
        assert entry["value"] == pytest.approx(entry["floor"], abs=1e-6)
        assert entry["interval_high"] < min(learned[name]["interval_low"], entry["ceiling"]), name


def test_equally_near_centres_share_the_first_place():
    centres = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
    vectors, own = np.array([[3.0, 0.0], [1.0, 1.0], [0.0, -1.0]]), np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    cosines, first = nearness(vectors, own, centres, np.array([0, 1, 2]))
    assert cosines.tolist() == pytest.approx([1.0, 1.0, 0.0]) and first.tolist() == pytest.approx([1 / 2, 1.0, 1 / 2])


def test_pictures_without_captions_are_refused(tmp_path):
    from running import write_pictures

    data = load_images(train_data_dir=write_pictures(tmp_path, each=2))
    images = ImageSet(data=data, holdout=Holdout(), others="all", size=(8, 8), channels=3)
    with pytest.raises(ValueError, match="--metrics prior needs captions, and .* has none"):
        PriorExam("--metrics", images)
