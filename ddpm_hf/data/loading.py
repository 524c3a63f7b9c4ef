"""The loader: one batch for each micro-step, the same ones for any number of workers."""

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .examples import TrainingData
from .order import PositionSampler
from .streaming import StreamingData


def make_loader(
    data: TrainingData | StreamingData, sampler: PositionSampler, *, num_workers: int = 0, pin_memory: bool = False
) -> Iterable[dict[str, torch.Tensor]]:
    """What the training loop iterates over: a batch for each micro-step of `sampler`.

    Not for `accelerator.prepare`, which would split it again: the sampler has done that, and batches stay on the CPU.
    A generator of its own sees to it that starting a loader takes nothing from torch's global one.

    Args:
        data: the examples.
        sampler: which of them this process reads.
        num_workers: processes that read and, from a stream, decode; 0 for none.
        pin_memory: for quicker copies to a GPU.

    Returns:
        Batches: "images": uint8 (B, C, H, W), for `transforms.normalize`; "rows": int64 (B,), of the data set;
        "class_labels": int64 (B,), if labelled.
    """
    workers = {"num_workers": num_workers, "pin_memory": pin_memory, "generator": torch.Generator()}
    if isinstance(data, StreamingData):
        return _StreamLoader(data, DataLoader(_Stream(data, sampler), batch_size=None, **workers))
    return DataLoader(data, batch_sampler=sampler, collate_fn=_as_it_is, **workers)


def _as_it_is(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return batch


class _Stream(IterableDataset):
    """A stream as a DataLoader wants it. Each worker reads all rows and decodes every n-th batch, its own."""

    def __init__(self, data: StreamingData, sampler: PositionSampler):
        self.data = data
        self.sampler = sampler

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor] | ValueError, dict[int, str]]]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        told = 0
        try:
            for batch in self.data.batches(islice(self.sampler, first, None, step)):
                news = dict(islice(self.data.unreadable.items(), told, None))
                told += len(news)
                yield batch, news
        except ValueError as problem:  # raised by the loader, without a worker's traceback around its one line
            yield problem, {}


class _StreamLoader:
    """Batches of a stream; brings what its workers found unreadable to this process."""

    def __init__(self, data: StreamingData, loader: DataLoader):
        self.data = data
        self.loader = loader

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch, unreadable in self.loader:
            if isinstance(batch, ValueError):
                raise batch
            self.data.unreadable.update(unreadable)
            yield batch
