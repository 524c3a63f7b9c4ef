"""What a frozen network makes of the training pictures: computed once, where each of them is always the same."""

from typing import Any

from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

from ..data.examples import TrainingImages
from ..kept import KeptArray, KeptOfPictures
from ..pipelines.fingerprint import weights_fingerprint
from ..settings.config import Config


def keep(
    config: Config, images: TrainingImages, name: str, shape: tuple[int, ...], key: Any
) -> tuple[KeptOfPictures | None, str]:
    """An array of it, which batches of `images` then have by this name, or None; and in words where it comes from.

    Args:
        shape: of what is made of a picture.
        key: all that determines it beside the pictures, as JSON.
    """
    why = None
    if not config.model.cache_latents:
        why = "as --no_cache_latents asks"
    elif images.store is None:
        why = "since the data set is streamed"
    elif images.random_crop and not images.store.is_uniform:
        why = "since crops are random, which --center_crop changes"
    if why is not None:
        return None, f"computed in each step, {why}"
    folder = images.store.folder
    array = KeptArray(folder.parent, name, (images.picture_count, *shape), [folder.name, key])
    images.kept[name] = array
    mirrored = " and its mirror image," if images.random_flip else ""
    return KeptOfPictures(array, images.pictures), f"computed once for each picture{mirrored} and {array}"


def keep_embeddings(
    config: Config, images: TrainingImages, encoder: CLIPVisionModelWithProjection, processor: CLIPImageProcessorPil
) -> tuple[KeptOfPictures | None, str]:
    """As `keep`, what this half of a CLIP sees: the same for its prior and its decoder."""
    key = [weights_fingerprint(encoder), processor.to_json_string()]
    return keep(config, images, "embeddings", (encoder.config.projection_dim,), key)
