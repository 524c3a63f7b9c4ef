"""Confidence intervals."""

from collections.abc import Sequence

import numpy as np


def wilson_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % confidence interval of a share observed among `count` (Wilson 1927).

    Unlike value ± error, it has a positive width for a share of 0.
    """
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def median_interval(values: Sequence[float], z: float = 1.96) -> tuple[float, float]:
    """The 95 % confidence interval of a median, between two of the ordered values (Conover 1999, §3.2).

    How many of n values lie below the true median is binomial with probability 1/2, here taken as normal.
    """
    ordered, half = np.sort(values), z * len(values) ** 0.5 / 2
    low, high = (round(len(values) / 2 - half), round(1 + len(values) / 2 + half))  # counted from 1
    return float(ordered[max(low, 1) - 1]), float(ordered[min(high, len(values)) - 1])
