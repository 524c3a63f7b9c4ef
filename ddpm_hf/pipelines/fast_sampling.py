"""Sampling in few network calls: a solver of the stochastic process, at timesteps that were fitted to the model.

`sampling.json` beside a pipeline holds them. No config has a place for a list of timesteps, and a key of ours would
travel into every file that stock diffusers reads.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from ..diffusion.scheduler import LinearDDPMScheduler
from ..diffusion.timestep_fit import fit_timesteps
from ..seeds import generator_for
from .ddpm import DDPMPipeline
from .samplers import SAMPLER_NAMES, make_sampler, rebuild

SAMPLING_FILE = "sampling.json"
FAST_SAMPLER, FAST_CALLS = "dpm-sde", 20
_MEASURED = 24  # timesteps even in t, and as many even in log SNR, at which the network's error is measured
_BATCH = 16  # images at once, as many as a preview has by default


@dataclass(frozen=True, kw_only=True)
class FastSampling:
    """How to draw in few network calls.

    Attributes:
        sampler: one of `SAMPLER_NAMES`.
        timesteps: at which the network is called, decreasing.
    """

    sampler: str
    timesteps: list[int]

    @classmethod
    def fit(
        cls, pipeline: DDPMPipeline, images: torch.Tensor, class_labels: torch.Tensor | None, seed: int
    ) -> "FastSampling":
        """Timesteps for a model by its errors on some images, see `fit_timesteps`.

        Args:
            pipeline: of the model.
            images: in [-1, 1], (B, C, H, W); a few dozen are enough.
            class_labels: (B,), the pipeline's numbers, for class-conditional models.
            seed: of the noise.
        """
        process = rebuild(LinearDDPMScheduler, pipeline.scheduler)
        every = torch.arange(process.config.num_train_timesteps)
        snr = process.snr(every).double().numpy()
        chosen = _spread(snr, _MEASURED)
        errors = _prediction_errors(pipeline, process, images, class_labels, chosen, seed)
        errors = np.interp(every.numpy(), chosen, errors)
        return cls(sampler=FAST_SAMPLER, timesteps=fit_timesteps(snr, errors, min(FAST_CALLS, len(snr))))

    @classmethod
    def read(cls, name: str) -> "FastSampling":
        """What stands in the `sampling.json` of a folder or of a repository on the Hub.

        Raises:
            ValueError: if there is none, or it is of another form.
        """
        try:
            file = Path(name) / SAMPLING_FILE if Path(name).is_dir() else Path(hf_hub_download(name, SAMPLING_FILE))
            content = json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, EntryNotFoundError):
            raise ValueError(f"{name} has no {SAMPLING_FILE}, which train.py writes when it ends") from None
        except (OSError, json.JSONDecodeError) as problem:
            raise ValueError(f"{SAMPLING_FILE} of {name} cannot be read: {problem}") from None
        return cls(**_checked(content, f"{SAMPLING_FILE} of {name}"))

    def write(self, folder: Path) -> None:
        """Put it beside a pipeline."""
        (folder / SAMPLING_FILE).write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    def apply(self, pipeline: DDPMPipeline) -> dict[str, list[int]]:
        """Give a pipeline this sampler; what its calls then take beside their own arguments."""
        pipeline.scheduler = make_sampler(self.sampler, pipeline.scheduler)
        return {"timesteps": self.timesteps}


def _checked(content: Any, what: str) -> dict[str, Any]:
    if not isinstance(content, dict) or set(content) != {"sampler", "timesteps"}:
        raise ValueError(f"{what} must have the keys sampler and timesteps")
    if content["sampler"] not in SAMPLER_NAMES:
        raise ValueError(f"{what} names the sampler {content['sampler']!r}; choose from {', '.join(SAMPLER_NAMES)}")
    chain = content["timesteps"]
    if not isinstance(chain, list) or not chain or not all(type(t) is int for t in chain):
        raise ValueError(f"timesteps in {what} must be a list of whole numbers, but are {chain!r}")
    if any(a <= b for a, b in zip(chain, [*chain[1:], -1], strict=True)):
        raise ValueError(f"timesteps in {what} must be decreasing and not negative, but are {chain}")
    return content


def _spread(snr: np.ndarray, count: int) -> np.ndarray:
    """Increasing timesteps, first and last among them, some even in t and some in log SNR."""
    total = len(snr)
    log_snr = np.log(np.maximum(snr, np.finfo(np.float32).tiny))
    octaves = np.interp(np.linspace(log_snr[-1], log_snr[0], count), log_snr[::-1], np.arange(total)[::-1])
    return np.unique(np.concatenate([np.linspace(0, total - 1, count), octaves]).round().astype(int))


@torch.no_grad()
def _prediction_errors(
    pipeline: DDPMPipeline,
    process: LinearDDPMScheduler,
    images: torch.Tensor,
    class_labels: torch.Tensor | None,
    timesteps: np.ndarray,
    seed: int,
) -> np.ndarray:
    """Mean square error of the predicted x_0 at each of these timesteps."""
    device, was_training = pipeline.device, pipeline.unet.training
    x_0 = images.to(device)
    class_labels = None if class_labels is None else class_labels.to(device)
    pipeline.unet.eval()
    try:
        network = pipeline.network_along(torch.from_numpy(timesteps).to(device))
        # The same noise at every timestep, because what counts is by how much the errors differ.
        noise = torch.randn(x_0.shape, generator=generator_for(seed, "fast sampling")).to(x_0)
        errors = []
        for i, t in enumerate(timesteps.tolist()):
            squares = 0.0
            for start in range(0, len(x_0), _BATCH):
                rows = slice(start, start + _BATCH)
                x_t = process.add_noise(x_0[rows], noise[rows], t)
                classes = None if class_labels is None else class_labels[rows]
                output = network(x_t, i, classes)[:, : x_0.shape[1]]
                predicted = process.predict_original_sample(output, x_t, t).clamp(-1, 1)
                squares += float((predicted - x_0[rows]).square().sum())
            errors.append(squares / x_0.numel())
    finally:
        pipeline.unet.train(was_training)
    return np.array(errors)
