"""The training images of a run: found, decoded once, and given out by position."""

from dataclasses import dataclass
from typing import Any

from ..data.examples import TrainingData
from ..data.sources import load_images
from ..data.store import PixelStore
from ..data.transforms import parse_resolution
from .config import Config


@dataclass(kw_only=True)
class TrainingImages:
    """Images by position, and what is known of them.

    Attributes:
        data: batches by position; see `ddpm_hf.data.examples`.
        name: what the user called the data set.
        count: training images; None for a stream that tells no length.
        size: (height, width) of the images handed out.
        channels: 1, 3 or 4.
        class_names: of each label, when labels were asked for.
        unreadable: images that were left out, and why.
    """

    data: TrainingData
    name: str
    count: int | None
    size: tuple[int, int]
    channels: int
    class_names: tuple[str, ...] | None
    unreadable: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """What must be the same when a run goes on."""
        return {
            "dataset": self.name,
            "training_images": self.count,
            "image_shape": [self.channels, *self.size],
            "class_names": self.class_names,
        }


def load_training_images(config: Config) -> TrainingImages:
    """Find and decode the images that the settings name; fills in the number of channels.

    Raises:
        ValueError: if there are none, or they do not fit the settings.
    """
    options = config.data
    source = load_images(
        options.dataset_name,
        options.dataset_config_name,
        options.train_data_dir,
        dataset_split=options.dataset_split,
        image_column=options.image_column,
        label_column=options.label_column,
        class_conditional=config.model.class_conditional,
        streaming=options.streaming,
        cache_dir=options.cache_dir,
    )
    store = PixelStore.build(
        source,
        parse_resolution(options.resolution),
        options.channels,
        random_crop=not options.center_crop,
        skip_unreadable=options.skip_unreadable,
        cache_dir=options.cache_dir,
    )
    options.channels = store.channels
    data = TrainingData(
        store,
        config.optimization.seed,
        random_flip=options.random_flip,
        random_crop=not options.center_crop,
    )
    return TrainingImages(
        data=data,
        name=source.name,
        count=len(data),
        size=store.size,
        channels=store.channels,
        class_names=store.class_names,
        unreadable=store.unreadable,
    )
