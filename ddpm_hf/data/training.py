"""Open a data set for training: hold images out of it and serve the others by position."""

from typing import Literal

from .captions import CAPTIONS
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
    captioned: bool | Literal["if any"] = False,
    init_caption_from_labels: str | None = None,
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
        seed: of the choice of held-out images, and of order, crops, flips and choice of captions.
        label_column: read only if `class_conditional` is set, or for captions made of class names.
        **source: other arguments, such as `caption_column`, of `load_images`.

    Raises:
        ValueError: there are no images to train on, none has a caption, or they do not fit the settings.
    """
    size = parse_resolution(resolution)
    if not captioned:
        init_caption_from_labels = None
    if not class_conditional and init_caption_from_labels is None and captioned != "if any":
        label_column = None
    data = load_images(
        **source,
        class_conditional=class_conditional,
        label_column=label_column,
        captioned=captioned,
        init_caption_from_labels=init_caption_from_labels,
        size=size,
        streaming=streaming,
        cache_dir=cache_dir,
    )
    draws = {"random_flip": random_flip, "random_crop": not center_crop}
    if streaming:
        draws |= {"shuffle_buffer": shuffle_buffer, "skip_unreadable": skip_unreadable}
        images = StreamedImages(data, size, channels, seed, holdout=choose_holdout(data, holdout, seed), **draws)
    else:
        decoding = {"random_crop": not center_crop, "skip_unreadable": skip_unreadable, "cache_dir": cache_dir}
        store = PixelStore.build(data, size, channels, **decoding)
        images = StoredImages(data, store, seed, holdout=choose_holdout(data, holdout, seed, store.hashes), **draws)
    if CAPTIONS in data.columns and next(images.captions(), None) is None:
        raise ValueError(
            f"`caption_column` must hold captions, but {data.columns[CAPTIONS].name!r} of {data.name} has none."
        )
    return images
