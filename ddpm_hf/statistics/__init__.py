"""Arithmetic on features and counts, in numpy: distances and confidence intervals."""
