"""How good samples are: their distances from real images, each beside what other real images would get."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .extraction import on_all_processes, shared_statistics
from .features import Extractor
from .metrics import (
    GaussianStatistics,
    class_score,
    frechet_distance,
    kernel_distance,
    manifold_scores,
    resampled_error,
)

QUALITY_METRICS = ("frechet", "kid", "prdc", "is")
HIGHER_IS_BETTER = frozenset("precision recall density coverage class_score inception_score".split())
NEIGHBOURS = 5
# Metric -> the figures that it gives.
_FIGURES = {
    "frechet": ("frechet_distance",),
    "kid": ("kernel_distance",),
    "prdc": ("precision", "recall", "density", "coverage"),
    "is": ("class_score",),
}
# Of a normal distribution within ±1.96 standard deviations lie 95 %.
_Z = 1.96


class FeatureSets(NamedTuple):
    """Features of samples, of the images they should resemble, and of training images in the place of samples."""

    samples: np.ndarray
    reference: np.ndarray
    floor: np.ndarray | None


def score(
    sets: FeatureSets, extractor: Extractor, metrics: Sequence[str], *, resamples: int = 50, seed: int = 0
) -> list[dict[str, Any]]:
    """Measure samples, as entries of a report; all processes work, and all get the result.

    Each has a `value`; its `standard_error` and the ends of an interval that holds the truth for this number of images
    in 95 of 100 cases; and its `floor`, the same measurement on training images instead of samples. A distance of few
    images is too large, for samples and floor alike: what tells is how far apart the two are.

    Args:
        sets: features by `extractor`; `floor` best has as many as `samples`.
        extractor: names the metrics: only the distance by the genuine Inception is called "fid", and only if there are
            more images than features.
        metrics: of `QUALITY_METRICS`.
        resamples: random halves behind the standard errors; 0 for no errors.
        seed: of their choice.

    Raises:
        ValueError: as `check_quality`.
    """
    samples, reference, floor = sets
    check_quality(extractor, metrics, min(len(samples), len(reference)), resamples)
    names = metric_names(extractor, min(len(samples), len(reference)))
    values = _measure(samples, reference, extractor, metrics, shared_statistics)
    errors = {}
    if resamples:
        errors = resampled_error(
            lambda i, j: _measure(samples[i], reference[j], extractor, metrics),
            *(len(samples), len(reference)),
            resamples=resamples,
            seed=seed,
            mapper=on_all_processes,
        )
    floors = {} if floor is None else _measure(floor, reference, extractor, metrics, shared_statistics)
    common = {
        "n": len(samples),
        "reference_n": len(reference),
        "floor_n": None if floor is None else len(floor),
        "extractor": extractor.name,
        "preprocessing": extractor.preprocessing,
    }
    entries = []
    for name, value in values.items():
        entry = {"name": names.get(name, name), "value": value, **interval(value, errors.get(name))}
        entry |= {"floor": floors.get(name), **common}
        if name == "frechet_distance" and few_images(extractor, min(len(samples), len(reference))):
            entry["note"] = "fewer images than features: too large by about its floor"
        if name in _FIGURES["prdc"]:
            entry["neighbours"] = NEIGHBOURS
        entries.append(entry)
    return entries


def check_quality(extractor: Extractor, metrics: Sequence[str], fewest: int, resamples: int) -> None:
    """Find out before any image is drawn whether it can be scored.

    Args:
        extractor, metrics, resamples: as for `score`.
        fewest: samples or reference images, whichever are fewer.

    Raises:
        ValueError: for an unknown metric, "is" without classes, or too few images.
    """
    unknown = sorted(set(metrics) - set(QUALITY_METRICS))
    if unknown:
        raise ValueError(f"metrics has {', '.join(unknown)}; choose from {', '.join(QUALITY_METRICS)}")
    if "is" in metrics and extractor.head is None:
        raise ValueError(f"metric 'is' needs an extractor with classes, which {extractor.name} has not; leave it out")
    needed = NEIGHBOURS + 1 if "prdc" in metrics else 2
    halves = " in each of the random halves behind the errors" if resamples else ""
    if fewest < needed * (2 if resamples else 1):
        raise ValueError(
            f"{fewest} images are too few for {', '.join(metrics)}, which need {needed}{halves}; take more"
            + (", or --resamples 0" if resamples else "")
        )


def metric_names(extractor: Extractor, count: int) -> dict[str, str]:
    """The names that only the genuine Inception gives; FID needs more images than features, too."""
    if not extractor.is_inception:
        return {}
    names = {"kernel_distance": "kid", "class_score": "inception_score"}
    return names | ({"frechet_distance": "fid"} if count > extractor.dimension else {})


def figure_names(extractor: Extractor, metrics: Sequence[str], count: int) -> list[str]:
    """What `score` calls the figures of these metrics, with this many images."""
    special = metric_names(extractor, count)
    return [special.get(name, name) for metric in QUALITY_METRICS if metric in metrics for name in _FIGURES[metric]]


def few_images(extractor: Extractor, count: int) -> str | None:
    """A sentence on a Fréchet distance of too few images; None if there are enough."""
    if count > extractor.dimension:
        return None
    return (
        f"{count} images are fewer than the {extractor.dimension} features of {extractor.name} and one: the Fréchet "
        "distance is far too large, as its floor shows, and may only be compared at the same number of images"
        + ("; it is not called FID" if extractor.is_inception else "")
    )


def _statistics(features: np.ndarray) -> GaussianStatistics:
    return GaussianStatistics(features.shape[1]).add(features)


def _measure(
    samples: np.ndarray,
    reference: np.ndarray,
    extractor: Extractor,
    metrics: Sequence[str],
    statistics: Callable[[np.ndarray], GaussianStatistics] = _statistics,
) -> dict[str, float]:
    values = {}
    if "frechet" in metrics:
        values["frechet_distance"] = frechet_distance(statistics(samples), statistics(reference))
    if "kid" in metrics:
        values["kernel_distance"] = kernel_distance(samples, reference)
    if "prdc" in metrics:
        values |= manifold_scores(samples, reference, NEIGHBOURS)
    if "is" in metrics:
        values["class_score"] = class_score(extractor.class_probabilities(samples))
    return values


def interval(value: float, error: float | None) -> dict[str, float | None]:
    """A standard error and the ends of the interval that it makes, as part of a report's entry."""
    ends = (None, None) if error is None else (value - _Z * error, value + _Z * error)
    return {"standard_error": error, "interval_low": ends[0], "interval_high": ends[1]}
