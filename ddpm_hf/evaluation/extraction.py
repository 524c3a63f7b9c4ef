"""Extract features of many images on all processes, and cache those of data sets."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import PartialState
from accelerate.utils import gather_object

from ..files import replacing
from ..judges.features import Extractor
from ..progress import progress_bar
from ..statistics.distances import GaussianStatistics
from .image_sets import ImageSet


def on_all_processes(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Like `list(map(function, items))`, but each of n processes computes every n-th item; all get all results."""
    state = PartialState()
    mine = (entry for entry in enumerate(items) if entry[0] % state.num_processes == state.process_index)
    found = gather_object([(number, function(item)) for number, item in mine])
    return [result for _, result in sorted(found, key=lambda entry: entry[0])]


def shared_statistics(features: np.ndarray) -> GaussianStatistics:
    """Mean and covariance of features (n, D), computed by all processes together."""
    world = PartialState().num_processes
    shards = (features[start::world] for start in range(world))
    whole = GaussianStatistics(features.shape[1])
    for part in on_all_processes(GaussianStatistics(features.shape[1]).add, shards):
        whole.merge(part)
    return whole


def features_of_samples(extractor: Extractor, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Images in memory, uint8 (n, C, H, W) -> features, float32 (n, D), on every process."""
    batches = (torch.from_numpy(images[start : start + batch_size]) for start in range(0, len(images), batch_size))
    return _shared(extractor, batches, len(images), "features of samples")


def features_of_images(extractor: Extractor, images: ImageSet, batch_size: int = 64) -> np.ndarray:
    """Features of a data set's images in order, float32 (n, D), on every process.

    Cached under a hash of the data, the choice of images and the extractor.
    """
    file = _cache_file(extractor, images)
    kept = None if file is None else _read(file)
    if all(gather_object([kept is not None])):
        return kept
    batches = (batch["images"] for batch in images.batches(batch_size))
    features = _shared(extractor, batches, images.count, f"features of {images.split} images")
    if file is not None and PartialState().is_local_main_process:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file, shared=True) as partial, partial.open("wb") as target:
            np.save(target, features, allow_pickle=False)
    return features


def _read(file: Path) -> np.ndarray | None:
    """Cached features, memory-mapped; None if missing or damaged."""
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None


def _cache_file(extractor: Extractor, images: ImageSet) -> Path | None:
    """The cache file; None for a stream, which has no fingerprint."""
    import datasets

    if images.fingerprint is None:
        return None
    key = hashlib.sha256(f"{images.fingerprint} {extractor.name} {extractor.preprocessing}".encode()).hexdigest()[:32]
    return Path(images.cache_dir or datasets.config.HF_DATASETS_CACHE) / "ddpm_hf" / f"features-{key}.npy"


def _shared(extractor: Extractor, batches: Iterable[torch.Tensor], count: int | None, words: str) -> np.ndarray:
    """Features of all batches, computed by all processes."""
    hidden = not PartialState().is_local_main_process
    with progress_bar(total=count, desc=words, unit=" images", leave=None, disable=hidden) as bar:
        found = on_all_processes(extractor, _counted(batches, bar))
    if not found:
        raise ValueError(f"There are no images to compute {words}.")
    return np.concatenate(found)


def _counted(batches: Iterable[torch.Tensor], bar) -> Iterator[torch.Tensor]:
    for batch in batches:
        yield batch
        bar.update(len(batch))
