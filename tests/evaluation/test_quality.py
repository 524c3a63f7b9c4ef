"""From images to scores with floor and error: what is cached, what is named how, and what is caught."""

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ddpm_hf.evaluation.extraction import features_of_images, features_of_samples
from ddpm_hf.evaluation.image_sets import find_images
from ddpm_hf.evaluation.measurements import measure_memorization, measure_quality
from ddpm_hf.evaluation.quality import FeatureSets, few_images, score
from ddpm_hf.evaluation.samples import Samples
from ddpm_hf.judges.features import Extractor
from ddpm_hf.statistics.distances import GaussianStatistics, frechet_distance, manifold_scores
from ddpm_hf.statistics.intervals import wilson_interval
from ddpm_hf.statistics.memorization import nearest, share_nearer

TINY_FEATURES = 4


def counting_extractor(name="means", dimension=TINY_FEATURES, **others):
    """A real extractor, only a simple one: the mean of each quarter of an image. Counts the images it has seen."""
    seen = []

    def network(images):
        seen.append(len(images))
        return images.float().flatten(1).unfold(1, 48, 48).mean(2)[:, :dimension]

    head = (torch.eye(3, dimension) / 10, torch.zeros(3))
    extractor = Extractor(
        name=name,
        preprocessing="none",
        dimension=dimension,
        network=network,
        device=torch.device("cpu"),
        **{"head": head, **others},
    )
    return extractor, seen


@pytest.fixture
def run(trained_run):
    return yaml.safe_load((trained_run / "training_config.yaml").read_text())


@pytest.fixture
def held_out(run):
    return find_images((8, 8), 3, run=run)


def pixels_of(images):
    return np.concatenate([batch["images"].numpy() for batch in images.batches(16)])


# Features


def test_features_come_in_the_order_of_the_images_and_from_the_cache(held_out, tmp_path):
    extractor, seen = counting_extractor()
    images = pixels_of(held_out)
    expected = images.reshape(10, -1).reshape(10, 4, 48).mean(2)
    found = features_of_images(extractor, held_out, batch_size=3)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(features_of_samples(extractor, images, batch_size=4), expected, rtol=1e-5)
    assert seen == [3, 3, 3, 1, 4, 4, 2]
    np.testing.assert_array_equal(features_of_images(extractor, held_out, batch_size=5), found)
    assert len(seen) == 7  # read, not worked out
    # Another extractor, other images or fewer of them are something else.
    features_of_images(counting_extractor("other")[0], held_out)
    assert len(features_of_images(extractor, held_out.training())) == 30
    assert sum(seen[7:]) == 30


def test_an_interrupted_cache_is_worked_out_again(run, tmp_path):
    held_out = find_images((8, 8), 3, run=run, cache_dir=str(tmp_path / "cache"))
    extractor, seen = counting_extractor()
    found = features_of_images(extractor, held_out)
    (file,) = (tmp_path / "cache").rglob("features-*.npy")
    for content in (b"", file.read_bytes()[:150], b"\x80\x04K\x01."):
        file.write_bytes(content)
        np.testing.assert_array_equal(features_of_images(extractor, held_out), found)
        assert len(file.read_bytes()) > 150
    assert seen == [10] * 4
    # A process that died while it wrote has left this, and nobody reads it.
    file.rename(f"{file}.123.partial")
    np.testing.assert_array_equal(features_of_images(extractor, held_out), found)
    assert seen == [10] * 5


def test_a_stream_is_not_cached(run):
    extractor, seen = counting_extractor("stream")
    streamed = find_images((8, 8), 3, run={**run, "streaming": True})
    first, second = (features_of_images(extractor, streamed) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert seen == [10, 10]


# Scores


def normal(n, shift=0.0, seed=0):
    return np.random.default_rng(seed).standard_normal((n, TINY_FEATURES)) + shift


def test_scores_with_errors_and_floor():
    sets = FeatureSets(normal(300, 0.3, 1), normal(250, 0, 2), normal(300, 0, 3))
    entries = score(sets, counting_extractor()[0], ["frechet", "kid", "prdc", "is"], resamples=40)
    names = ["frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage", "class_score"]
    assert [entry["name"] for entry in entries] == names
    by_name = {entry["name"]: entry for entry in entries}
    for entry in entries:
        assert (entry["n"], entry["reference_n"], entry["floor_n"]) == (300, 250, 300)
        assert entry["extractor"] == "means" and entry["preprocessing"] == "none"
        assert entry["interval_low"] < entry["value"] < entry["interval_high"]
        half = 1.96 * entry["standard_error"]
        assert entry["interval_high"] - entry["value"] == pytest.approx(half)
    distance = by_name["frechet_distance"]
    # 4 · 0.3² = 0.36 between the distributions, and a little for few images, as the floor has it too.
    assert distance["value"] == pytest.approx(0.36 + distance["floor"], abs=3 * distance["standard_error"])
    assert 0 < distance["floor"] < 0.1 < distance["interval_low"]
    assert by_name["precision"]["value"] == manifold_scores(sets.samples, sets.reference, 5)["precision"]
    assert by_name["precision"]["neighbours"] == 5 and "neighbours" not in distance


def test_the_interval_holds_the_truth():
    # The expected distance at this number of images, from many pairs of sets.
    def distance(seed):
        sets = (normal(120, 0.4, 2 * seed), normal(120, 0, 2 * seed + 1))
        return frechet_distance(*(GaussianStatistics(TINY_FEATURES).add(x) for x in sets))

    expected = np.mean([distance(seed) for seed in range(400)])
    inside = 0
    for seed in range(60):
        sets = FeatureSets(normal(120, 0.4, 2 * seed), normal(120, 0, 2 * seed + 1), None)
        (entry,) = score(sets, counting_extractor()[0], ["frechet"], resamples=30)
        inside += entry["interval_low"] <= expected <= entry["interval_high"]
    assert 50 <= inside <= 60  # 57 on average if it holds 95 %; fewer than 50 has a chance of 1e-4


def test_without_halves_there_is_no_error_and_without_training_images_no_floor():
    (entry,) = score(FeatureSets(normal(9), normal(9, seed=1), None), counting_extractor()[0], ["kid"], resamples=0)
    assert entry["standard_error"] is entry["interval_low"] is entry["floor"] is entry["floor_n"] is None


def test_only_the_genuine_inception_with_enough_images_is_called_fid():
    def names(count, **extractor):
        sets = FeatureSets(normal(count), normal(count, seed=1), None)
        found = score(sets, counting_extractor(**extractor)[0], ["frechet", "kid", "is"], resamples=0)
        return [entry["name"] for entry in found]

    assert names(5, is_inception=True) == ["fid", "kid", "inception_score"]
    assert names(4, is_inception=True) == ["frechet_distance", "kid", "inception_score"]
    assert names(5) == ["frechet_distance", "kernel_distance", "class_score"]
    genuine, other = counting_extractor(is_inception=True)[0], counting_extractor()[0]
    assert few_images(other, 5) is None
    assert "not called FID" in few_images(genuine, 4) and "FID" not in few_images(other, 4)
    assert "4 images are no more than the 4 features" in few_images(other, 4)


def test_what_cannot_be_scored():
    sets = FeatureSets(normal(9), normal(9), None)
    with pytest.raises(ValueError, match="`metrics` must be among frechet, kid, prdc, is, got ssim"):
        score(sets, counting_extractor()[0], ["ssim"])
    with pytest.raises(ValueError, match="must not contain 'is', because means has no classes"):
        score(sets, counting_extractor(head=None)[0], ["is"])
    for count, resamples, metric, words in (
        (5, 0, "prdc", "prdc need at least 6 images, got 5"),
        (11, 3, "prdc", "prdc need at least 12 images, or half as many with --resamples 0, got 11"),
        (1, 0, "kid", "kid need at least 2 images, got 1"),
        (3, 2, "frechet", "frechet need at least 4 images, .*, got 3"),
    ):
        with pytest.raises(ValueError, match=words):
            score(FeatureSets(normal(count), normal(30), None), counting_extractor()[0], [metric], resamples=resamples)
        enough = FeatureSets(normal(30), normal(count + 1), None)
        assert score(enough, counting_extractor()[0], [metric], resamples=resamples)


def test_measured_on_image_sets(held_out):
    extractor, _ = counting_extractor()
    training = held_out.training()
    # Samples that are the training images themselves score exactly what the floor is.
    samples = Samples(images=pixels_of(training)[:12], about={"seed": 7, "sampler": "ddim", "steps": 3})
    entries = measure_quality(samples, held_out, training, extractor, ["frechet", "kid"], resamples=0)
    for entry in entries:
        assert entry["value"] == pytest.approx(entry["floor"]) and (entry["n"], entry["floor_n"]) == (12, 12)
        assert (entry["split"], entry["seed"], entry["sampler"], entry["steps"]) == ("held_out", 7, "ddim", 3)
    with pytest.raises(ValueError, match=r"`samples` must have .*\(3, 8, 8\) of .*, got \(3, 8, 4\)"):
        measure_quality(Samples(images=samples.images[..., :4]), held_out, None, extractor, ["kid"])


# Memorisation


@pytest.mark.parametrize("batch", [3, 7, 100])
def test_nearest_by_brute_force(batch):
    queries, candidates = normal(23), normal(41, seed=1)
    distances = np.linalg.norm(queries[:, None] - candidates, axis=2)

    def batches(features):
        return [features[start : start + batch] for start in range(0, len(features), batch)]

    found = nearest(queries, batches(candidates))
    np.testing.assert_allclose(found.distances, distances.min(1))
    np.testing.assert_array_equal(found.positions, distances.argmin(1))
    own = np.linalg.norm(queries[:, None] - queries, axis=2) + np.diag(np.full(23, np.inf))
    among = nearest(queries, batches(queries), own=0)
    np.testing.assert_allclose(among.distances, own.min(1), rtol=1e-6)
    np.testing.assert_array_equal(among.positions, own.argmin(1))
    last = nearest(queries[9:], batches(queries), own=9)
    np.testing.assert_array_equal(last.positions, own.argmin(1)[9:])


def test_copies_are_caught_and_unseen_images_are_not():
    training, unseen, others = normal(500), normal(200, seed=1), normal(200, seed=2)
    expected = nearest(unseen, [training])
    copied = share_nearer("copied_share_pixels", nearest(training[:150] + 1e-4, [training]), expected)
    assert copied["name"] == "copied_share_pixels" and copied["value"] == 1.0 and copied["interval_low"] > 0.97
    assert copied["floor"] == pytest.approx(0.01) and copied["threshold"] == np.sort(expected.distances)[1]
    honest = share_nearer("copied_share_pixels", nearest(others, [training]), expected)
    assert honest["value"] < 0.05 and honest["interval_low"] < honest["floor"] < honest["interval_high"]
    some = share_nearer(
        "copied_share_pixels", nearest(np.concatenate([others[:90], training[:10]]), [training]), expected
    )
    assert some["value"] >= 0.1 and some["interval_low"] > some["floor"]
    # Data with repeats of their own: their distance is 0, and only what is as near counts.
    twins = share_nearer(
        "copied_share_pixels", nearest(others, [training]), nearest(np.tile(training[:9], (5, 1)), [training])
    )
    assert twins["threshold"] == 0 and twins["value"] == 0


def test_collapsed_samples_are_duplicates():
    real, diverse = normal(300), normal(300, seed=1)
    expected = nearest(real, [real], own=0)
    collapsed = np.tile(normal(30, seed=2), (10, 1)) + 1e-5 * normal(300, seed=3)
    for samples, low, high in ((diverse, 0, 0.06), (collapsed, 1, 1)):
        found = share_nearer("duplicate_share_features", nearest(samples, [samples], own=0), expected)
        assert low <= found["value"] <= high and found["name"] == "duplicate_share_features"


def test_wilson_interval():
    # Wilson (1927) by solving |p - share| = z √(p(1-p)/n) for p.
    for share, count in ((0.0, 128), (0.3, 10), (1.0, 50)):
        low, high = wilson_interval(share, count)
        for p in {low, high} - {0.0, 1.0}:
            assert abs(p - share) == pytest.approx(1.96 * np.sqrt(p * (1 - p) / count), rel=1e-6)
        assert low <= share <= high


def test_memorisation_of_image_sets(held_out, tmp_path):
    extractor, _ = counting_extractor()
    training = held_out.training()
    copied = Samples(images=pixels_of(training)[:12])
    found = measure_memorization(copied, held_out, training, extractor, tmp_path / "a", batch_size=7)
    values = {entry["name"]: entry["value"] for entry in found}
    assert values["copied_share_pixels"] == values["copied_share_features"] == 1.0
    assert values["duplicate_share_pixels"] == 2 / 12  # the two that are nearest to each other, as in the floor
    assert {entry["name"]: entry.get("extractor") for entry in found}["copied_share_features"] == "means"
    names = {"closest_pixels.png", "closest_features.png"}
    names |= {name.replace(".png", "_distances.png") for name in names}
    assert {path.name for path in (tmp_path / "a").iterdir()} == names
    # Each pair of a copy and its original is the same picture twice, one above the other.
    picture = np.asarray(Image.open(tmp_path / "a" / "closest_pixels.png").convert("RGB")).astype(int)
    cell = 8 * 8 + 2  # enlarged to 64 pixels, and a margin
    rows = picture[2 : 2 + cell - 2, -cell * 10 :], picture[2 + cell : 2 + 2 * cell - 2, -cell * 10 :]
    np.testing.assert_array_equal(*rows)
    fresh = np.random.default_rng(5).integers(0, 256, (20, 3, 8, 8)).astype(np.uint8)
    honest = measure_memorization(Samples(images=fresh), held_out, training, None, tmp_path / "b")
    assert [entry["name"] for entry in honest] == ["copied_share_pixels", "duplicate_share_pixels"]
    assert honest[0]["value"] == 0 and honest[0]["median_distance"] > honest[0]["floor_median_distance"]
