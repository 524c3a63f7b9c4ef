"""Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..conditions.condition import Told
from ..flags import flag, switch
from .sampler import OF_THRESHOLDING


@dataclass(kw_only=True)
class GuidanceArguments:
    """What refines guidance, and how a cascade draws; shared by `scripts/sample.py` and `scripts/evaluate.py`."""

    guidance_interval: list[float] | None = flag(
        help="Guide only at timesteps t with LOW <= t/T <= HIGH: 0 is the clean end, 1 the noisy one. Elsewhere the "
        "network is called once. By default everywhere."
    )
    guidance_rescale: float | None = flag(
        help="From 0 to 1: how far the guided output of the network gets back the standard deviation of the unguided "
        "one, against pictures of too much contrast."
    )
    thresholding: bool | None = switch(
        help="Dynamic thresholding (Imagen) of the first stage: as in train.py. By default as it was trained."
    )
    dynamic_thresholding_ratio: float | None = flag(help="As in train.py.")
    sample_max_value: float | None = flag(help="As in train.py.")
    aug_level: int | None = flag(
        help="Of imagen, how much noise the small picture gets that is then enlarged: a timestep from 0 to T-1, by "
        "default T/4.",
        aliases=("--noise_level",),
    )
    prior_guidance_scale: float | None = flag(help="Of dalle2, guidance of the prior by the caption; by default 4.")
    prior_candidates: int | None = flag(
        help="Of dalle2, how many embeddings the prior draws for each image. That nearest to the caption is taken. By "
        "default 1, in the paper 2."
    )

    @property
    def finer_guidance(self) -> dict[str, Any]:
        """The arguments of a pipeline call that are given."""
        return self._given("guidance_interval", "guidance_rescale")

    @property
    def of_prior(self) -> dict[str, Any]:
        """The arguments of a pipeline call for a prior that are given."""
        return self._given("prior_guidance_scale", "prior_candidates")

    @property
    def asked_thresholding(self) -> dict[str, Any]:
        """The settings of a scheduler that are given."""
        return self._given("thresholding", *OF_THRESHOLDING)

    def _given(self, *names: str) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def guided(
    network: Callable[..., torch.Tensor],
    x_t: torch.Tensor,
    t: torch.Tensor,
    told: Told,
    null: Told,
    scale: float,
    rescale: float = 0.0,
) -> torch.Tensor:
    """The network's output, pushed away from what it says when it is told nothing.

    Args:
        network: (x_t, t, **told) -> (B, C or 2C, ...).
        x_t: (B, C, ...).
        told, null: what it is told, and what instead when that is hidden.
        scale: w in eps = eps(null) + w (eps(told) - eps(null)), which holds for every type of prediction, because all
            are linear in eps. Only the mean is guided: a learned variance is that of `told`.
        rescale: phi of Lin et al. 2023 (arXiv 2305.08891), Eq. 15 and 16. It does depend on the type of prediction:
            what is scaled is the network's output (eps, v or x_0), as in diffusers' pipelines; the paper's predicts v.
    """
    if not told or scale == 1:
        return network(x_t, t, **told)
    if scale == 0:
        return network(x_t, t, **null)
    both = {name: torch.cat([told[name], null[name]]) for name in told}
    conditional, unconditional = network(torch.cat([x_t, x_t]), t, **both).chunk(2)
    output, channels = conditional.clone(), x_t.shape[1]
    mean = torch.lerp(unconditional, conditional, scale)[:, :channels]
    if rescale:
        spread, wanted = (_spread(each) for each in (mean, conditional[:, :channels]))
        # An untrained network may predict 0 everywhere.
        mean = mean * (1 - rescale + rescale * wanted / spread.clamp(min=torch.finfo(spread.dtype).tiny))
    output[:, :channels] = mean
    return output


def _spread(output: torch.Tensor) -> torch.Tensor:
    """The standard deviation of each image's entries, (B, 1, ...)."""
    return output.std(dim=tuple(range(1, output.ndim)), keepdim=True)


def guides_at(t: torch.Tensor | float, total: int, interval: Sequence[float] | None) -> bool:
    """Whether to guide at timestep t of `total`: inside the interval, its ends included, or always if it is None.

    Kynkäänniemi et al. 2024 (arXiv 2404.07724) give the interval in standard deviations of the noise, which are those
    of one process. Fractions t/T are the same for all samplers of a model.
    """
    return interval is None or interval[0] <= float(t) / total <= interval[1]


def check_guidance(
    guidance_scale: float, guidance_interval: Sequence[float] | None = None, guidance_rescale: float = 0.0
) -> None:
    """Raises ValueError, naming the argument, if one is out of range, or refines what does not guide."""
    if not math.isfinite(guidance_scale):
        raise ValueError(f"`guidance_scale` must be a finite number, got {guidance_scale:g}.")
    ends = [0, 1] if guidance_interval is None else list(guidance_interval)
    if len(ends) != 2 or not 0 <= ends[0] < ends[1] <= 1:
        given = " ".join(f"{end:g}" for end in ends)
        raise ValueError(f"`guidance_interval` must be LOW and HIGH with 0 <= LOW < HIGH <= 1, got {given}.")
    if not 0 <= guidance_rescale <= 1:
        raise ValueError(f"`guidance_rescale` must be between 0 and 1, got {guidance_rescale:g}.")
    for name, given in (("interval", guidance_interval is not None), ("rescale", guidance_rescale != 0)):
        if given and guidance_scale in (0, 1):
            raise ValueError(
                f"`guidance_{name}` must be left out with `guidance_scale={guidance_scale:g}`, which does not guide."
            )


def check_prior(asked: Mapping[str, Any], pipeline: Any) -> None:
    """Raises ValueError, naming the flag, for what is asked of a prior that is not there, or cannot be asked of it."""
    for name, value in asked.items():
        if not pipeline.has_prior:
            raise ValueError(f"--{name} must be left out where no prior turns captions into embeddings, got {value:g}")
    if not math.isfinite(asked.get("prior_guidance_scale", 1.0)):
        raise ValueError(f"--prior_guidance_scale must be a finite number, got {asked['prior_guidance_scale']:g}")
    if asked.get("prior_candidates", 1) < 1:
        raise ValueError(f"--prior_candidates must be at least 1, got {asked['prior_candidates']}")


def check_noise_level(level: int | None, levels: int, name: str = "`noise_level`") -> None:
    """Raises ValueError for noise on a small picture that no stage adds; None asks for none.

    Args:
        levels: how many there are: `noise_levels` of the last stage.
        name: of the argument.
    """
    if level is not None and not levels:
        raise ValueError(f"{name} must be left out for a model that adds no noise to small pictures, got {level}.")
    if level is not None and not 0 <= level < levels:
        raise ValueError(f"{name} must be from 0 to {levels - 1}, got {level}.")
