"""At which timesteps a chain of few network calls should make them: fitted to a model, by dynamic programming.

A sampler of n calls holds the predicted x_0 through each of its steps while the noise level goes on. What that costs
in the step from t to s is, by Girsanov's theorem, the integral over the signal-to-noise ratio of E|x_0(t) - x_0(u)|²
for u from t to s; and since the predictions of a good network form a martingale, that is mse(t) - mse(u), where mse is
the error of the predicted x_0. In these words the bound of Ho et al. 2020 is ½ ∫ mse dSNR plus the costs, so its terms
are minimized over all chains by dynamic programming (Watson et al. 2021, arXiv 2106.03802; Sabour et al. 2024, arXiv
2404.14507, for the view as a divergence of paths).

The bound itself is a poor judge of pictures: nearly all of its bits are noise that nobody sees, and the chain that is
best for it wastes its calls on the last few timesteps. Here every octave of noise counts alike: the integral is over
log SNR.
"""

import numpy as np

# Below it the prediction is the mean of all images, and two such timesteps differ by the noise of a measurement only.
_LEAST_SNR = 1e-3


def fit_timesteps(snr: np.ndarray, errors: np.ndarray, count: int) -> list[int]:
    """The chain of `count` timesteps that costs least.

    Args:
        snr: signal-to-noise ratio alpha_bar / (1 - alpha_bar) by timestep, decreasing, shape (T,).
        errors: mean square error of the predicted x_0 by timestep, shape (T,). Made non-decreasing, as that of a
            perfect network is.
        count: network calls, 1 … T.

    Returns:
        Decreasing timesteps from T - 1 to 0; what is predicted at 0 becomes the image. One alone is T - 1.

    Raises:
        ValueError: for a count outside 1 … T.
    """
    total = len(snr)
    if not 1 <= count <= total:
        raise ValueError(f"count is {count}; choose 1 to {total} timesteps")
    if count == 1:
        return [total - 1]
    costs = _step_costs(np.log(np.maximum(snr, _LEAST_SNR)), np.maximum.accumulate(errors))
    # best[t]: of all chains that have come down to t in the steps counted so far.
    best = np.full(total, np.inf)
    best[-1] = 0.0
    origins = []
    for _ in range(count - 1):
        through = best[:, None] + costs
        origins.append(through.argmin(0))
        best = through.min(0)
    chain = [0]
    for origin in reversed(origins):
        chain.append(int(origin[chain[-1]]))
    return chain[::-1]


def _step_costs(log_snr: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """The cost of the step from t (row) to s (column): ∫ (error(t) - error(u)) d log SNR(u), infinite unless s < t."""
    widths = log_snr[:-1] - log_snr[1:]
    length = np.concatenate([[0.0], np.cumsum(widths)])
    area = np.concatenate([[0.0], np.cumsum(widths * (errors[:-1] + errors[1:]) / 2)])
    costs = errors[:, None] * (length[:, None] - length) - (area[:, None] - area)
    return np.where(np.tri(len(errors), k=-1, dtype=bool), costs, np.inf)
