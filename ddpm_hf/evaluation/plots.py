"""Plots and image grids for the evaluation folder."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..sampling.pictures import image_grid
from ..statistics.memorization import Neighbours
from .likelihood import Likelihood


@contextmanager
def panels(file: Path, names: Sequence[str], width: float = 5, **options: str) -> Iterator[list]:
    """Axes, four in a row, `width` inches each, with a name at each y axis and shared options; saved at the end."""
    from matplotlib.figure import Figure

    columns = min(len(names), 4)
    rows = -(-len(names) // columns)
    wide, high = width * columns, 4 * rows
    figure = Figure(figsize=(wide, high))
    # Margins in inches; "constrained", a layout that matplotlib finds by itself, takes it longer than all the rest.
    figure.subplots_adjust(0.8 / wide, 0.6 / high, 1 - 0.2 / wide, 1 - 0.4 / high, wspace=0.25, hspace=0.25)
    drawn = [figure.add_subplot(rows, columns, k, ylabel=name, **options) for k, name in enumerate(names, start=1)]
    for axes in drawn:
        axes.grid(alpha=0.3, which="both")
    yield drawn
    figure.savefig(file, dpi=120)


def plot_terms(likelihood: Likelihood, file: Path) -> None:
    """Plot the bits/dim of each term against the timestep, log-log; L_0 is the leftmost point."""
    known = likelihood.counts > 0
    with panels(file, ["bits/dim"], 7, xlabel="timestep (1 … T)", xscale="log", yscale="log") as (axes,):
        # Near t = T a float32 KL can be exactly 0, which a log axis cannot show.
        axes.plot(likelihood.chain[known] + 1, np.maximum(likelihood.terms[known], 1e-9), ".", markersize=3)
        axes.set_title(f"{likelihood.value:.3f} bits/dim, {len(likelihood.bits):,} images", fontsize="medium")


def plot_rate_distortion(likelihood: Likelihood, file: Path) -> None:
    """Plot rate-distortion as in Fig. 5 of Ho et al. 2020: RMSE of the predicted x_0 against the bits sent."""
    rows = [row for row in likelihood.table() if row["n"]]
    with panels(file, ["distortion (RMSE on the scale 0 … 255)"], xlabel="rate (bits/dim)") as (axes,):
        axes.plot([row["rate"] for row in rows], [row["distortion_rmse"] for row in rows], linewidth=1.5)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)


def save_grid(rows: Sequence[np.ndarray], file: Path, row_names: Sequence[str] | None = None) -> None:
    """Save images, uint8 (n, C, H, W): one set as a square grid, or several of equal n as named rows."""
    images = np.concatenate(rows).transpose(0, 2, 3, 1)
    file.parent.mkdir(parents=True, exist_ok=True)
    image_grid(images, columns=None if row_names is None else len(rows[0]), row_names=row_names).save(file)


def plot_distances(samples: Neighbours, unseen: Neighbours, space: str, file: Path) -> None:
    """Plot the cumulative distances of samples and of held-out images to their nearest training images."""
    with panels(file, ["share of images"], 6, xlabel=f"distance to the nearest training image ({space})") as (axes,):
        for found, name in ((samples, "samples"), (unseen, "held-out images")):
            distances = np.sort(found.distances)
            axes.step(distances, np.arange(1, len(distances) + 1) / len(distances), where="post", label=name)
        axes.set_ylim(0, 1)
        axes.legend()
