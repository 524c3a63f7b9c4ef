"""The other side: diffusers' own classes, put together as its train_unconditional.py does, with its defaults.

python benchmarks/stock_recipe.py IMAGES.npy --network unet/config.json --train_steps 1000 --output_dir stock

Only what cannot be had here differs. torchvision's transforms stand as the same work in PIL and numpy; images come as
an array instead of files (which spares this side their decoding); the length is given in steps instead of epochs; and
the seconds of the steps are written down.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from tqdm.auto import tqdm


class PerEpochTransforms(torch.utils.data.Dataset):
    """Each image goes through PIL every time that it is asked for: resized, turned into floats, normalized."""

    def __init__(self, images: np.ndarray):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        pixels = self.images[index]
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        image = image.resize((pixels.shape[1], pixels.shape[0]), Image.Resampling.BILINEAR)
        tensor = torch.from_numpy(np.array(image)).reshape(pixels.shape).permute(2, 0, 1).float() / 255
        return (tensor - 0.5) / 0.5


def main() -> None:
    options = parse()
    set_seed(options.seed)
    accelerator = Accelerator(mixed_precision=options.mixed_precision)
    unet = UNet2DModel.from_config(UNet2DModel.load_config(options.network))
    ema = None
    if options.use_ema:
        ema = EMAModel(
            unet.parameters(),
            decay=options.ema_max_decay,
            use_ema_warmup=True,
            inv_gamma=1.0,
            power=0.75,
            model_cls=UNet2DModel,
            model_config=unet.config,
        )
    dtype = torch.bfloat16 if options.mixed_precision == "bf16" else torch.float32
    process = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")
    optimizer = torch.optim.AdamW(
        unet.parameters(), lr=options.learning_rate, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
    )
    loader = torch.utils.data.DataLoader(
        PerEpochTransforms(np.load(options.images)), batch_size=options.train_batch_size, shuffle=True
    )
    course = get_scheduler(
        "cosine", optimizer, num_warmup_steps=options.lr_warmup_steps, num_training_steps=options.train_steps
    )
    unet, optimizer, loader, course = accelerator.prepare(unet, optimizer, loader, course)
    if ema is not None:
        ema.to(accelerator.device)

    seconds, start = 0.0, time.perf_counter()
    with tqdm(total=options.train_steps, desc="stock") as bar:
        for step, batch in enumerate(endless(loader, options.train_steps), start=1):
            train_step(accelerator, unet, process, optimizer, course, batch, dtype)
            if ema is not None:
                ema.step(unet.parameters())
            bar.update()
            if step in options.save_steps or step == options.train_steps:
                seconds += time.perf_counter() - start
                save(options.output_dir / f"step-{step}", accelerator, unet, ema, process, step, seconds)
                start = time.perf_counter()


def endless(loader: torch.utils.data.DataLoader, steps: int):
    """The batches of as many epochs as `steps` take."""
    done = 0
    while True:
        for batch in loader:
            yield batch
            done += 1
            if done == steps:
                return


def train_step(accelerator, unet, process, optimizer, course, batch, dtype) -> None:
    """One pass through the body of the example's loop."""
    clean_images = batch.to(dtype)
    noise = torch.randn(clean_images.shape, dtype=dtype, device=clean_images.device)
    timesteps = torch.randint(0, 1000, (len(clean_images),), device=clean_images.device).long()
    noisy_images = process.add_noise(clean_images, noise, timesteps)
    with accelerator.accumulate(unet):
        output = unet(noisy_images, timesteps).sample
        loss = F.mse_loss(output.float(), noise.float())
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        course.step()
        optimizer.zero_grad()
    loss.detach().item()  # the example logs it in every step


def save(folder: Path, accelerator, unet, ema, process, step: int, seconds: float) -> None:
    """The pipeline as the example saves it, and what it has cost so far."""
    network = accelerator.unwrap_model(unet)
    if ema is not None:
        ema.store(network.parameters())
        ema.copy_to(network.parameters())
    DDPMPipeline(unet=network, scheduler=process).save_pretrained(folder)
    if ema is not None:
        ema.restore(network.parameters())
    (folder / "cost.json").write_text(json.dumps({"step": step, "seconds": seconds}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help=".npy, uint8 (N, H, W, C).")
    parser.add_argument("--network", type=Path, required=True, help="Folder with the config.json of a UNet2DModel.")
    parser.add_argument("--train_steps", type=int, required=True)
    parser.add_argument("--save_steps", type=int, nargs="*", default=[], help="Save a pipeline after these too.")
    parser.add_argument("--train_batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--lr_warmup_steps", type=int, default=500)
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--use_ema", action="store_true")
    parser.add_argument("--ema_max_decay", type=float, default=0.9999)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
