"""Draw the figures of derivation.md from the bundled digits and a pipeline that was trained on them.

make demo
python docs/make_figures.py demo
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from ddpm_hf import DDPMPipeline, LinearDDPMScheduler
from ddpm_hf.data.holdout import Holdout
from ddpm_hf.data.sources import load_images
from ddpm_hf.data.store import PixelStore
from ddpm_hf.diffusion.bound import Bound, VariationalBound
from ddpm_hf.pixels import normalize
from ddpm_hf.seeds import image_generators

FIGURES = Path(__file__).parent / "figures"
SCHEDULES = {"linear": "linear", "sigmoid": "sigmoid", "squaredcos_cap_v2": "cosine"}
HELD_OUT_IMAGES = 50


def main(folder: Path) -> None:
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    FIGURES.mkdir(exist_ok=True)
    pipeline = DDPMPipeline.from_pretrained(folder)
    pipeline.unet.eval()
    store = PixelStore.build(load_images(), size=(pipeline.unet.config.sample_size,) * 2, channels=1)
    draw_schedules()
    draw_forward_chain(normalize(torch.from_numpy(store.gather(np.array([0, 3, 8])))))
    draw_denoising_chain(pipeline)
    summary = json.loads((folder / "training_summary.json").read_text(encoding="utf-8"))
    held_out = np.flatnonzero(Holdout(**summary["holdout"]).mask(store.hashes))[:HELD_OUT_IMAGES]
    draw_bound_terms(pipeline, normalize(torch.from_numpy(store.gather(held_out))))


def draw_schedules() -> None:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9, 2.6), layout="constrained")
    for schedule, name in SCHEDULES.items():
        process = LinearDDPMScheduler(beta_schedule=schedule)
        t = torch.arange(1, 1001)
        left.plot(t, process.betas, label=name)
        middle.plot(t, process.alphas_cumprod)
        right.plot(t, process.snr(t - 1))
    left.set(title=r"noise added in step $t$: $\beta_t$", ylim=(0, 0.03))
    middle.set(title=r"variance left of the picture: $\bar\alpha_t$")
    right.set(title=r"SNR: $\bar\alpha_t\,/\,(1-\bar\alpha_t)$", yscale="log", ylim=(1e-5, 1e5))
    right.axhline(1, color="grey", linewidth=0.8, linestyle=":")
    for axes in (left, middle, right):
        axes.set_xlabel("t")
    left.legend(frameon=False)
    save(figure, "schedules")


def draw_forward_chain(images: torch.Tensor) -> None:
    process, times = LinearDDPMScheduler(), (0, 1, 30, 100, 200, 300, 500, 1000)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    columns = [images if t == 0 else process.add_noise(images, noise, t - 1) for t in times]
    save(picture_table(columns, [f"t = {t}" for t in times]), "forward_chain")


@torch.no_grad()
def draw_denoising_chain(pipeline: DDPMPipeline, count: int = 3) -> None:
    """Algorithm 2 with all of its timesteps; of some of them x_t and the x_0 that the network then guesses."""
    shown = (1000, 900, 800, 700, 600, 400, 200, 1)
    process = LinearDDPMScheduler.from_config(pipeline.scheduler.config)
    process.set_timesteps(process.config.num_train_timesteps)
    generators = image_generators(0, range(count))
    shape = (1, pipeline.unet.config.sample_size, pipeline.unet.config.sample_size)
    x = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    columns = []
    for i in process.timesteps.tolist():
        step = process.step(pipeline.unet(x, i).sample, i, x, generator=generators)
        if i + 1 in shown:
            columns.append(torch.stack([x, step.pred_original_sample], dim=1).flatten(0, 1))
        x = step.prev_sample
    rows = [r"$x_t$", r"$\hat x_0$"] * count
    save(picture_table(columns, [f"t = {t}" for t in shown], rows), "denoising_chain")


def draw_bound_terms(pipeline: DDPMPipeline, images: torch.Tensor) -> None:
    """Left, the bits of each term for both fixed variances; right, distortion against rate (the paper's figure 5)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    totals = {}
    for variance_type, name in (("fixed_small", r"\tilde\beta_t"), ("fixed_large", r"\beta_t")):
        bound = evaluate(pipeline, images, variance_type)
        bits = bound.terms.mean(0).numpy()
        totals[variance_type] = bits.sum()
        assert bits[-10:].sum() > 0.5 * bits.sum(), "the page says that the last ten steps cost more than half"
        t = 1 + np.array(bound.chain)
        left.loglog(t, bits, label=rf"$\sigma_t^2 = {name}$", linewidth=1)
        rate = np.cumsum(np.append(bound.prior.mean(), bits[:-1]))  # bits known when the chain has come down to t
        right.plot(rate, 127.5 * bound.x_0_mse.mean(0).sqrt(), linewidth=1)
    assert totals["fixed_small"] < totals["fixed_large"], "the page says that the small variance is better"
    left.set_title(f"the terms of the bound, {len(images)} held-out digits")
    left.set(xlabel="t", ylabel=r"bits/dim of $L_{t-1}$")
    left.legend(frameon=False)
    right.set(
        xlabel="rate: bits/dim of the terms from T down to t",
        ylabel="error of $\\hat x_0$ (grey levels)",
        title="distortion against rate",
        ylim=(0, None),
    )
    save(figure, "bound_terms")


def evaluate(pipeline: DDPMPipeline, images: torch.Tensor, variance_type: str) -> Bound:
    """The full bound, x_0 clipped as in published numbers; the same noise for every variance type."""
    process = LinearDDPMScheduler.from_config(pipeline.scheduler.config, variance_type=variance_type)
    generators = image_generators(0, range(len(images)))
    return VariationalBound(process).evaluate(lambda x, t: pipeline.unet(x, t).sample, images, generators)


def picture_table(columns: list[torch.Tensor], names: list[str], row_names: list[str] | None = None) -> plt.Figure:
    """Columns of images, each (rows, 1, height, width) in [-1, 1]; what lies outside is shown as black or white."""
    rows = len(columns[0])
    figure, grid = plt.subplots(rows, len(columns), figsize=(len(columns), 0.2 + rows), squeeze=False)
    figure.subplots_adjust(
        left=0.04 if row_names else 0, right=1, bottom=0, top=1 - 0.2 / (0.2 + rows), wspace=0.04, hspace=0.04
    )
    for column, images in enumerate(columns):
        for row, image in enumerate(images):
            axes = grid[row, column]
            axes.imshow(image[0], cmap="gray", vmin=-1, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        grid[0, column].set_title(names[column], fontsize=9, pad=3)
    for row, name in enumerate(row_names or []):
        grid[row, 0].set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


def save(figure: plt.Figure, name: str) -> None:
    figure.savefig(FIGURES / f"{name}.png", dpi=100, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
