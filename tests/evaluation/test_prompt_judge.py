"""The judge of captioned digits: right about real pictures, fooled by nothing that is wrong."""

import numpy as np
import pytest
import torch
from scipy import stats

from ddpm_hf.data.captioned_digits import ATTRIBUTES, PALETTE, attributes_of, compose, coverage, plans
from ddpm_hf.judges import prompt_judge
from ddpm_hf.judges.prompt_judge import PromptJudge, separate


def pictures_of(plan):
    return torch.from_numpy(compose(plan)).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="module")
def placed():
    """A judge, test pictures and what was asked."""
    judge = PromptJudge("placed")  # its classifier is trained once for all tests
    plan = plans("placed")["test"]
    return judge, pictures_of(plan), {name: plan[name] for name in judge.attributes}


def by_name(entries):
    return {entry["name"]: entry for entry in entries}


def test_it_learns_when_it_is_first_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(prompt_judge, "_EPOCHS", 1)
    judge = PromptJudge("coloured", tmp_path)
    read = judge.read(pictures_of({name: ids[:200] for name, ids in plans("coloured")["test"].items()}))
    assert (read["digit"] == plans("coloured")["test"]["digit"][:200]).mean() > 0.3, "of ten digits"


@pytest.mark.parametrize("level, resolution", [("coloured", 16), ("coloured", 32), ("placed", 32)])
def test_real_pictures_are_read_as_they_were_composed(level, resolution):
    judge = PromptJudge(level)
    plan = plans(level)["test"]
    images = pictures_of(plan)
    if resolution == 16:
        images = torch.nn.functional.avg_pool2d(images.float(), 2).round().to(torch.uint8)
    entries = by_name(judge.score(images, plan))
    assert list(entries) == [
        f"prompt_{name}_{group}" for group in ("seen", "unseen") for name in ("accuracy", *attributes_of(level))
    ]
    for group in ("seen", "unseen"):
        for name in attributes_of(level):
            # n = 1,000: four standard errors of a share of 0.98 are 0.018.
            assert entries[f"prompt_{name}_{group}"]["value"] > (0.96 if name == "digit" else 0.995)
        whole = entries[f"prompt_accuracy_{group}"]
        assert whole["value"] > 0.96 and whole["n"] == whole["ceiling_n"] == 1000
        # At 32x32 these are the very pictures that the ceiling is measured on.
        assert whole["ceiling"] == pytest.approx(whole["value"], abs=0 if resolution == 32 else 0.01)
        low, high = stats.binomtest(round(1000 * whole["value"]), 1000).proportion_ci(method="wilson")
        assert (whole["interval_low"], whole["interval_high"]) == pytest.approx((low, high), abs=1e-5)


def test_shuffled_pictures_score_as_chance_says(placed):
    judge, images, asked = placed
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    straight, shuffled = by_name(judge.score(images, asked)), by_name(judge.score(images[order], asked))
    for name, entry in shuffled.items():
        assert entry["chance"] == pytest.approx(straight[name]["chance"], abs=1e-12)
        error = (entry["chance"] * (1 - entry["chance"]) / entry["n"]) ** 0.5
        assert abs(entry["value"] - entry["chance"]) < 4 * error + 1 / entry["n"]
    # In closed form, of what was asked for instead of what was read, which differs by the judge's mistakes.
    codes = np.ravel_multi_index([asked[name] for name in ATTRIBUTES], [len(v) for v in ATTRIBUTES.values()])
    shares = np.bincount(codes)[codes] / len(codes)
    for first, group in enumerate(("seen", "unseen")):
        expected = shares[first::2].mean()
        assert straight[f"prompt_accuracy_{group}"]["chance"] == pytest.approx(expected, rel=0.05)
        assert straight[f"prompt_size_{group}"]["chance"] == pytest.approx(0.5, abs=0.01)


def test_one_wrong_attribute_is_one_wrong_attribute(placed):
    judge, images, _ = placed
    images = images[:600]
    truth = judge.read(images)
    for name in judge.attributes:
        changed = truth | {name: (truth[name] + 1) % len(ATTRIBUTES[name])}
        if name == "digit":
            changed["digit"] = np.where(truth["digit"] < 0, 0, changed["digit"])
        entries = by_name(judge.score(images, changed))
        groups = {entry.rpartition("_")[2] for entry in entries}
        for group in groups:
            assert entries[f"prompt_accuracy_{group}"]["value"] == 0
            for other in judge.attributes:
                assert (entries[f"prompt_{other}_{group}"]["value"] > 0.98) == (other != name)


def test_noise_soft_edges_and_other_pictures(placed):
    judge, images, asked = placed
    draw = torch.Generator().manual_seed(0)
    noisy = (images + 15 * torch.randn(images.shape, generator=draw)).clamp(0, 255).to(torch.uint8)
    entries = by_name(judge.score(noisy, asked))
    for name in ("colour", "ground", "place"):
        assert entries[f"prompt_{name}_unseen"]["value"] > 0.98
    # Nothing is in a picture of one colour, whatever was asked for.
    blank = images[:, :, :1, :1].expand_as(images).contiguous()
    assert (judge.read(blank)["digit"] == -1).all()
    pure = torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=draw)
    assert by_name(judge.score(pure, asked))["prompt_accuracy_seen"]["value"] < 0.01


def test_ink_is_told_from_ground_for_every_pair_of_colours():
    """The cut gives back the coverage that was composed, whatever the colours: mixtures of no two are a third."""
    palette = torch.tensor(list(PALETTE.values()), dtype=torch.float32)
    count = len(palette)
    ink, ground = (ids.flatten() for ids in torch.meshgrid(torch.arange(count), torch.arange(count), indexing="ij"))
    ink, ground = ink[ink != ground], ground[ink != ground]
    covered = torch.from_numpy(coverage(np.arange(4000, 4000 + len(ink)), 36)) / 255
    images = (
        palette[ground][..., None, None] * (1 - covered[:, None]) + palette[ink][..., None, None] * covered[:, None]
    )
    found_ground, found_ink, found = separate(images.round().to(torch.uint8))
    assert torch.equal(found_ground, ground) and torch.equal(found_ink, ink)
    # Rounding to 8 bits moves a pixel by up to half a level of at least 130 between two colours.
    torch.testing.assert_close(found, covered, rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("images", "changed", "words"),
    [
        (torch.zeros(2, 3, 16, 16), {}, "`images` must be uint8 .n, 3, S, S. with n > 0, got torch.float32"),
        (torch.zeros(2, 1, 16, 16, dtype=torch.uint8), {}, "`images` must be uint8"),
        (torch.zeros(0, 3, 16, 16, dtype=torch.uint8), {}, "with n > 0, got torch.uint8 .0, 3, 16, 16."),
        (torch.zeros(2, 3, 16, 12, dtype=torch.uint8), {}, "`images` must be uint8"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), {"digit": None}, "`asked` must hold digit, got colour, ground"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), {"ground": [0, 8]}, "ids of ground below 8, got 8"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), {"colour": [1]}, "an id of colour for each of 2 images"),
    ],
)
def test_what_cannot_be_judged(images, changed, words):
    asked = {"digit": [0, 1], "colour": [1, 2], "ground": [2, 3]} | changed
    with pytest.raises(ValueError, match=words):
        PromptJudge("coloured").score(images, {name: ids for name, ids in asked.items() if ids is not None})
    with pytest.raises(ValueError, match="`level` must be one of coloured, placed, got 'easy'"):
        PromptJudge("easy")
