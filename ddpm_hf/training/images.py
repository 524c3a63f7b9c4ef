"""The training images of a run: found, decoded once, separated from those held out, and served by position."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate.utils import gather_object

from ..data.examples import TrainingData
from ..data.holdout import Holdout, choose_holdout
from ..data.sources import ImageData, load_images
from ..data.store import PixelStore
from ..data.streaming import StreamingData
from ..data.transforms import parse_resolution
from ..systems.config import Config


@dataclass(kw_only=True)
class TrainingImages:
    """Images by position, and what is known about them.

    Attributes:
        data: batches by position.
        source: where the images come from.
        holdout: which images are held out of training.
        count: number of training images; None for a stream of unknown length.
    """

    data: TrainingData | StreamingData
    source: ImageData
    holdout: Holdout
    count: int | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        return self.data.shape if isinstance(self.data, StreamingData) else self.data.store.shape

    @property
    def unreadable(self) -> list[str]:
        """Images left out so far, and why: "row 17 (path): reason"."""
        if isinstance(self.data, StreamingData):
            return list(self.data.unreadable.values())
        return list(self.data.store.unreadable)

    def gather_unreadable(self) -> dict[str, str]:
        """For a stream: row -> problem, collected from all processes, which call this together."""
        if not isinstance(self.data, StreamingData):
            return {}
        for found in gather_object([self.data.unreadable]):
            self.data.unreadable.update(found)
        return {str(row): problem for row, problem in sorted(self.data.unreadable.items())}

    def add_unreadable(self, found: dict[str, str]) -> None:
        """Restore what an earlier session gathered."""
        if isinstance(self.data, StreamingData):
            self.data.unreadable.update({int(row): problem for row, problem in found.items()})

    def facts(self) -> dict[str, Any]:
        """What must be unchanged for a run to continue."""
        names = self.source.class_names
        return {
            "dataset": self.source.name,
            "training_images": self.count,
            "image_shape": list(self.shape),
            "class_names": None if names is None else list(names),
            "holdout": dataclasses.asdict(self.holdout),
        }


def load_training_images(config: Config) -> TrainingImages:
    """Find the images and decode them unless they are streamed.

    Raises:
        ValueError: if there are no images, or they do not fit the settings.
    """
    options, seed = config.data, config.optimization.seed
    source = load_images(
        options.dataset_name,
        options.dataset_config_name,
        options.train_data_dir,
        dataset_split=options.dataset_split,
        image_column=options.image_column,
        label_column=options.label_column if config.model.class_conditional else None,
        class_conditional=config.model.class_conditional,
        streaming=options.streaming,
        cache_dir=options.cache_dir,
    )
    size = parse_resolution(options.resolution)
    random_crop, skip_unreadable = not options.center_crop, options.skip_unreadable
    draws = {"random_flip": options.random_flip, "random_crop": random_crop}
    if options.streaming:
        holdout = choose_holdout(source, options.holdout, seed)
        draws |= {"shuffle_buffer": options.shuffle_buffer, "skip_unreadable": skip_unreadable}
        data = StreamingData(source, size, options.channels, seed, holdout=holdout, **draws)
        count = data.epoch_size
    else:
        decoding = {"skip_unreadable": skip_unreadable, "cache_dir": options.cache_dir}
        store = PixelStore.build(source, size, options.channels, random_crop=random_crop, **decoding)
        holdout = choose_holdout(source, options.holdout, seed, store.hashes)
        data = TrainingData(store, seed, indices=np.flatnonzero(~holdout.mask(store.hashes)), **draws)
        count = len(data)
    return TrainingImages(data=data, source=source, holdout=holdout, count=count)
