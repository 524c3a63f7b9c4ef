"""The judge of generated digits: Fréchet distance in the features of the digits' classifier."""

from pathlib import Path

import numpy as np
import torch

from ddpm_hf.evaluation.features import Extractor, load_extractor
from ddpm_hf.evaluation.image_sets import ImageSet, find_images
from ddpm_hf.evaluation.metrics import GaussianStatistics, frechet_distance
from ddpm_hf.hub.folder import ModelFolder


class Judge:
    """Fréchet distances to the training images of a run of ours."""

    def __init__(self, folder: Path):
        model = ModelFolder.read(folder)
        self.held_out = find_images(model.size, model.channels, run=model.settings)
        self.extractor = load_extractor("digits")
        self.reference = statistics_of(self.extractor, pixels(self.held_out.training()))

    def floor(self, count: int) -> float:
        """The distance of held-out images, as many as there are up to `count`."""
        return self.distance(pixels(self.held_out)[:count])

    def distance(self, images: np.ndarray) -> float:
        return frechet_distance(statistics_of(self.extractor, images), self.reference)


def pixels(images: ImageSet) -> np.ndarray:
    return np.concatenate([batch["images"].numpy() for batch in images.batches(1000)])


def statistics_of(extractor: Extractor, images: np.ndarray) -> GaussianStatistics:
    found = GaussianStatistics(extractor.dimension)
    for start in range(0, len(images), 1000):
        found.add(extractor(torch.from_numpy(images[start : start + 1000])))
    return found
