"""Training images from a stream, shuffled in blocks, in constant memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from .captions import CAPTIONS
from .decoding import DecodedRow, decode_row, make_decoder, stack_batch
from .examples import TrainingImages, caption_bits_at, crop_bits_at, flip_some
from .holdout import Holdout, rows_of_side
from .order import epoch_permutation, stream_key
from .sources import ImageData, RawRow
from .store import crop

BLOCK_STREAM = 4


@dataclass
class _Block:
    """Consecutive rows of one epoch, undecoded, and the order in which positions from `first` on use them."""

    first: int
    rows: list[RawRow]
    order: np.ndarray

    @property
    def stop(self) -> int:
        return self.first + len(self.rows)


class StreamedImages(TrainingImages):
    """Training images from rows that can only be read in file order.

    An epoch is the training rows in file order, cut into blocks of `shuffle_buffer` rows, each permuted by (seed,
    epoch, block). The example at a position is thus a function of (seed, position), whatever the number of processes.
    The price: a block's rows are spread over all processes, so each reads the whole stream and decodes its own share,
    and starting at a position means reading the epoch up to it. Held-out images are chosen by content, so even
    counting rows needs their bytes. Memory holds one undecoded block.

    With `skip_unreadable`, a position whose image cannot be decoded takes the next one in its block's order.

    Args:
        source: from `load_images`, streaming.
        size: (height, width) in pixels.
        channels: 1, 3 or 4; if None, deduced from the first images, and all others must agree.
        shuffle_buffer: rows per block.
        skip_unreadable: skip images that cannot be decoded and list them in `skipped`.
        seed, holdout, **draws: as for `TrainingImages`.

    Attributes:
        epoch_size: training rows per epoch; None until known.
    """

    def __init__(
        self,
        source: ImageData,
        size: tuple[int, int],
        channels: int | None,
        seed: int,
        *,
        holdout: Holdout,
        shuffle_buffer: int = 1000,
        skip_unreadable: bool = False,
        **draws: bool,
    ):
        if shuffle_buffer < 1:
            raise ValueError(f"`shuffle_buffer` must be at least 1, got {shuffle_buffer}.")
        super().__init__(source, seed, holdout=holdout, **draws)
        self.shuffle_buffer, self.skip_unreadable = shuffle_buffer, skip_unreadable
        self.decoder = make_decoder(source, size, channels, self.random_crop)
        self.shape = (self.decoder.channels, *self.decoder.size)
        self.count = self.epoch_size = source.num_rows if holdout.threshold == 0 else None

    def some_rows(self, most: int) -> list[RawRow]:
        return self.source.some_rows(most)

    def some_batch(self, most: int) -> dict[str, torch.Tensor]:
        height, width = self.decoder.size
        decoded = (decode_row(self.source, self.decoder, row, skip_unreadable=True) for row in self.some_rows(most))
        images = [image for image in decoded if image.pixels is not None]
        return stack_batch([image._replace(pixels=image.pixels[:, :height, :width]) for image in images])

    def caption_cells(self) -> Iterator[tuple[int, str]]:
        count = self.shuffle_buffer if CAPTIONS in self.source.columns else 0
        return ((row.index, row.extra[CAPTIONS]) for row in islice(self._training_rows(0), count))

    def batches(self, slices: Iterable[range]) -> Iterator[dict[str, torch.Tensor]]:
        blocks, block = None, None
        for positions in slices:
            images = []
            if blocks is None:
                blocks = self._blocks(positions[0])
                block = next(blocks)
            for position in positions:
                while position >= block.stop:
                    block = next(blocks)
                images.append(self._decode(block, position))
            yield self._batch(images, np.asarray(positions, dtype=np.int64))

    def _batch(self, images: list[DecodedRow], positions: np.ndarray) -> dict[str, torch.Tensor]:
        if self.random_crop:
            bits = crop_bits_at(self.seed, positions)
            crops = crop([image.pixels for image in images], self.decoder.size, bits)
            images = [image._replace(pixels=pixels) for image, pixels in zip(images, crops, strict=True)]
        batch = stack_batch(images, caption_bits_at(self.seed, positions))
        if self.random_flip:
            flip_some(batch["images"].numpy(), self.seed, positions)
        return batch

    def _decode(self, block: _Block, position: int) -> DecodedRow:
        """The image at a position, or the next readable one of its block."""
        place = position - block.first
        for step in range(len(block.rows)):
            row = block.rows[block.order[(place + step) % len(block.rows)]]
            image = decode_row(self.source, self.decoder, row, self.skip_unreadable)
            if image.pixels is not None:
                return image
            self.skipped[image.row.index] = image.problem
        raise ValueError(
            f"{self.source.name}: {len(block.rows)} rows in a row are unreadable, such as {image.problem}"
        )

    def _blocks(self, position: int) -> Iterator[_Block]:
        """Blocks without end, from the one that contains `position`."""
        epoch = 0
        while True:
            if self.epoch_size is not None:
                epoch = max(epoch, position // self.epoch_size)
            first = epoch * self.epoch_size if epoch else 0
            skipped = max(position - first, 0) // self.shuffle_buffer
            rows = self._training_rows(skipped * self.shuffle_buffer)
            for number, block in enumerate(_in_blocks(rows, self.shuffle_buffer), start=skipped):
                seed = int(stream_key(self.seed, BLOCK_STREAM, number))
                yield _Block(first + number * self.shuffle_buffer, block, epoch_permutation(seed, epoch, len(block)))
            epoch += 1

    def _training_rows(self, skip: int) -> Iterator[RawRow]:
        """The training rows of one epoch after the first `skip`; sets `epoch_size` at the end."""
        count = 0
        if self.epoch_size is not None and self.holdout.threshold == 0:
            count = skip
            rows = (row for batch in self.source.batches(skip) for row in batch)
        else:
            rows = rows_of_side(self.source, self.holdout, held_out=False)
        for row in rows:
            count += 1
            if count > skip:
                yield row
        if count == 0:
            raise ValueError("`holdout` must leave images to train on, got none.")
        if self.epoch_size not in (None, count):
            raise ValueError(f"{self.source.name} has {count} training rows in this epoch, not {self.epoch_size}")
        self.epoch_size = count


def _in_blocks(rows: Iterator[RawRow], size: int) -> Iterator[list[RawRow]]:
    while block := list(islice(rows, size)):
        yield block
