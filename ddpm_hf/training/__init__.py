"""Learning: configuration, moving averages, checkpoints and the loop."""
