"""Data x_0 ~ N(MEAN, STD²), for which the best prediction is known: E[x_0 | x_t] is linear in x_t."""

import numpy as np
import torch

MEAN, STD = 0.3, 0.45


def optimal_gain(alpha_bar):
    """k in E[x_0 | x_t] = MEAN + k (x_t - √alpha_bar MEAN)."""
    return np.sqrt(alpha_bar) * STD**2 / (alpha_bar * STD**2 + 1 - alpha_bar)


def optimal_variance(alpha_bar):
    """Var[x_0 | x_t]."""
    return STD**2 * (1 - alpha_bar) / (alpha_bar * STD**2 + 1 - alpha_bar)


def optimal_network(alpha_bar, prediction_type, log_variance=None):
    """A network that predicts E[x_0 | x_t] in any parametrization.

    `log_variance` (a table by timestep, or a number) fills the second half of the output.
    """
    table = torch.from_numpy(alpha_bar)

    def network(x_t, timesteps):
        a = table[timesteps].reshape(-1, *[1] * (x_t.ndim - 1))
        gain = a.sqrt() * STD**2 / (a * STD**2 + 1 - a)
        x_0 = MEAN + gain * (x_t - a.sqrt() * MEAN)
        eps = (x_t - a.sqrt() * x_0) / (1 - a).sqrt()
        v = a.sqrt() * eps - (1 - a).sqrt() * x_0
        output = {"epsilon": eps, "sample": x_0, "v_prediction": v}[prediction_type]
        if log_variance is None:
            return output
        second = torch.as_tensor(log_variance, dtype=torch.float64)
        second = second[timesteps].reshape(a.shape) if second.ndim else second
        return torch.cat([output, second.expand_as(output)], dim=1)

    return network
