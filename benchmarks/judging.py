"""The judge of generated digits: Fréchet distance in the features of the digits' classifier."""

from pathlib import Path

import numpy as np
import torch

from ddpm_hf.evaluation.features import load_extractor
from ddpm_hf.evaluation.image_sets import ImageSet, find_images
from ddpm_hf.evaluation.metrics import GaussianStatistics, frechet_distance, resampled_error
from ddpm_hf.hub.folder import ModelFolder


class Judge:
    """Fréchet distances to the training images of a run of ours."""

    def __init__(self, folder: Path):
        model = ModelFolder.read(folder)
        self.held_out = find_images(model.size, model.channels, run=model.settings)
        self.extractor = load_extractor("digits")
        self.reference = GaussianStatistics(self.extractor.dimension)
        self.reference.add(self.features(pixels(self.held_out.training())))

    def features(self, images: np.ndarray) -> np.ndarray:
        """Of images, uint8 (N, C, H, W): (N, D)."""
        parts = np.array_split(images, max(1, len(images) // 1000))
        return np.concatenate([self.extractor(torch.from_numpy(part)) for part in parts])

    def floor(self, count: int) -> float:
        """The distance of held-out images, as many as there are up to `count`."""
        return self.distance(pixels(self.held_out)[:count])

    def distance(self, images: np.ndarray) -> float:
        """Of images, uint8 (N, C, H, W)."""
        return self._distance(self.features(images))

    def distance_and_error(self, images: np.ndarray) -> tuple[float, float]:
        """With the standard error that the choice of samples leaves."""
        features = self.features(images)
        # The reference is the same for all that is compared, so it stays whole.
        errors = resampled_error(lambda rows, _: {"distance": self._distance(features[rows])}, len(features), 2)
        return self._distance(features), errors["distance"]

    def _distance(self, features: np.ndarray) -> float:
        return frechet_distance(GaussianStatistics(self.extractor.dimension).add(features), self.reference)


def pixels(images: ImageSet) -> np.ndarray:
    return np.concatenate([batch["images"].numpy() for batch in images.batches(1000)])
