"""The data loader: one batch per micro-step, the same for any number of workers."""

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch.utils.data import DataLoader, IterableDataset, default_convert, get_worker_info

from .examples import TrainingData
from .order import PositionSampler
from .streaming import StreamingData


def make_loader(
    data: TrainingData | StreamingData, sampler: PositionSampler, *, num_workers: int = 0, pin_memory: bool = False
) -> Iterable[dict[str, torch.Tensor]]:
    """An iterable of one batch per micro-step of `sampler`, in the format of `decoding.make_batch`, on the CPU.

    Do not pass it to `accelerator.prepare`: the sampler has already divided the batches among processes. It has its
    own generator, so starting it leaves torch's global one unchanged.

    Args:
        num_workers: processes that read and, from a stream, decode; 0 for none.
        pin_memory: for faster copies to a GPU.
    """
    workers = {"num_workers": num_workers, "pin_memory": pin_memory, "generator": torch.Generator()}
    if isinstance(data, StreamingData):
        return _StreamLoader(data, DataLoader(_Stream(data, sampler), batch_size=None, **workers))
    return DataLoader(data, batch_sampler=sampler, collate_fn=default_convert, **workers)


class _Stream(IterableDataset):
    """`StreamingData` for a DataLoader. Each of n workers reads all rows and decodes every n-th batch."""

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
        except ValueError as problem:  # raised in the main process, because DataLoader would add a traceback
            yield problem, {}


class _StreamLoader:
    """Batches of a stream; collects the unreadable rows that workers report."""

    def __init__(self, data: StreamingData, loader: DataLoader):
        self.data = data
        self.loader = loader

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch, unreadable in self.loader:
            if isinstance(batch, ValueError):
                raise batch
            self.data.unreadable.update(unreadable)
            yield batch
