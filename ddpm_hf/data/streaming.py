"""Training straight from a stream: the same clock as `examples`, with shuffling in blocks and flat memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from .decoding import DecodedRow, decode_row, make_decoder, stack_batch
from .examples import crop_bits_at, flip_some
from .holdout import Holdout, rows_of_side
from .order import epoch_permutation, stream_key
from .sources import ImageData, RawRow
from .store import crop_starts

BLOCK_STREAM = 4


@dataclass
class _Block:
    """Some rows of one epoch, undecoded, and the order in which positions from `first` on take them."""

    first: int
    rows: list[RawRow]
    order: np.ndarray

    @property
    def stop(self) -> int:
        return self.first + len(self.rows)


class StreamingData:
    """Positions of an endless, shuffled sequence -> batches, from rows that are only read in file order.

    An epoch is the training rows in file order, cut into blocks of `shuffle_buffer` rows, each block permuted by
    (seed, epoch, block). So the example at a position is a pure function of (seed, position) here too, whatever the
    number of processes. The price: a block's rows are spread over all processes, so each reads the whole stream and
    decodes its own share, and to start at a position, what lies before it in the epoch is read past. Images held out
    of the training rows are chosen by content, so even the count needs the bytes. Memory holds one block, as stored.

    With `skip_unreadable`, a position whose image cannot be decoded takes the next one of its block's order.

    Args:
        data: from `load_images`, streaming.
        size: (height, width) in pixels.
        channels: 1, 3 or 4; deduced from the first images when None, and then every image must agree.
        seed: of order, crops and flips.
        holdout: which images to leave out, from `choose_holdout`.
        shuffle_buffer: rows of a block.
        random_flip, random_crop: as for `TrainingData`.
        skip_unreadable: pass over images that cannot be decoded, listed in `unreadable`.

    Attributes:
        shape: (channels, height, width).
        epoch_size: training rows in an epoch; None until known.
        unreadable: row number -> "row 17 (path): reason".
    """

    def __init__(
        self,
        data: ImageData,
        size: tuple[int, int],
        channels: int | None,
        seed: int,
        *,
        holdout: Holdout,
        shuffle_buffer: int = 1000,
        random_flip: bool = False,
        random_crop: bool = False,
        skip_unreadable: bool = False,
    ):
        if shuffle_buffer < 1:
            raise ValueError(f"shuffle_buffer is {shuffle_buffer}; it must be at least 1")
        self.data = data
        self.decoder = make_decoder(data, size, channels, random_crop)
        self.seed = seed
        self.holdout = holdout
        self.shuffle_buffer = shuffle_buffer
        self.random_flip = random_flip
        self.random_crop = random_crop
        self.skip_unreadable = skip_unreadable
        self.epoch_size = data.num_rows if holdout.threshold == 0 else None
        self.unreadable: dict[int, str] = {}

    @property
    def channels(self) -> int:
        return self.decoder.channels

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        return (self.decoder.channels, *self.decoder.size)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.data.class_names

    def batches(self, slices: Iterable[range]) -> Iterator[dict[str, torch.Tensor]]:
        """One batch for each range of positions; the ranges must rise. Batches are those of `TrainingData`."""
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
            starts = crop_starts([image.pixels.shape[1:] for image in images], self.decoder.size, bits)
            height, width = self.decoder.size
            images = [
                image._replace(pixels=image.pixels[:, top : top + height, left : left + width])
                for image, (top, left) in zip(images, starts, strict=True)
            ]
        batch = stack_batch(images)
        if self.random_flip:
            flip_some(batch["images"].numpy(), self.seed, positions)
        return batch

    def _decode(self, block: _Block, position: int) -> DecodedRow:
        """The image at a position, or the next readable one of its block."""
        place = position - block.first
        for step in range(len(block.rows)):
            row = block.rows[block.order[(place + step) % len(block.rows)]]
            image = decode_row(self.data, self.decoder, row, self.skip_unreadable)
            if image.pixels is not None:
                return image
            self.unreadable[image.row.index] = image.problem
        raise ValueError(f"{self.data.name}: {len(block.rows)} rows in a row are unreadable; {image.problem}")

    def _blocks(self, position: int) -> Iterator[_Block]:
        """Blocks without end, from the one that holds `position`."""
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
        """The training rows of one epoch but the first `skip`. At the end the length of an epoch is known."""
        count = 0
        if self.epoch_size is not None and self.holdout.threshold == 0:
            count = skip
            rows = (row for batch in self.data.batches(skip) for row in batch)
        else:
            rows = rows_of_side(self.data, self.holdout, held_out=False)
        for row in rows:
            count += 1
            if count > skip:
                yield row
        if count == 0:
            raise ValueError("holdout leaves no image to train on")
        if self.epoch_size not in (None, count):
            raise ValueError(
                f"{self.data.name} has {count} training rows in this epoch; it had or told {self.epoch_size}"
            )
        self.epoch_size = count


def _in_blocks(rows: Iterator[RawRow], size: int) -> Iterator[list[RawRow]]:
    block = []
    for row in rows:
        block.append(row)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block
