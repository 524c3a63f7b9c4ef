"""Score generated digits by the Fréchet distance in the features of the digits classifier."""

from pathlib import Path

import numpy as np

from ddpm_hf.evaluation.extraction import features_of_images, features_of_samples, shared_statistics
from ddpm_hf.evaluation.image_sets import find_images
from ddpm_hf.hub.folder import ModelFolder
from ddpm_hf.hub.stock import DDPM
from ddpm_hf.judges.features import load_extractor
from ddpm_hf.statistics.distances import frechet_distance, resampled_error


class Judge:
    """Fréchet distances to the training images of one of our runs."""

    def __init__(self, folder: Path):
        model = ModelFolder.read(folder)
        ddpm = DDPM(model.index, **model.configs)
        self.held_out = find_images(ddpm.size, ddpm.channels, run=model.settings)
        self.training = self.held_out.training()
        self.extractor = load_extractor("digits")
        self.reference = shared_statistics(features_of_images(self.extractor, self.training))

    def floor(self, count: int) -> float:
        """The distance of up to `count` held-out images."""
        return self._distance(features_of_images(self.extractor, self.held_out)[:count])

    def distance(self, images: np.ndarray) -> float:
        """The distance of images, uint8 (N, C, H, W)."""
        return self._distance(features_of_samples(self.extractor, images))

    def distance_and_error(self, images: np.ndarray) -> tuple[float, float]:
        """The distance, and its standard error over the choice of samples."""
        features = features_of_samples(self.extractor, images)
        # Only samples are halved, because all compared models share the reference.
        errors = resampled_error(lambda rows, _: {"distance": self._distance(features[rows])}, len(features), 2)
        return self._distance(features), errors["distance"]

    def _distance(self, features: np.ndarray) -> float:
        return frechet_distance(shared_statistics(features), self.reference)
