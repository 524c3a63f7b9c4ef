"""The DDPM scheduler: a chain of timesteps and the step of Algorithm 2.

Ho, Jain, Abbeel 2020, "Denoising Diffusion Probabilistic Models" (arXiv 2006.11239). The formulas are in process.py.
"""

import functools
import operator
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  diffusers looks for it in this module

from ..portable import PortableConfig
from .coefficients import Coefficients
from .noise_schedules import betas_from_config, scaled_ends
from .process import EPSILON_WITHOUT_SIGNAL, PREDICTION_TYPES, VARIANCE_TYPES, GaussianProcess
from .tensors import at_least_float32, in_dtype_of, standard_normal

TIMESTEP_SPACINGS = ("linspace", "leading", "trailing")


class LinearDDPMScheduler(PortableConfig, GaussianProcess, DDPMScheduler):
    """`DDPMScheduler` with exact tables and formulas that take one timestep per image.

    Arguments and config are `DDPMScheduler`'s. `step` draws the same random numbers, so the same generator gives the
    same image. Differences:

    - The last step of any chain adds no noise (Algorithm 2), and `set_timesteps(n)` always gives n distinct timesteps.
    - `variance_type`: `fixed_small` and `fixed_small_log` are the posterior variance, `fixed_large` and
      `fixed_large_log` are beta, `learned` is a predicted log-variance and `learned_range` a predicted interpolation
      between the two fixed log-variances (Nichol & Dhariwal 2021, arXiv 2102.09672, Eq. 15).
    - Predicting epsilon with zero terminal SNR is an error when the process is used, since pure noise does not
      determine x_0; `__init__`, which must read any config that stock reads, only warns.
    """

    @functools.wraps(DDPMScheduler.__init__)
    def __init__(self, *args, **kwargs):
        try:
            super().__init__(*args, **kwargs)
        except NotImplementedError:
            betas_from_config(self.config)  # raises an error that names the schedules
            raise
        self.betas, self.alphas = self._betas.float(), (1 - self._betas).float()
        self.alphas_cumprod = self._alpha_bar.float()
        self._check_config()

    @functools.cached_property
    def _betas(self) -> torch.Tensor:
        return betas_from_config(self.config)

    @functools.cached_property
    def _alpha_bar(self) -> torch.Tensor:
        return torch.cumprod(1 - self._betas, dim=0)

    def _check_config(self) -> None:
        config = self.config
        for name, choices in (("prediction_type", PREDICTION_TYPES), ("timestep_spacing", TIMESTEP_SPACINGS)):
            if config[name] not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {config[name]!r}.")
        if config.variance_type not in VARIANCE_TYPES:
            warnings.warn(
                f"`variance_type` must be one of {', '.join(VARIANCE_TYPES)}, got {config.variance_type!r}. It is "
                "treated as 'fixed_small', as in DDPMScheduler.",
                stacklevel=3,
            )
        if self._lacks_signal:
            warnings.warn(EPSILON_WITHOUT_SIGNAL, stacklevel=3)
        # Unless 1 > alpha_bar_1 > … > alpha_bar_T ≥ 0, which is also false for NaN, some coefficient is 0/0.
        with_data = torch.cat([torch.ones(1, dtype=torch.float64), self._alpha_bar])
        if not ((with_data.diff() < 0).all() and with_data[-1] >= 0):
            given = self._betas if config.trained_betas is None else torch.as_tensor(config.trained_betas)
            problem = (
                "must be above 0 and below 1 (the last may be 1) and leave some signal for the next timestep, got "
                f"{given.min():g} to {given.max():g}."
            )
            if config.trained_betas is not None:
                raise ValueError(f"`trained_betas` {problem}")
            warnings.warn(f"The betas {problem}", stacklevel=3)

    @classmethod
    def for_timesteps(cls, num_train_timesteps: int, **kwargs) -> "LinearDDPMScheduler":
        """A scheduler for another T with the same continuous limit: beta's ends are scaled by 1000/T.

        `beta_start` and `beta_end` are those for T = 1000, as in the paper. The schedules `squaredcos_cap_v2` and
        `laplace` need no scaling.

        Args:
            num_train_timesteps: T ≥ 1.
            **kwargs: further arguments of the constructor.

        Raises:
            ValueError: if beta would reach 1 (T ≤ 20 for the default ends), or with `trained_betas`.
        """
        if kwargs.get("trained_betas") is not None:
            raise ValueError("`trained_betas` cannot be scaled to another T; call the constructor instead.")
        if num_train_timesteps < 1:
            raise ValueError(f"`num_train_timesteps` must be at least 1, got {num_train_timesteps}.")
        ends = {name: kwargs[name] for name in ("beta_start", "beta_end") if name in kwargs}
        ends = scaled_ends(num_train_timesteps, kwargs.get("beta_schedule", "linear"), **ends)
        if ends["beta_end"] >= 1:
            raise ValueError(
                f"`beta_end` times 1000/T must be below 1, got {ends['beta_end']:g} for `num_train_timesteps="
                f"{num_train_timesteps}`. Choose a larger T, a smaller `beta_end` or 'squaredcos_cap_v2'."
            )
        return cls(num_train_timesteps=num_train_timesteps, **kwargs | ends)

    # The chain of timesteps

    @property
    def timesteps(self) -> torch.Tensor:
        """The chain: int64, shape (number of steps,), decreasing. Can be assigned."""
        return self._timesteps

    @timesteps.setter
    def timesteps(self, timesteps: torch.Tensor) -> None:
        self.coefficients = Coefficients(self._alpha_bar, self.config.num_train_timesteps, timesteps.tolist())
        self._timesteps = timesteps

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Set the chain: `num_inference_steps` timesteps by `config.timestep_spacing`, or given `timesteps`.

        Args:
            num_inference_steps: 1 … T.
            device: of `self.timesteps`.
            timesteps: strictly decreasing integers in [0, T).

        Raises:
            ValueError: unless exactly one is given and valid, or if the process cannot be sampled (epsilon with zero
                terminal SNR).
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("Either `num_inference_steps` or `timesteps` must be given.")
        if self._lacks_signal:
            raise ValueError(EPSILON_WITHOUT_SIGNAL)
        if timesteps is None:
            chain = self._spaced_timesteps(num_inference_steps)
        else:
            chain = [operator.index(t) for t in timesteps]
        self.timesteps = torch.tensor(chain, dtype=torch.int64).to(device)
        self.custom_timesteps = timesteps is not None
        if timesteps is None:
            self.num_inference_steps = num_inference_steps

    def _spaced_timesteps(self, n: int) -> list[int]:
        """n distinct timesteps, by Table 2 of Lin et al. 2023 (arXiv 2305.08891); equal to stock's unless it errs."""
        total, offset = self.config.num_train_timesteps, self.config.steps_offset
        if not 1 <= n <= total:
            raise ValueError(f"`num_inference_steps` must be between 1 and {total}, got {n}.")
        if self.config.timestep_spacing == "linspace":
            # A single step starts at T-1; np.linspace would give [0].
            chain = np.linspace(0, total - 1, n).round()[::-1] if n > 1 else np.array([total - 1])
        elif self.config.timestep_spacing == "leading":
            chain = np.arange(n)[::-1] * (total // n) + offset
            if chain[0] >= total:
                raise ValueError(f"`steps_offset` must leave room for {n} of {total} timesteps, got {offset}.")
        else:
            # The rounding in T / n can make np.arange one value too long, and that value is -1.
            chain = np.arange(total, 0, -total / n)[:n].round() - 1
        return chain.astype(np.int64).tolist()

    def previous_timestep(self, timestep: int | torch.Tensor) -> int | torch.Tensor:
        """The next timestep of the chain, -1 after its last; an int for an int, a tensor for a tensor.

        Raises:
            ValueError: for an int that is not in the chain. A tensor's entries are not checked, because that could
                wait for a device; one that is not in the chain gets the chain's next lower timestep.
        """
        if isinstance(timestep, torch.Tensor):
            return self.coefficients.at("previous", timestep).long()
        self._check_in_chain(timestep)
        return self.coefficients.previous[timestep]

    def _check_in_chain(self, timestep: int) -> None:
        chain = self.coefficients.chain
        if timestep not in self.coefficients.previous:
            raise ValueError(
                f"`timestep` must be one of the {len(chain)} timesteps set by `set_timesteps`, from {chain[0]} to "
                f"{chain[-1]}, got {timestep}."
            )

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """One step of Algorithm 2, x_{t-1} ~ p(x_{t-1} | x_t), to the chain's next timestep. Never waits for a device.

        Args:
            model_output: the network's output for `sample`, (batch, C or 2C, ...).
            timestep: an entry of `self.timesteps`, its value as an int, or one per image, (batch,).
            sample: x_t, (batch, C, ...).
            generator: one for the batch, or a list of one per image.
            return_dict: False gives the tuple (prev_sample, pred_original_sample).

        Raises:
            ValueError: for an int that is not in the chain, or a wrong number of output channels.
        """
        t = self._on_host(timestep)
        noise_dtype = model_output.dtype
        model_output, x_t = at_least_float32(model_output, sample)
        # 1. The prediction, and the variance if the network predicts one
        prediction, predicted_variance = self.split_model_output(model_output, x_t)

        # 2. x_0 from the prediction, Eq. 15
        x_0 = self.predict_original_sample(prediction, x_t, t)

        # 3. Clip or threshold x_0
        x_0 = self.clip_original_sample(x_0)

        # 4. Mean of q(x_{t-1} | x_t, x_0), Eq. 7
        prev_sample = self.posterior_mean(x_0, x_t, t)

        # 5. Noise of standard deviation sigma_t, 0 in the chain's last step. It is drawn whenever t > 0, to leave the
        #    generator as stock does, and always for a timestep that only the device knows
        if not isinstance(t, int) or t > 0:
            z = standard_normal(prediction, generator, noise_dtype)
            prev_sample.addcmul_(self._sigma(t, predicted_variance, x_t), z)

        prev_sample, x_0 = in_dtype_of(sample, prev_sample), in_dtype_of(sample, x_0)
        if not return_dict:
            return prev_sample, x_0
        return DDPMSchedulerOutput(prev_sample=prev_sample, pred_original_sample=x_0)

    def _on_host(self, timestep: int | torch.Tensor) -> int | torch.Tensor:
        """One timestep as an int; unchanged if there are several or reading it would wait for a device."""
        if isinstance(timestep, torch.Tensor) and not (timestep.is_cpu and timestep.numel() == 1):
            return timestep
        self._check_in_chain(int(timestep))
        return int(timestep)
