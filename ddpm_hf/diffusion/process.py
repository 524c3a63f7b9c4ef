"""The Gaussian process: q, and p given a prediction, as formulas that take one timestep per image.

Ho, Jain, Abbeel 2020, "Denoising Diffusion Probabilistic Models" (arXiv 2006.11239); equation numbers are that paper's
unless another is named. The paper counts t = 1 … T, code counts i = t - 1: `alphas_cumprod[i]` is alpha_bar_{i+1}.
Timestep -1 is the data, where alpha_bar is 1.

Each formula exists once: `step`, the losses and the bound call the methods below, whose coefficients come from the
float64 tables in coefficients.py. Variances are log-variances everywhere, in nats.
"""

import functools

import torch

from .coefficients import Coefficients
from .tensors import at_least_float32, in_dtype_of

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
POSTERIOR_VARIANCES = ("fixed_small", "fixed_small_log")
FORWARD_VARIANCES = ("fixed_large", "fixed_large_log")
LEARNED_VARIANCES = ("learned", "learned_range")
VARIANCE_TYPES = POSTERIOR_VARIANCES + FORWARD_VARIANCES + LEARNED_VARIANCES

EPSILON_WITHOUT_SIGNAL = (
    "`prediction_type='epsilon'` cannot be used with `rescale_betas_zero_snr=True`: at the last timestep the image is "
    "pure noise, and x_0 = (x_t - √(1 - alpha_bar) eps) / √alpha_bar divides by zero. Choose 'v_prediction' or "
    "'sample', or do not rescale the betas."
)


class GaussianProcess:
    """The formulas of q and p, for a class with a config and betas.

    In all methods `timesteps` is an int, a 0-d tensor or a tensor of shape (batch,), in [0, T), on any device; images
    have shape (batch, channels, height, width) or any other that starts with the batch. Results have the images'
    dtype; half precision is computed in float32.
    """

    coefficients: Coefficients
    _betas: torch.Tensor

    @functools.cached_property
    def lacks_terminal_signal(self) -> bool:
        """Whether the last timestep is pure noise (zero terminal SNR), i.e. its beta is 1."""
        return float(self._betas[-1]) == 1

    @property
    def _lacks_signal(self) -> bool:
        return self.lacks_terminal_signal and self.config.prediction_type == "epsilon"

    def _check_signal(self, timesteps: int | torch.Tensor) -> None:
        last = self.config.num_train_timesteps - 1
        if self._lacks_signal and bool((torch.as_tensor(timesteps) == last).any()):
            raise ValueError(EPSILON_WITHOUT_SIGNAL)

    # The forward process q

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: int | torch.Tensor
    ) -> torch.Tensor:
        """x_t = √alpha_bar_t x_0 + √(1 - alpha_bar_t) eps, Eq. 4."""
        x_0, eps = at_least_float32(original_samples, noise)
        root_alpha_bar, root_noise = self._signal_and_noise(timesteps, x_0)
        return in_dtype_of(original_samples, (root_alpha_bar * x_0).addcmul_(root_noise, eps))

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: int | torch.Tensor) -> torch.Tensor:
        """v = √alpha_bar_t eps - √(1 - alpha_bar_t) x_0 with x_0 = `sample` (Salimans & Ho 2022, arXiv 2202.00512)."""
        x_0, eps = at_least_float32(sample, noise)
        root_alpha_bar, root_noise = self._signal_and_noise(timesteps, x_0)
        return in_dtype_of(sample, (root_alpha_bar * eps).addcmul_(root_noise, x_0, value=-1))

    def snr(self, timesteps: int | torch.Tensor) -> torch.Tensor:
        """Signal-to-noise ratio alpha_bar_t / (1 - alpha_bar_t): float32, of the timesteps' shape and device."""
        return self.coefficients.at("snr", timesteps).clone()  # for an int it is a view of the table

    def _signal_and_noise(
        self, timesteps: int | torch.Tensor, like: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        at = self.coefficients.at
        return at("root_alpha_bar", timesteps, like), at("root_noise", timesteps, like)

    # From the network's output to x_0 and eps

    def split_model_output(
        self, model_output: torch.Tensor, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The prediction, and the predicted variance for learned variance types (else None), each like `sample`.

        Raises:
            ValueError: unless the output has the sample's C channels, or 2C for `learned` and `learned_range`.
        """
        channels, variance_type = sample.shape[1], self.config.variance_type
        expected = channels * (2 if variance_type in LEARNED_VARIANCES else 1)
        if model_output.shape[1] != expected:
            raise ValueError(
                f"`model_output` must have {expected} channels for samples with {channels} and `variance_type="
                f"{variance_type!r}`, got {model_output.shape[1]}. Change `variance_type` or `out_channels`."
            )
        if variance_type in LEARNED_VARIANCES:
            return torch.split(model_output, channels, dim=1)
        return model_output, None

    def predict_original_sample(
        self, model_output: torch.Tensor, sample: torch.Tensor, timesteps: int | torch.Tensor
    ) -> torch.Tensor:
        """x_0 from the prediction of eps (Eq. 15), x_0 or v (arXiv 2202.00512), not clipped.

        Args:
            model_output: the prediction alone (see `split_model_output`), shaped like `sample`.
            sample: x_t.
            timesteps: of the images.

        Raises:
            ValueError: for epsilon at the last timestep of a process with zero terminal SNR.
        """
        if self.config.prediction_type == "sample":
            return in_dtype_of(sample, model_output)
        prediction, x_t = at_least_float32(model_output, sample)
        root_alpha_bar, root_noise = self._signal_and_noise(timesteps, x_t)
        if self.config.prediction_type == "epsilon":
            self._check_signal(timesteps)
            x_0 = torch.addcmul(x_t, root_noise, prediction, value=-1).div_(root_alpha_bar)
        else:
            x_0 = (root_alpha_bar * x_t).addcmul_(root_noise, prediction, value=-1)
        return in_dtype_of(sample, x_0)

    def clip_original_sample(self, x_0: torch.Tensor) -> torch.Tensor:
        """x_0 clipped as the config says: dynamic thresholding (arXiv 2205.11487, §2.3), else `clip_sample`."""
        if self.config.thresholding:
            return self._threshold_sample(x_0)
        if self.config.clip_sample:
            return x_0.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        return x_0

    # The posterior q(x_{t-1} | x_t, x_0) and the reverse process p

    def posterior_mean(self, x_0: torch.Tensor, x_t: torch.Tensor, timesteps: int | torch.Tensor) -> torch.Tensor:
        """Mean of q(x_prev | x_t, x_0), Eq. 7, for the step to the chain's next timestep."""
        given, (x_0, x_t) = x_t, at_least_float32(x_0, x_t)
        share_of_x_0 = self.coefficients.at("posterior_x_0", timesteps, x_t)
        share_of_x_t = self.coefficients.at("posterior_x_t", timesteps, x_t)
        return in_dtype_of(given, (share_of_x_0 * x_0).addcmul_(share_of_x_t, x_t))

    def posterior_log_variance(
        self, timesteps: int | torch.Tensor, *, like: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Log of the variance of q(x_prev | x_t, x_0), Eq. 7.

        The variance of the step to the data is 0; its log is clipped to that of the chain's preceding step, as in the
        published code.

        Args:
            timesteps: of the images.
            like: images; the result gets their device, their dtype (at least float32) and shape (batch, 1, 1, 1).
                Without it: float32, the timesteps' shape and device.
        """
        return self.coefficients.at("posterior_log_variance", timesteps, like).clone()

    def model_log_variance(
        self,
        timesteps: int | torch.Tensor,
        predicted: torch.Tensor | None = None,
        *,
        like: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Log of the variance sigma² of p(x_prev | x_t) for the config's `variance_type`.

        Args:
            timesteps, like: as in `posterior_log_variance`; `like` is by default `predicted`.
            predicted: the network's second half, shaped like the images, for `learned` (the log-variance itself) and
                `learned_range` (-1 is the posterior's, 1 is log beta; arXiv 2102.09672, Eq. 15).

        Raises:
            ValueError: if `predicted` is missing for a learned variance.
        """
        variance_type = self.config.variance_type
        if variance_type in FORWARD_VARIANCES:
            return self.coefficients.at("log_beta", timesteps, like).clone()
        if variance_type not in LEARNED_VARIANCES:
            return self.posterior_log_variance(timesteps, like=like)
        if predicted is None:
            raise ValueError(f"`predicted` must be given for `variance_type={variance_type!r}`.")
        predicted, like = at_least_float32(predicted, predicted if like is None else like)
        if variance_type == "learned":
            return predicted
        high = self.coefficients.at("log_beta", timesteps, like)
        low = self.posterior_log_variance(timesteps, like=like)
        fraction = (predicted + 1) / 2
        return fraction * high + (1 - fraction) * low

    def _sigma(
        self, t: int | torch.Tensor, predicted_variance: torch.Tensor | None, like: torch.Tensor
    ) -> torch.Tensor:
        """Standard deviation of p(x_prev | x_t), 0 for the step to the data."""
        if predicted_variance is None:
            kind = "forward_sigma" if self.config.variance_type in FORWARD_VARIANCES else "posterior_sigma"
            return self.coefficients.at(kind, t, like)
        log_variance = self.model_log_variance(t, predicted=predicted_variance, like=like)
        return torch.exp(0.5 * log_variance) * self.coefficients.at("noise_switch", t, like)
