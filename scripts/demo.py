"""The last step of `make demo`: load the trained pipeline and draw a grid of samples.

python scripts/demo.py demo
"""

import sys
from pathlib import Path

import numpy as np

from ddpm_hf.pipelines.loading import load_pipeline
from ddpm_hf.sampling.generation import generate
from ddpm_hf.sampling.pictures import image_grid

IMAGES, STEPS = 64, 100


def main(folder: Path) -> None:
    pipeline = load_pipeline(str(folder))
    pipeline.set_progress_bar_config(desc=f"sampling {IMAGES} images")
    batches = generate(pipeline, range(IMAGES), seed=0, batch_size=IMAGES, num_inference_steps=STEPS)
    picture = folder / "demo.png"
    image_grid(np.concatenate([images for _, images in batches])).save(picture)
    print(f"pipeline: {folder.resolve()}")
    print(f"picture: {picture.resolve()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
