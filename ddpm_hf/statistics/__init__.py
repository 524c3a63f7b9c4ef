"""Arithmetic on features and counts, in numpy: distances, ranks, confidence intervals."""
