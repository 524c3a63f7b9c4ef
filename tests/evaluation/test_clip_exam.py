"""CLIP score and the rank of a sample's own caption, against numpy on the features that transformers gives."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from running import load_script
from texts import save_clip, settings_of
from transformers import BertConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from ddpm_hf.evaluation.evaluator import Evaluator
from ddpm_hf.evaluation.image_sets import ImageSet
from ddpm_hf.evaluation.request import Request
from ddpm_hf.judges.clip import caption_scores
from ddpm_hf.models.clip import load_clip
from ddpm_hf.statistics.intervals import median_interval

NAMES = ["clip_score", "clip_recall_at_1", "clip_median_rank"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


def cosines(clip, images: np.ndarray, captions: list[str]) -> np.ndarray:
    """(n, N), float64, of uint8 images (n, 3, H, W): by one call of CLIPModel with its own tokenizer and processor."""
    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), CLIPTokenizer.from_pretrained(clip)
    pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in images]
    pixels = CLIPImageProcessorPil.from_pretrained(clip)(pictures, return_tensors="pt")
    tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        found = model(**pixels, **tokens)
    return found.image_embeds.double().numpy() @ found.text_embeds.double().numpy().T


def test_evaluate_measures_samples_and_real_pictures_alike(text_run, clip, tmp_path, monkeypatch, capsys):
    reads, batches = [], ImageSet.batches
    monkeypatch.setattr(ImageSet, "batches", lambda self, size: reads.append(size) or batches(self, size))
    count = 130
    flags = f"--metrics clip --clip_model {clip} --num_images {count} --max_images 100 --num_inference_steps 2".split()
    load_script("evaluate.py").main([str(text_run), *flags, "--output_dir", str(tmp_path)])
    entries = json.loads((tmp_path / "evaluation.json").read_text())["metrics"]
    assert [entry["name"] for entry in entries] == NAMES
    assert len(reads) == 2, "captions and pictures of the real images are read once each"

    request = Request(model=str(text_run), metrics=["clip"], clip_model=str(clip), num_images=count, max_images=100)
    request.settings, request.num_inference_steps = settings_of(text_run), 2
    evaluator = Evaluator(request)
    (real,) = evaluator.reference.batches(1000)
    drawn = evaluator._draw(evaluator.pipeline, None, 2).images
    asked = [str(caption) for caption in real["captions"]]
    distinct = sorted(set(asked))
    assert len(asked) == 100 and 2 < len(distinct) < 100, "some have the same caption"
    for images, key, size in ((drawn, "value", count), (real["images"].numpy(), "ceiling", 100)):
        table = cosines(clip, images, distinct)
        mine = [table[k, distinct.index(asked[k % 100])] for k in range(size)]
        ranks = [1 + sum(value > near for value in row) for row, near in zip(table, mine, strict=True)]
        assert len(images) == size and len(set(ranks)) > 5
        score, first, median = entries
        nearness = 100 * np.maximum(mine, 0)
        assert score[key] == pytest.approx(nearness.mean(), abs=1e-4) and nearness.mean() > 1
        assert first[key] == pytest.approx(np.mean([rank == 1 for rank in ranks]), abs=1e-9)
        assert median[key] == np.median(ranks)
        if key == "value":
            assert score["standard_error"] == pytest.approx(nearness.std(ddof=1) / count**0.5, rel=1e-3)
            assert score["chance"] == pytest.approx(100 * np.maximum(table, 0).mean(), abs=1e-4)
    assert (first["chance"], median["chance"]) == (1 / len(distinct), (len(distinct) + 1) / 2)
    for entry in entries:
        assert (entry["n"], entry["ceiling_n"], entry["captions"]) == (count, 100, len(distinct))
        assert entry["interval_low"] <= entry["value"] <= entry["interval_high"]
        assert entry["extractor"].startswith(f"clip:{clip.name}@") and entry["steps"] == 2
        assert entry["preprocessing"] == "the CLIP's: shortest edge 16, height 16, width 16"
        assert entry["dataset"] == "captioned digits" and "captions_cut" not in entry
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["metric", "value", "ceiling", "chance", "n", "sampler", "data"]


def test_ranks_of_a_case_that_is_known():
    captions = 3.0 * np.eye(4)  # of any length
    pictures = np.array([[9, 1, 0, 0], [0, 2, 3, 1], [1, 2, 3, 4], [0, 0, 0, -1]], dtype=np.float32)
    found = caption_scores(pictures, captions, np.array([0, 1, 0, 3]))
    assert found["rank"].tolist() == [1, 2, 4, 4] and found["first"].tolist() == [1, 0, 0, 0]
    np.testing.assert_allclose(found["score"], [900 / 82**0.5, 200 / 14**0.5, 100 / 30**0.5, 0])
    np.testing.assert_allclose(found["chance"], [250 / 82**0.5, 150 / 14**0.5, 250 / 30**0.5, 0])
    # Two captions that read the same share a place, and a CLIP that sees nothing is at chance.
    twice = caption_scores(pictures[:1], captions[[0, 0, 1, 2]], np.array([1]))
    assert twice["rank"].tolist() == [1.5] and twice["first"].tolist() == [0.5]
    blind = caption_scores(pictures, np.ones((4, 4)), np.array([0, 1, 2, 3]))
    assert blind["rank"].tolist() == [2.5] * 4 and blind["first"].tolist() == [0.25] * 4


def test_captions_that_a_clip_does_not_read_to_their_end_are_counted(clip):
    found = load_clip(clip, "--clip_model")
    captions = ["c" * 46, "c" * 47, "🍎" * 12]  # of 48 tokens, two of them special: bytes
    assert found.count_cut(captions) == 2
    assert found.read(captions).shape == (3, 16)


def test_shuffled_captions_are_at_chance_and_own_ones_are_first():
    generator = np.random.default_rng(0)
    captions = generator.normal(size=(50, 64))
    own = np.arange(1000) % 50
    pictures = captions[own] + 0.3 * generator.normal(size=(1000, 64))
    found = caption_scores(pictures, captions, own)
    assert found["first"].mean() > 0.999 and found["score"].mean() > 90
    shuffled = caption_scores(pictures, captions, generator.permutation(own))
    assert abs(shuffled["first"].mean() - 1 / 50) < 4 * (0.02 * 0.98 / 1000) ** 0.5
    low, high = median_interval(shuffled["rank"], z=4)
    assert low <= 25.5 <= high and high - low < 10
    assert abs(shuffled["score"].mean() - found["chance"].mean()) < 4 * shuffled["score"].std() / 1000**0.5


def test_the_interval_of_a_median_holds_it_as_often_as_it_says():
    generator = np.random.default_rng(0)
    for size in (10, 101):
        ends = np.array([median_interval(generator.exponential(size=size)) for _ in range(2000)])
        held = ((ends[:, 0] <= np.log(2)) & (np.log(2) <= ends[:, 1])).mean()
        assert 0.94 < held < 0.985
    assert median_interval([3.0]) == (3.0, 3.0)


@pytest.fixture(scope="module")
def others(clip, tmp_path_factory):
    """Folders that are no CLIP."""
    folder = tmp_path_factory.mktemp("others")
    BertConfig(hidden_size=32).save_pretrained(folder / "bert")
    half = CLIPModel.from_pretrained(clip)
    kept = {name: value for name, value in half.state_dict().items() if not name.startswith("text_model")}
    half.save_pretrained(folder / "half", state_dict=kept)
    (folder / "empty").mkdir()
    for name in ("mute", "wide"):
        half.save_pretrained(folder / name)
    half.config.text_config.hidden_size = 64
    half.config.save_pretrained(folder / "wide")
    return folder


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (None, "--clip_model must be given with --metrics clip: the Hub name or folder of a CLIP"),
        ("bert", "--clip_model must be the Hub name or folder of a CLIPModel .*bert: .*it is a model of type 'bert'"),
        ("half", "--clip_model must be .*half: .*it has no weights text_model"),
        ("empty", "--clip_model must be .*empty: "),
        ("mute", "--clip_model must be .*mute: its tokenizer has 2 of 514 tokens"),
        ("wide", "--clip_model must be .*wide: "),
        ("someone/clip", "--clip_model must be .*, got someone/clip: "),
    ],
)
def test_no_clip_is_named(text_run, others, place, words):
    name = None if place is None else place if "/" in place else str(others / place)
    with pytest.raises(ValueError, match=words):
        Evaluator(Request(model=str(text_run), settings=settings_of(text_run), metrics=["clip"], clip_model=name))


def test_only_text_to_image_models_have_captions(trained_run, clip):
    request = Request(model=str(trained_run), settings=settings_of(trained_run), metrics=["clip"])
    request.clip_model = str(clip)
    with pytest.raises(ValueError, match="--metrics clip needs a text-to-image model, got one that is told class_lab"):
        Evaluator(request)
