"""The images to measure a model on: by default those its run held out of training."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from ..data.decoding import decode_row, stack_batch
from ..data.holdout import Holdout, rows_of_side
from ..data.sources import ImageData, load_images
from ..data.store import PixelStore, store_key
from ..data.transforms import Decoder

HELD_OUT, TRAIN = "held_out", "train"
# Arguments of `load_images` that a run's settings have under the same names.
SOURCE_SETTINGS = (
    *("dataset_name", "dataset_config_name", "train_data_dir", "dataset_split", "image_column", "label_column"),
    *("caption_column", "init_caption_from_labels", "streaming", "cache_dir"),
)


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images of one size, centre-cropped, unflipped and in a fixed order.

    Sorted by a hash of their content, so that the first k are a random sample; a stream's in file order.

    Attributes:
        others: None for the images that `holdout` holds out; for the others, their name in reports.
        size: (height, width).
        most: the maximum number of images; None for all.
        skip_unreadable, cache_dir: as for `PixelStore.build`.
        decoded: the decoded images of `data`, if there are any; by default they are decoded in this size. If they are
            larger, for random crops, the images of this set are decoded anew whenever they are read.
    """

    data: ImageData
    holdout: Holdout
    others: str | None = None
    size: tuple[int, int]
    channels: int
    most: int | None = None
    skip_unreadable: bool = False
    cache_dir: str | None = None
    decoded: PixelStore | None = None

    @property
    def name(self) -> str:
        """The user's name for the data set."""
        return self.data.name

    @property
    def split(self) -> str:
        """The name of these images in reports."""
        return self.others or self.holdout.split or HELD_OUT

    @property
    def count(self) -> int | None:
        """The number of images, decoding them if needed; None for a stream of unknown length."""
        return self.most if self._source.streaming else len(self._chosen(self._store()))

    def training(self, most: int | None = None) -> "ImageSet | None":
        """The training images these were held out from; None if these are not held out."""
        return replace(self, others=TRAIN, most=most) if self.others is None else None

    @property
    def fingerprint(self) -> str | None:
        """A hash of everything that determines the images and their order; None for a stream."""
        if self._source.streaming:
            return None
        store = store_key(self._source, self.size, self.channels, random_crop=False)
        choice = (store, asdict(self.holdout), self.others is None, self.most, self.skip_unreadable)
        return hashlib.sha256(repr(choice).encode()).hexdigest()

    def batches(self, batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
        """Batches in the format of `decoding.make_batch`.

        Raises:
            ValueError: an image cannot be decoded; names its row and file.
        """
        source, decoder = self._source, Decoder(size=tuple(self.size), channels=self.channels)
        skip_unreadable = self.skip_unreadable and source.streaming  # what a store holds could be read before
        if source.streaming:
            rows = rows_of_side(source, self.holdout, self._is_out)
        else:
            store = self._store()
            chosen = self._chosen(store)
            if store.is_uniform:
                yield from (store.batch(chosen[k : k + batch_size]) for k in range(0, len(chosen), batch_size))
                return
            rows = (source.row(int(row)) for row in store.rows[chosen])
        decoded = (decode_row(source, decoder, row, skip_unreadable) for row in rows)
        images = islice((image for image in decoded if image.pixels is not None), self.most)
        while part := list(islice(images, batch_size)):
            yield stack_batch(part)

    @property
    def _is_out(self) -> bool:
        """Whether the rows of `_source` to take are those that `holdout` masks; it masks none of a split."""
        return self.others is None and self.holdout.split is None

    @property
    def _source(self) -> ImageData:
        split = self.holdout.split if self.others is None else None
        if split not in (None, self.data.own_split):
            raise ValueError(f"{self.data.name} must have the split {split!r} that the run held out.")
        return self.data if split is None else self.data.own_split_data

    def _store(self) -> PixelStore:
        if self.decoded is not None and self._source is self.data:
            return self.decoded
        return PixelStore.build(
            self._source, self.size, self.channels, skip_unreadable=self.skip_unreadable, cache_dir=self.cache_dir
        )

    def _chosen(self, store: PixelStore) -> np.ndarray:
        """Indices into the store, in order."""
        chosen = np.flatnonzero(self.holdout.mask(store.hashes) == self._is_out)
        return chosen[np.argsort(self.holdout.scores(store.hashes[chosen]), kind="stable")][: self.most]


def find_images(
    size: tuple[int, int],
    channels: int,
    *,
    run: Mapping[str, Any] | None = None,
    split: str | None = None,
    labelled: bool = False,
    captioned: bool = False,
    most: int | None = None,
    **source: Any,
) -> ImageSet:
    """Choose the images to measure on.

    Args:
        size, channels: of the model; size is (height, width).
        run: settings of its run (`training_config.yaml`), for the data set and the images it held out.
        split: "held_out" (the default if a run is given) for the images the run held out, "train" for those it was
            trained on, or a split of the data set. The default for another data set is its own test or validation
            split, else all images.
        labelled: read class labels.
        captioned: read captions; always done for the data of a run with captions.
        most: the maximum number of images.
        **source: arguments of `load_images` for another data set than the run's; None means not given. With
            `split="held_out"` it must be a copy of the run's data set.

    Raises:
        ValueError: no data set is known, it cannot be read, or nothing was held out.
    """
    source = {name: value for name, value in source.items() if value is not None}
    is_other = bool(source.keys() & {"dataset_name", "train_data_dir"})
    if not is_other and run is None:
        raise ValueError("no data set is known; give --run with the model's run, --dataset_name or --train_data_dir")
    given = dict(source) if is_other else {name: run[name] for name in SOURCE_SETTINGS if name in run} | source
    if not is_other:
        captioned = captioned or run.get("recorded", {}).get("caption_column") is not None
    if not labelled and not (captioned and given.get("init_caption_from_labels")):
        given.pop("label_column", None)
    if split is None and not is_other:
        split = HELD_OUT
    of_run = split == HELD_OUT or (split == TRAIN and not is_other)
    if split is not None and not of_run:
        given["dataset_split"] = split
    data = load_images(**given, class_conditional=labelled, captioned=captioned, size=tuple(size))
    if of_run:
        holdout, others = _recorded_holdout(run), None if split == HELD_OUT else TRAIN
    elif split is None and data.own_split is not None:
        holdout, others = Holdout(split=data.own_split), None
    else:  # all images, of which an empty holdout masks none
        holdout, others = Holdout(), split or "all"
    return ImageSet(
        data=data,
        holdout=holdout,
        others=others,
        size=tuple(size),
        channels=channels,
        most=most,
        skip_unreadable=(run or {}).get("skip_unreadable", False),
        cache_dir=given.get("cache_dir"),
    )


def _recorded_holdout(run: Mapping[str, Any] | None) -> Holdout:
    recorded = (run or {}).get("recorded", {}).get("holdout")
    if recorded is None:
        raise ValueError("the model's folder does not record what was held out; give --split")
    holdout = Holdout(**recorded)
    if not holdout.holds_out:
        raise ValueError(
            "the run held nothing out of training; give --split train to measure on its training images, or "
            "--dataset_name or --train_data_dir for other images"
        )
    return holdout
