"""Complete measurements of a model or its samples: report entries, tables and pictures."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice, pairwise, takewhile
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.state import PartialState

from ..judges.features import Extractor
from ..pipelines.ddpm import DDPMPipeline
from ..statistics.memorization import Neighbours, nearest, share_nearer
from .extraction import features_of_images, features_of_samples, on_all_processes
from .image_sets import ImageSet
from .likelihood import bound_of, measure_likelihood, write_images, write_terms
from .plots import plot_distances, plot_rate_distortion, plot_terms, save_grid
from .quality import FeatureSets, interval, score
from .samples import Samples

PAIRS_SHOWN = 10


def measure_nll(
    pipeline: DDPMPipeline,
    images: ImageSet,
    details: Path | None,
    *,
    seed: int = 0,
    num_terms: int | None = None,
    batch_size: int = 256,
    clip: bool = True,
    cdf: str = "erf",
    per_image: bool = False,
    noise_level: int | None = None,
    go_on: Callable[[], bool] = lambda: True,
) -> dict[str, Any]:
    """Bits/dim of images under a pipeline, as a report entry.

    Other arguments are those of `measure_likelihood` and `VariationalBound`.

    Args:
        pipeline: on the device of `PartialState`.
        images: with labels for a class-conditional model.
        details: folder for the table of terms, two plots and, with `per_image`, the value of every image; None for
            no files.
        noise_level: of the small picture that a super-resolution of Imagen is told; by default T/4.
        go_on: asked before every batch, by all processes; the same False in all of them ends the measurement with the
            images that there are.

    Raises:
        ValueError: there are fewer terms than asked for, the model lacks a class, or as in `bound_of`.
    """
    bound = bound_of(pipeline, clip=clip, cdf=cdf)
    if num_terms is not None and not 1 <= num_terms <= len(bound.chain):
        raise ValueError(f"--nll_timesteps must be between 1 and {len(bound.chain)}, got {num_terms}")
    conditions = [condition.of_data(images.data) for condition in pipeline.conditions]
    about = {"seed": seed, "dataset": images.name, "split": images.split, "sampler": "ddpm", "floor": None}
    if noise_level is not None:
        about |= {"noise_level": noise_level}
        conditions = [replace(each, level=noise_level) if each.name == "image" else each for each in conditions]
    batches = images.batches(batch_size * PartialState().num_processes)
    found = measure_likelihood(
        bound,
        pipeline.network.eval(),
        takewhile(lambda _: go_on(), batches),
        pipeline.codec,
        conditions,
        seed=seed,
        num_terms=num_terms,
        batch_size=batch_size,
        count=images.count,
    )
    if details is not None and PartialState().is_main_process:
        details.mkdir(parents=True, exist_ok=True)
        write_terms(found, details / "nll_terms.csv")
        plot_terms(found, details / "nll_terms.png")
        plot_rate_distortion(found, details / "nll_rate_distortion.png")
        if per_image:
            write_images(found, details / "nll_per_image.csv")
    return found.record() | interval(found.value, found.standard_error) | about | {"clip": clip, "cdf": cdf}


def measure_quality(
    samples: Samples,
    reference: ImageSet,
    training: ImageSet | None,
    extractor: Extractor,
    metrics: Sequence[str],
    *,
    seed: int = 0,
    batch_size: int = 64,
    resamples: int = 50,
) -> list[dict[str, Any]]:
    """Distances between samples and real images, as report entries; computed by all processes together.

    Args:
        samples: all of them on every process.
        reference: real images of the same size and channels.
        training: as many of these images as there are samples are scored for the floor; None for no floor.
        extractor: on the device of `PartialState`.
        metrics, resamples, seed: as for `quality.score`.
    """
    _check_form(samples, reference)
    floor = None
    if training is not None:
        floor = features_of_images(extractor, training, batch_size)[: len(samples.images)]
    sets = FeatureSets(
        features_of_samples(extractor, samples.images, batch_size),
        features_of_images(extractor, reference, batch_size),
        floor,
    )
    about = {"dataset": reference.name, "split": reference.split, "seed": None, "sampler": None, "steps": None}
    entries = score(sets, extractor, metrics, resamples=resamples, seed=seed)
    return [entry | about | samples.about for entry in entries]


def measure_memorization(
    samples: Samples,
    unseen: ImageSet,
    training: ImageSet,
    extractor: Extractor | None,
    details: Path,
    *,
    batch_size: int = 64,
) -> list[dict[str, Any]]:
    """Measure whether samples copy the training images or each other, as report entries.

    Args:
        samples: all of them on every process.
        unseen: held-out images, which give the expected distances.
        training: all training images.
        extractor: for distances between features in addition to pixels.
        details: folder for pictures of the closest pairs and plots of the distances.
    """
    _check_form(samples, training)
    spaces = {
        "pixels": (
            samples.images.reshape(len(samples.images), -1),
            np.concatenate(list(_pixels(unseen, batch_size))),
            lambda: _pixels(training, batch_size),
        )
    }
    if extractor is not None:
        trained = features_of_images(extractor, training, batch_size)
        spaces["features"] = (
            features_of_samples(extractor, samples.images, batch_size),
            features_of_images(extractor, unseen, batch_size),
            lambda: [trained],
        )
    entries = []
    for space, (ours, theirs, candidates) in spaces.items():
        found, expected = (_nearest(queries, candidates) for queries in (ours, theirs))
        real = np.stack(list(islice(chain.from_iterable(candidates()), len(ours))))
        among, among_real = (_nearest_others(images) for images in (ours, real))
        entries.append(share_nearer(f"copied_share_{space}", found, expected))
        entries.append(share_nearer(f"duplicate_share_{space}", among, among_real))
        if PartialState().is_main_process:
            details.mkdir(parents=True, exist_ok=True)
            _save_closest(samples, training, found, details / f"closest_{space}.png")
            plot_distances(found, expected, space, details / f"closest_{space}_distances.png")
    about = {"dataset": training.name, "split": training.split, "seed": None, "sampler": None, "steps": None}
    named = {} if extractor is None else {"extractor": extractor.name}
    return [entry | about | samples.about | (named if entry["name"].endswith("features") else {}) for entry in entries]


def _nearest(
    queries: np.ndarray, candidates: Callable[[], Iterable[np.ndarray]], among_themselves: bool = False
) -> Neighbours:
    """`nearest`, with the queries divided among the processes."""
    world = PartialState().num_processes

    def search(ends: tuple[int, int]) -> Neighbours:
        return nearest(queries[slice(*ends)], candidates(), own=ends[0] if among_themselves else None)

    parts = on_all_processes(search, pairwise(len(queries) * k // world for k in range(world + 1)))
    return Neighbours(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _nearest_others(images: np.ndarray) -> Neighbours:
    return _nearest(images, lambda: [images], among_themselves=True)


def _check_form(samples: Samples, images: ImageSet) -> None:
    form, expected = samples.images.shape[1:], (images.channels, *images.size)
    if form != expected:
        raise ValueError(f"`samples` must have the (channels, height, width) {expected} of {images.name}, got {form}.")


def _pixels(images: ImageSet, batch_size: int) -> Iterator[np.ndarray]:
    return (batch["images"].flatten(1).numpy() for batch in images.batches(batch_size))


def _save_closest(samples: Samples, training: ImageSet, found: Neighbours, file: Path) -> None:
    """Save the samples closest to a training image, with that image below each."""
    order = np.argsort(found.distances, kind="stable")[:PAIRS_SHOWN]
    wanted, partners, offset = found.positions[order], {}, 0
    for batch in training.batches(256):
        for position in set(wanted.tolist()) & set(range(offset, offset + len(batch["images"]))):
            partners[position] = batch["images"][position - offset].numpy()
        offset += len(batch["images"])
    nearest_images = np.stack([partners[position] for position in wanted.tolist()])
    save_grid([samples.images[order], nearest_images], file, ["sample", "training"])
