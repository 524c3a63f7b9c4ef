"""Where images come from; they leave as pixels in [-1, 1]."""
