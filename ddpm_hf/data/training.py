"""Open a data set for training: hold images out of it and serve the others by position."""

from .examples import StoredImages, TrainingImages
from .holdout import choose_holdout
from .sources import load_images
from .store import PixelStore
from .streaming import StreamedImages
from .transforms import parse_resolution


def open_training_images(
    seed: int,
    *,
    class_conditional: bool,
    label_column: str | None,
    resolution: str,
    channels: int | None,
    center_crop: bool,
    random_flip: bool,
    holdout: float | None,
    shuffle_buffer: int,
    skip_unreadable: bool,
    streaming: bool,
    cache_dir: str | None,
    **source: str | None,
) -> TrainingImages:
    """Training images by the settings of a run, decoded now unless they are streamed.

    Args:
        seed: of the choice of held-out images, and of order, crops and flips.
        label_column: read only if `class_conditional` is set.
        **source: other arguments of `load_images`.

    Raises:
        ValueError: there are no images to train on, or they do not fit the settings.
    """
    source |= {"streaming": streaming, "cache_dir": cache_dir, "class_conditional": class_conditional}
    data = load_images(**source, label_column=label_column if class_conditional else None)
    size = parse_resolution(resolution)
    draws = {"random_flip": random_flip, "random_crop": not center_crop}
    if streaming:
        draws |= {"shuffle_buffer": shuffle_buffer, "skip_unreadable": skip_unreadable}
        return StreamedImages(data, size, channels, seed, holdout=choose_holdout(data, holdout, seed), **draws)
    decoding = {"random_crop": not center_crop, "skip_unreadable": skip_unreadable, "cache_dir": cache_dir}
    store = PixelStore.build(data, size, channels, **decoding)
    return StoredImages(data, store, seed, holdout=choose_holdout(data, holdout, seed, store.hashes), **draws)
