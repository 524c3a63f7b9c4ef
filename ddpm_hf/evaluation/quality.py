"""Sample quality: distances from real images, each with the floor that real training images get."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ..judges.features import Extractor, load_extractor
from ..statistics.distances import (
    GaussianStatistics,
    class_score,
    frechet_distance,
    kernel_distance,
    manifold_scores,
    resampled_error,
)
from .extraction import on_all_processes, shared_statistics

QUALITY_METRICS = ("frechet", "kid", "prdc", "is")
HIGHER_IS_BETTER = frozenset(
    "precision recall density coverage class_score inception_score clip_score clip_recall_at_1 psnr ssim".split()
)
NEIGHBOURS = 5
# Metric -> the scores it gives.
_FIGURES = {
    "frechet": ("frechet_distance",),
    "kid": ("kernel_distance",),
    "prdc": ("precision", "recall", "density", "coverage"),
    "is": ("class_score",),
}
_Z = 1.96  # standard errors on either side of a 95 % interval


class FeatureSets(NamedTuple):
    """Features of samples, of the reference images, and of training images scored like samples for the floor."""

    samples: np.ndarray
    reference: np.ndarray
    floor: np.ndarray | None


def extractor_for(
    metrics: Sequence[str],
    name: str | None,
    dataset: str,
    device: torch.device,
    cache_dir: str | None,
    prefix: str = "",
) -> Extractor | None:
    """The extractor asked for, or the one made for the data; None where the metrics can do without.

    `prefix` is that of the flags in the error: ValueError if it has to be chosen.
    """
    name = name or ("digits" if dataset == "digits" else None)
    if name is not None and set(metrics) - {"nll"}:
        return load_extractor(name, device, cache_dir)
    if set(metrics) & set(QUALITY_METRICS):
        raise ValueError(
            f"--{prefix}extractor must be given with --{prefix}metrics {' '.join(metrics)}: inception for FID (pip "
            "install torch-fidelity), or another listed by evaluate.py --help"
        )
    return None


def score(
    sets: FeatureSets, extractor: Extractor, metrics: Sequence[str], *, resamples: int = 50, seed: int = 0
) -> list[dict[str, Any]]:
    """Score samples, as report entries; computed by all processes together.

    Each entry has a `value`, its `standard_error` with a 95 % confidence interval, and a `floor`: the score that the
    same number of real training images gets, the best one can expect. With few images a distance is biased upwards,
    for samples and floor alike, so compare the two.

    Args:
        sets: features from `extractor`; `floor` should be as large as `samples`.
        extractor: a distance is called "fid" only with the published Inception and more images than features.
        metrics: among `QUALITY_METRICS`.
        resamples: number of random halves for the standard errors, chosen by `seed`; 0 for no errors.

    Raises:
        ValueError: as in `check_quality`.
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
            entry["note"] = "fewer images than features: biased upwards by about its floor"
        if name in _FIGURES["prdc"]:
            entry["neighbours"] = NEIGHBOURS
        entries.append(entry)
    return entries


def check_quality(extractor: Extractor, metrics: Sequence[str], fewest: int, resamples: int) -> None:
    """Check, before sampling, whether `score` can score so many samples or reference images, whichever are fewer.

    Raises:
        ValueError: a metric is unknown, "is" is asked of an extractor without classes, or there are too few images.
    """
    unknown = sorted(set(metrics) - set(QUALITY_METRICS))
    if unknown:
        raise ValueError(f"`metrics` must be among {', '.join(QUALITY_METRICS)}, got {', '.join(unknown)}.")
    if "is" in metrics and extractor.head is None:
        raise ValueError(f"`metrics` must not contain 'is', because {extractor.name} has no classes.")
    needed = (NEIGHBOURS + 1 if "prdc" in metrics else 2) * (2 if resamples else 1)
    if fewest < needed:
        without = ", or half as many with --resamples 0" if resamples else ""
        raise ValueError(f"{', '.join(metrics)} need at least {needed} images{without}, got {fewest}.")


def metric_names(extractor: Extractor, count: int) -> dict[str, str]:
    """Names reserved for the published Inception; FID also needs more images than features."""
    if not extractor.is_inception:
        return {}
    names = {"kernel_distance": "kid", "class_score": "inception_score"}
    return names | ({"frechet_distance": "fid"} if count > extractor.dimension else {})


def figure_names(extractor: Extractor, metrics: Sequence[str], count: int) -> list[str]:
    """The names that `score` gives the scores of these metrics, with this many images."""
    special = metric_names(extractor, count)
    return [special.get(name, name) for metric in QUALITY_METRICS if metric in metrics for name in _FIGURES[metric]]


def few_images(extractor: Extractor, count: int) -> str | None:
    """A warning about a Fréchet distance of too few images; None if there are enough."""
    if count > extractor.dimension:
        return None
    return (
        f"{count} images are no more than the {extractor.dimension} features of {extractor.name}, so the Fréchet "
        "distance is biased upwards, as its floor shows; compare it only at the same number of images"
        + (" (not called FID for this reason)" if extractor.is_inception else "")
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
    """The standard error and 95 % interval of a report entry."""
    low, high = (None, None) if error is None else (value - _Z * error, value + _Z * error)
    return between(low, high) | {"standard_error": error}


def between(low: float | None, high: float | None) -> dict[str, float | None]:
    """The 95 % interval of a report entry that has no standard error."""
    return {"standard_error": None, "interval_low": low, "interval_high": high}
