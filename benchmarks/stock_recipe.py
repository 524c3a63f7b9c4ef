"""Train like diffusers' train_unconditional.py, with its defaults.

python benchmarks/stock_recipe.py IMAGES.npy --network unet --train_steps 1000 --output_dir stock

Differences: torchvision's transforms are replaced by equivalent ones in PIL and numpy, images come from an array
instead of files (which saves this side the decoding), the length is in steps instead of epochs, and the seconds of
each step are recorded.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import set_seed
from diffusers import UNet2DModel
from PIL import Image
from stock import StockTrainer, endless, to_normalized
from tqdm.auto import tqdm


class PerEpochTransforms(torch.utils.data.Dataset):
    """Transforms each image with PIL on every access: resize, convert to float, normalize."""

    def __init__(self, images: np.ndarray):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        pixels = self.images[index]
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        image = image.resize((pixels.shape[1], pixels.shape[0]), Image.Resampling.BILINEAR)
        return {"input": to_normalized(image)}


def main() -> None:
    options = parse()
    set_seed(options.seed)
    trainer = StockTrainer(
        UNet2DModel.from_config(UNet2DModel.load_config(options.network)),
        options.mixed_precision,
        options.learning_rate,
        options.lr_warmup_steps,
        options.train_steps,
        options.ema_max_decay if options.use_ema else None,
    )
    loader = torch.utils.data.DataLoader(
        PerEpochTransforms(np.load(options.images)), batch_size=options.train_batch_size, shuffle=True
    )
    batches = endless(trainer.accelerator.prepare(loader))
    seconds, start = 0.0, time.perf_counter()
    for step in tqdm(range(1, options.train_steps + 1), desc="stock"):
        trainer.step(next(batches))
        if step in options.save_steps or step == options.train_steps:
            seconds += time.perf_counter() - start
            folder = options.output_dir / f"step-{step}"
            trainer.save(folder)
            (folder / "cost.json").write_text(json.dumps({"step": step, "seconds": seconds}))
            start = time.perf_counter()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help=".npy, uint8 (N, H, W, C).")
    parser.add_argument("--network", type=Path, required=True, help="Folder with the config.json of a UNet2DModel.")
    parser.add_argument("--train_steps", type=int, required=True)
    parser.add_argument(
        "--save_steps", type=int, nargs="*", default=[], help="Also save a pipeline after these steps."
    )
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
