"""Confidence intervals."""

import numpy as np


def wilson_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % confidence interval of a share observed among `count` (Wilson 1927).

    Unlike value ± error, it has a positive width for a share of 0.
    """
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))
