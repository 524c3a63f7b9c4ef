"""The other side in pieces: optimizer, training step and data path of train_unconditional.py (diffusers 0.42).

Its images pass through torchvision, which is not needed here: the same transforms are done with Pillow and NumPy, as
torchvision does them for such images. The step itself is that of `stock_recipe`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from stock_recipe import train_step


class StockTrainer:
    """Network, AdamW, EMAModel and DDPMScheduler of the example with its defaults, taking steps when told to.

    Args:
        config: of the `UNet2DModel`.
        mixed_precision: "no" or "bf16".
        gradient_checkpointing: which the example has no flag for and the network has.
    """

    def __init__(self, config: dict[str, Any], mixed_precision: str = "no", gradient_checkpointing: bool = False):
        self.accelerator = Accelerator(mixed_precision=mixed_precision)
        self.precision = torch.bfloat16 if mixed_precision == "bf16" else torch.float32
        model = UNet2DModel(**config).train()
        if gradient_checkpointing:
            model.enable_gradient_checkpointing()
        settings = {"use_ema_warmup": True, "inv_gamma": 1.0, "power": 0.75}
        self.ema = EMAModel(
            model.parameters(), decay=0.9999, **settings, model_cls=UNet2DModel, model_config=model.config
        )
        self.process = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        optimizer = make_adamw(model)
        course = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=10**6)
        self.model, self.optimizer, self.course = self.accelerator.prepare(model, optimizer, course)

    def step(self, images: torch.Tensor) -> None:
        """One optimizer step on images in [-1, 1], float32 (batch, channels, height, width)."""
        parts = (self.accelerator, self.model, self.process, self.optimizer, self.course)
        train_step(*parts, images, self.precision)
        self.ema.step(self.model.parameters())


def make_adamw(model: torch.nn.Module, learning_rate: float = 1e-4) -> torch.optim.AdamW:
    """The example's optimizer with the example's defaults."""
    return torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)


def make_loader(
    folder: Path, resolution: int, batch_size: int, num_workers: int = 0, random_flip: bool = True
) -> torch.utils.data.DataLoader:
    """The example's data path: a folder of images, or of parquet files, decoded and transformed in every epoch.

    Batches are {"input": float32 (batch, 3, resolution, resolution) in [-1, 1]}.
    """
    import datasets

    files = sorted(map(str, folder.glob("*.parquet")))
    if files:
        data = datasets.load_dataset(
            "parquet", data_files=files, split="train", cache_dir=str(folder.with_name("cache"))
        )
    else:
        data = datasets.load_dataset(
            "imagefolder", data_dir=str(folder), split="train", cache_dir=str(folder.with_name("cache"))
        )
    data.set_transform(_Transform(resolution, random_flip))
    return torch.utils.data.DataLoader(data, batch_size=batch_size, shuffle=True, num_workers=num_workers)


class _Transform:
    """Resize, RandomCrop, RandomHorizontalFlip, ToTensor, Normalize; a class, so that workers can be sent it."""

    def __init__(self, resolution: int, random_flip: bool):
        self.resolution, self.random_flip = resolution, random_flip

    def __call__(self, examples: dict[str, list]) -> dict[str, list[torch.Tensor]]:
        return {"input": [self._one(image.convert("RGB")) for image in examples["image"]]}

    def _one(self, image: Image.Image) -> torch.Tensor:
        side = self.resolution
        if min(image.size) != side:
            factor = side / min(image.size)
            image = image.resize([max(side, round(length * factor)) for length in image.size], Image.BILINEAR)
        if image.size != (side, side):
            left, top = (int(torch.randint(0, length - side + 1, (1,))) for length in image.size)
            image = image.crop((left, top, left + side, top + side))
        if self.random_flip and torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels.to(torch.float32).div(255).sub_(0.5).div_(0.5)


def endless(loader: torch.utils.data.DataLoader) -> Iterator[torch.Tensor]:
    """Its images, epoch after epoch."""
    while True:
        for batch in loader:
            yield batch["input"]
