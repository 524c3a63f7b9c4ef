"""The other side: diffusers' own classes, put together as its train_unconditional.py puts them together.

Network, optimizer, average, noise and loss are those of the example (diffusers 0.42), with its defaults unless said
otherwise. Its images pass through torchvision, which is not needed here: the same transforms are done with Pillow and
NumPy, as torchvision does them for such images.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from PIL import Image


class StockRecipe:
    """Network, AdamW, EMAModel and DDPMScheduler of the example, and its training step.

    Args:
        config: of the `UNet2DModel`.
        precision: torch.float32, or torch.bfloat16 as `--mixed_precision bf16` has it: the network under autocast,
            images and noise in bfloat16.
        learning_rate, ema_max_decay: as the example's flags.
        gradient_checkpointing: which the example has no flag for and the network has.
    """

    def __init__(
        self,
        config: dict[str, Any],
        precision: torch.dtype = torch.float32,
        learning_rate: float = 1e-4,
        ema_max_decay: float = 0.9999,
        gradient_checkpointing: bool = False,
    ):
        self.precision = precision
        self.model = UNet2DModel(**config).train()
        if gradient_checkpointing:
            self.model.enable_gradient_checkpointing()
        self.ema = EMAModel(
            self.model.parameters(),
            decay=ema_max_decay,
            use_ema_warmup=True,
            inv_gamma=1.0,
            power=0.75,
            model_cls=UNet2DModel,
            model_config=self.model.config,
        )
        self.noise_scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        self.optimizer = make_adamw(self.model, learning_rate)

    def step(self, images: torch.Tensor) -> torch.Tensor:
        """One optimizer step on images in [-1, 1], float32 (batch, channels, height, width); the loss."""
        clean_images = images.to(self.precision)
        noise = torch.randn(clean_images.shape, dtype=self.precision)
        timesteps = torch.randint(0, self.noise_scheduler.config.num_train_timesteps, (len(images),))
        noisy_images = self.noise_scheduler.add_noise(clean_images, noise, timesteps)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == torch.bfloat16):
            output = self.model(noisy_images, timesteps).sample
        loss = F.mse_loss(output.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.model.parameters())
        return loss.detach()


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
