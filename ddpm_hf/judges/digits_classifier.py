"""A small classifier trained on the bundled handwritten digits: features for evaluation without a download."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from ..data.sources import load_images
from ..data.store import PixelStore
from ..files import replacing
from ..pipelines.fingerprint import weights_fingerprint
from ..pixels import normalize
from ..seeds import generator_for, seeded

_EPOCHS, _BATCH, _PEAK_RATE = 4, 50, 3e-3
# Increase it when the same images would give different weights.
_VERSION = 2


class DigitsClassifier(nn.Module):
    """Grey 16x16 images in [-1, 1] -> 64 features -> logits of ten classes."""

    side = 16

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, 64),
            nn.SiLU(),
        )
        self.head = nn.Linear(64, 10)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 1, 16, 16) in [-1, 1] -> (B, 64)."""
        return self.layers(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))


def digits_classifier(cache_dir: str | os.PathLike | None = None) -> tuple[DigitsClassifier, str]:
    """The classifier and a hash of its weights; loaded from the cache, or trained in seconds on the CPU.

    Weights trained on different hardware differ in the last digits, so compare scores only if the hash is the same.
    Several processes may call this at once.

    Args:
        cache_dir: where it is kept; the cache of `datasets` by default.
    """
    digits = load_images(class_conditional=True, cache_dir=cache_dir)
    store = PixelStore.build(digits, (DigitsClassifier.side,) * 2, 1, cache_dir=cache_dir, progress=False)
    key = hashlib.sha256(f"{_VERSION} {store.folder.name}".encode()).hexdigest()[:16]

    def train(network: DigitsClassifier) -> None:
        every = store.batch(range(len(store)))
        train_classifier(network, normalize(every["images"]), every["class_labels"])

    return cached_classifier(f"digits-classifier-{key}", train, cache_dir)


def cached_classifier(
    name: str, train: Callable[[DigitsClassifier], None], cache_dir: str | os.PathLike | None = None
) -> tuple[DigitsClassifier, str]:
    """A classifier in evaluation mode and a hash of its weights: from the cache, or trained in place by `train`."""
    import datasets
    from filelock import FileLock
    from safetensors.torch import load_file, save_file

    file = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "ddpm_hf" / f"{name}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    network = DigitsClassifier()
    with FileLock(f"{file}.lock"):
        if not file.is_file():
            train(network)
            with replacing(file) as partial:
                save_file(network.state_dict(), partial)
    network.load_state_dict(load_file(file))
    return network.eval(), weights_fingerprint(network)[:8]


def train_classifier(
    network: DigitsClassifier,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    epochs: int = _EPOCHS,
    loss: Callable[[DigitsClassifier, torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> None:
    """Train in place, with fixed initial weights and a fixed order of images.

    Args:
        images: float32 (n, 1, 16, 16) in [-1, 1], or whatever `loss` takes.
        labels: int64 (n,), 0 to 9.
        epochs: passes over the images.
        loss: (network, images, labels of a batch) -> loss; the cross entropy by default.
    """
    loss = loss or (lambda network, images, labels: F.cross_entropy(network(images), labels))
    with seeded("digits classifier"):
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.reset_parameters()
    order = generator_for("digits classifier", "order")
    network.to(memory_format=torch.channels_last)  # nearly twice as fast on a CPU
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2, fused=True)
    steps = epochs * (len(images) // _BATCH)
    course = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK_RATE, total_steps=steps)
    network.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images), generator=order)[: steps // epochs * _BATCH].split(_BATCH):
            optimizer.zero_grad()
            loss(network, images[chosen], labels[chosen]).backward()
            optimizer.step()
            course.step()
    network.to(memory_format=torch.contiguous_format)
