"""Features of many images, shared among processes, and kept where they will be asked for again."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from accelerate.state import PartialState
from accelerate.utils import gather_object, tqdm

from .features import Extractor
from .image_sets import ImageSet


def features_of_samples(extractor: Extractor, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Features of images in memory, uint8 (n, C, H, W) -> float32 (n, D). Every process gets all of them."""
    batches = (torch.from_numpy(images[start : start + batch_size]) for start in range(0, len(images), batch_size))
    return _shared(extractor, batches, len(images), "features of samples")


def features_of_images(extractor: Extractor, images: ImageSet, batch_size: int = 64) -> np.ndarray:
    """Features of a data set's images in its order, float32 (n, D). Every process gets all of them.

    They are kept in the cache folder under a hash of the data, the choice of images and the extractor. What an
    interrupted call leaves is worked out again.
    """
    file = _cache_file(extractor, images)
    kept = None if file is None else _read(file)
    if all(gather_object([kept is not None])):
        return kept
    batches = (batch["images"] for batch in images.batches(batch_size))
    features = _shared(extractor, batches, images.count, f"features of {images.split} images")
    if file is not None and PartialState().is_local_main_process:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.partial")
        with partial.open("wb") as target:
            np.save(target, features, allow_pickle=False)
        os.replace(partial, file)
    return features


def _read(file: Path) -> np.ndarray | None:
    """Features from the cache, or None if there are none that are whole."""
    try:
        return np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None


def _cache_file(extractor: Extractor, images: ImageSet) -> Path | None:
    """Where the features are kept; None for a stream, whose content nobody knows beforehand."""
    import datasets

    if images.fingerprint is None:
        return None
    key = hashlib.sha256(f"{images.fingerprint} {extractor.name} {extractor.preprocessing}".encode()).hexdigest()[:32]
    return Path(images.cache_dir or datasets.config.HF_DATASETS_CACHE) / "ddpm_hf" / f"features-{key}.npy"


def _shared(extractor: Extractor, batches: Iterable[torch.Tensor], count: int | None, words: str) -> np.ndarray:
    """Each process works on every n-th batch; then all get everything, in order."""
    state = PartialState()
    found = []
    with tqdm(total=count, desc=words, unit=" images") as bar:
        for number, batch in enumerate(batches):
            if number % state.num_processes == state.process_index:
                found.append((number, extractor(batch)))
            bar.update(len(batch))
    everything = sorted(gather_object(found), key=lambda entry: entry[0])
    if not everything:
        raise ValueError(f"there are no images to take {words}")
    return np.concatenate([features for _, features in everything])
