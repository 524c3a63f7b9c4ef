"""The baseline: diffusers' own classes, used as in its train_unconditional.py (diffusers 0.42).

Its torchvision transforms are replaced by equivalent ones in Pillow and NumPy.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image


class StockTrainer:
    """The example's network, AdamW, EMAModel and DDPMScheduler with its defaults, trained step by step.

    Args:
        model: the network.
        mixed_precision: "no" or "bf16".
        learning_rate: after the warm-up.
        warmup_steps: linear warm-up, followed by cosine decay.
        train_steps: step at which the learning rate reaches zero.
        ema_decay: maximum decay of the EMA; None for no EMA.
    """

    def __init__(
        self,
        model: UNet2DModel,
        mixed_precision: str = "no",
        learning_rate: float = 1e-4,
        warmup_steps: int = 500,
        train_steps: int = 10**6,
        ema_decay: float | None = 0.9999,
    ):
        self.accelerator = Accelerator(mixed_precision=mixed_precision)
        self.precision = torch.bfloat16 if mixed_precision == "bf16" else torch.float32
        self.ema = None
        if ema_decay is not None:
            settings = {"use_ema_warmup": True, "inv_gamma": 1.0, "power": 0.75, "model_cls": UNet2DModel}
            self.ema = EMAModel(model.parameters(), decay=ema_decay, **settings, model_config=model.config)
            self.ema.to(self.accelerator.device)
        self.process = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")
        optimizer = make_adamw(model, learning_rate)
        course = get_scheduler("cosine", optimizer, num_warmup_steps=warmup_steps, num_training_steps=train_steps)
        self.model, self.optimizer, self.course = self.accelerator.prepare(model.train(), optimizer, course)

    def step(self, images: torch.Tensor) -> None:
        """One training step as in the example's loop; images in [-1, 1], float32 (batch, channels, H, W)."""
        clean_images = images.to(self.accelerator.device, self.precision)
        noise = torch.randn(clean_images.shape, dtype=self.precision, device=clean_images.device)
        timesteps = torch.randint(0, 1000, (len(clean_images),), device=clean_images.device).long()
        noisy_images = self.process.add_noise(clean_images, noise, timesteps)
        with self.accelerator.accumulate(self.model):
            output = self.model(noisy_images, timesteps).sample
            loss = F.mse_loss(output.float(), noise.float())
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.course.step()
            self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.step(self.model.parameters())
        loss.detach().item()  # the example logs it in every step

    def save(self, folder: Path) -> None:
        """The pipeline as the example saves it."""
        network = self.accelerator.unwrap_model(self.model)
        if self.ema is not None:
            self.ema.store(network.parameters())
            self.ema.copy_to(network.parameters())
        DDPMPipeline(unet=network, scheduler=self.process).save_pretrained(folder)
        if self.ema is not None:
            self.ema.restore(network.parameters())


def make_adamw(model: torch.nn.Module, learning_rate: float = 1e-4) -> torch.optim.AdamW:
    """The example's optimizer with the example's defaults."""
    return torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)


def make_loader(
    folder: Path, resolution: int, batch_size: int, num_workers: int = 0, random_flip: bool = True
) -> torch.utils.data.DataLoader:
    """The example's data path: a folder of images or parquet files, decoded and transformed in every epoch.

    Batches are {"input": float32 (batch, 3, resolution, resolution) in [-1, 1]}.
    """
    import datasets

    files = sorted(map(str, folder.glob("*.parquet")))
    place = {"path": "parquet", "data_files": files} if files else {"path": "imagefolder", "data_dir": str(folder)}
    data = datasets.load_dataset(**place, split="train", cache_dir=str(folder.with_name("cache")))
    data.set_transform(_Transform(resolution, random_flip))
    return torch.utils.data.DataLoader(data, batch_size=batch_size, shuffle=True, num_workers=num_workers)


class _Transform:
    """Resize, RandomCrop, RandomHorizontalFlip, ToTensor, Normalize; a class, so that it can be pickled to workers."""

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
        return to_normalized(image)


def to_normalized(image: Image.Image) -> torch.Tensor:
    """ToTensor and Normalize: float32 (channels, height, width) in [-1, 1]; grey images have one channel."""
    pixels = torch.from_numpy(np.atleast_3d(np.array(image))).permute(2, 0, 1).contiguous()
    return pixels.to(torch.float32).div(255).sub_(0.5).div_(0.5)


def endless(loader: torch.utils.data.DataLoader) -> Iterator[torch.Tensor]:
    """The loader's images, epoch after epoch."""
    while True:
        for batch in loader:
            yield batch["input"]
