"""Bits per dimension of a set of images under a pipeline, on any number of processes.

The bound is Eq. 5 of Ho et al. 2020 (arXiv 2006.11239), worked out by `diffusion.bound`.
"""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import PartialState
from accelerate.utils import gather_object, tqdm

from ..data.transforms import normalize
from ..diffusion.bound import Network, VariationalBound
from ..pipelines.ddpm import DDPMPipeline
from ..pipelines.samplers import make_sampler, takes_variance
from ..seeds import generator_for

TERM_COLUMNS = ("timestep", "bits_per_dim", "standard_error", "n", "rate", "distortion_rmse")


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """The bound of n images, and what each step of the chain adds to it. All in bits/dim, float64.

    Attributes:
        rows: (n,) int64, rows of the data set in rising order.
        bits: (n,) the bound of each image, or an unbiased estimate of it.
        prior: (n,) its part L_T.
        chain: (T,) the timesteps of the chain, decreasing.
        num_terms: how many of the T terms were worked out for each image.
        counts: (T,) for how many images each term was worked out.
        terms: (T,) mean of each term over these images; NaN where there are none.
        term_errors: (T,) standard error of that mean; NaN for fewer than two images.
        x_0_mse: (T,) mean square error of the predicted x_0, pixels in [-1, 1].
    """

    rows: np.ndarray
    bits: np.ndarray
    prior: np.ndarray
    chain: np.ndarray
    num_terms: int
    counts: np.ndarray
    terms: np.ndarray
    term_errors: np.ndarray
    x_0_mse: np.ndarray

    @property
    def is_exact(self) -> bool:
        """Whether every image has all terms."""
        return self.num_terms == len(self.chain)

    @property
    def value(self) -> float:
        """Mean over the images."""
        return float(self.bits.mean())

    @property
    def standard_error(self) -> float | None:
        """Of the mean, from the scatter of the images: that of sampled terms is part of it. None for one image."""
        return float(self.bits.std(ddof=1) / np.sqrt(len(self.bits))) if len(self.bits) > 1 else None

    @property
    def distortion(self) -> float | None:
        """L_0; None if only some of the terms were worked out."""
        return float(self.terms[-1]) if self.is_exact else None

    @property
    def rate(self) -> float | None:
        """L_1 + … + L_T; None if only some of the terms were worked out."""
        return self.value - self.distortion if self.is_exact else None

    def record(self) -> dict[str, Any]:
        """What a report says of it, beside the data."""
        return {
            "name": "bits_per_dim",
            "value": self.value,
            "standard_error": self.standard_error,
            "n": len(self.bits),
            "rate": self.rate,
            "distortion": self.distortion,
            "prior": float(self.prior.mean()),
            "steps": len(self.chain),
            "terms_per_image": self.num_terms,
        }

    def table(self) -> list[dict[str, float]]:
        """A row for each timestep of the chain, `TERM_COLUMNS`.

        `rate` is what was sent before the step, L_T and all terms above, and `distortion_rmse` the root mean square
        error, on the scale 0 … 255, of the x_0 that is predicted from it: the axes of the paper's Fig. 5.
        """
        rate = self.prior.mean() + np.concatenate([[0.0], np.cumsum(self.terms[:-1])])
        if not self.is_exact:
            rate = np.full(len(self.chain), np.nan)
        columns = (self.chain, self.terms, self.term_errors, self.counts, rate, np.sqrt(self.x_0_mse) * 127.5)
        return [dict(zip(TERM_COLUMNS, map(_number, row), strict=True)) for row in zip(*columns, strict=True)]


def bound_of(pipeline: DDPMPipeline, *, clip: bool = True, cdf: str = "erf") -> VariationalBound:
    """The bound of a pipeline's process, whatever sampler it was saved with; arguments as in `VariationalBound`.

    Raises:
        ValueError: if the process has learned variances and the network does not output them, or the reverse.
    """
    process = make_sampler("ddpm", pipeline.scheduler)
    config = pipeline.unet.config
    needed = config.in_channels * (2 if takes_variance(process) else 1)
    if config.out_channels != needed:
        raise ValueError(
            f"the network has {config.out_channels} output channels, but the scheduler's variance_type "
            f"{process.config.variance_type!r} needs {needed}; set variance_type in scheduler/scheduler_config.json "
            "to what the network was trained with"
        )
    return VariationalBound(process, clip=clip, cdf=cdf)


def network_of(pipeline: DDPMPipeline) -> Network:
    """The pipeline's network as the bound calls it, without dropout."""
    unet = pipeline.unet.eval()

    def network(x_t: torch.Tensor, timesteps: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
        return unet(x_t.to(unet.dtype), timesteps, **conditions).sample

    return network


def measure_likelihood(
    bound: VariationalBound,
    network: Network,
    batches: Iterable[Mapping[str, torch.Tensor]],
    *,
    seed: int = 0,
    num_terms: int | None = None,
    batch_size: int = 256,
    count: int | None = None,
) -> Likelihood:
    """Bits/dim of images. Every process calls this with the same batches, works on its share, and gets all results.

    An image's value depends on the seed and on its row alone: neither on its batch nor on the number of processes.

    Args:
        bound: of the process.
        network: on the device of `PartialState`.
        batches: "images" uint8 (B, C, H, W), "rows" int64 (B,), and "class_labels" int64 (B,) for a conditional model.
            Best as large as all processes work on at once.
        seed: of the noise, and of the choice of terms.
        num_terms: how many terms for each image, drawn at random without replacement; all by default.
        batch_size: pairs of an image and a timestep that go through the network together.
        count: how many images are expected, for the bar's estimate of the time left.

    Raises:
        ValueError: if there are no images, `num_terms` is outside 1 … T, or an image's bound is not finite.
    """
    state = PartialState()
    rank, processes, device = state.process_index, state.num_processes, state.device
    terms_of_one = len(bound.chain) if num_terms is None else num_terms
    sums = _TermSums(bound.chain)
    rows, bits, prior = [], [], []
    total = None if count is None else len(range(rank, count, processes)) * terms_of_one
    bar = tqdm(total=total, desc="bits/dim", unit=" terms", unit_scale=True)

    def watched(x_t: torch.Tensor, timesteps: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
        bar.update(len(x_t))
        return network(x_t, timesteps, **conditions)

    for batch in batches:
        share = {name: value[rank::processes] for name, value in batch.items()}
        if len(share["rows"]) == 0:
            continue
        conditions = {name: value.to(device) for name, value in share.items() if name == "class_labels"}
        found = bound.evaluate(
            watched,
            normalize(share["images"]).to(device),
            [generator_for(seed, "likelihood", row) for row in share["rows"].tolist()],
            num_terms=num_terms,
            pairs_per_call=batch_size,
            **conditions,
        )
        sums.add(found.timesteps, found.terms, found.x_0_mse)
        rows.append(share["rows"].numpy())
        bits.append(found.total.double().cpu().numpy())
        prior.append(found.prior.double().cpu().numpy())
    bar.close()
    return _together(gather_object([(rows, bits, prior, sums.values)]), bound, terms_of_one)


class _TermSums:
    """Sums over images for each timestep of a chain: how many, bits, bits², square error. float64."""

    def __init__(self, chain: tuple[int, ...]):
        self.place = np.zeros(max(chain) + 1, dtype=np.int64)
        self.place[list(chain)] = np.arange(len(chain))
        self.values = np.zeros((4, len(chain)))

    def add(self, timesteps: torch.Tensor, bits: torch.Tensor, x_0_mse: torch.Tensor) -> None:
        """All of shape (B, K)."""
        places = self.place[timesteps.cpu().numpy().ravel()]
        bits, error = (value.double().cpu().numpy().ravel() for value in (bits, x_0_mse))
        for row, weights in zip(self.values, (np.ones_like(bits), bits, bits**2, error), strict=True):
            row += np.bincount(places, weights, minlength=len(row))


def _together(parts: list[tuple], bound: VariationalBound, num_terms: int) -> Likelihood:
    """The results of all processes as one."""
    lists = [[array for part in parts for array in part[k]] for k in range(3)]
    if not lists[0]:
        raise ValueError("there are no images to measure bits/dim on")
    rows, bits, prior = map(np.concatenate, lists)
    broken = np.flatnonzero(~np.isfinite(bits))
    if len(broken):
        raise ValueError(
            f"the bound of {len(broken)} of {len(bits)} images is not a finite number, first that of row "
            f"{rows[broken[0]]}; the network's weights or outputs are not finite"
        )
    order = np.argsort(rows, kind="stable")
    counts, bits_sum, squares, errors = sum(part[3] for part in parts)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = bits_sum / counts
        variance = np.maximum(squares / counts - terms**2, 0) * counts / (counts - 1)
        return Likelihood(
            rows=rows[order],
            bits=bits[order],
            prior=prior[order],
            chain=np.array(bound.chain),
            num_terms=num_terms,
            counts=counts.astype(np.int64),
            terms=terms,
            term_errors=np.where(counts > 1, np.sqrt(variance / counts), np.nan),
            x_0_mse=errors / counts,
        )


def write_terms(likelihood: Likelihood, file: Path) -> None:
    """The table of terms as CSV, an empty cell where there is no number."""
    _write_csv(file, TERM_COLUMNS, ([row[name] for name in TERM_COLUMNS] for row in likelihood.table()))


def write_images(likelihood: Likelihood, file: Path) -> None:
    """Bits/dim of each image as CSV: row of the data set, bits_per_dim."""
    _write_csv(file, ("row", "bits_per_dim"), zip(likelihood.rows.tolist(), likelihood.bits.tolist(), strict=True))


def _write_csv(file: Path, header: tuple[str, ...], rows: Iterable[Iterable]) -> None:
    with file.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(header)
        writer.writerows([[f"{cell:.9g}" if isinstance(cell, float) else cell for cell in row] for row in rows])


def _number(value: np.generic) -> int | float | None:
    number = value.item()
    return None if number != number else number
