"""What a run leaves: its folder, checkpoints, and the model page."""
