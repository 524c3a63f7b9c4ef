"""What a training run is told: its flags, their checks, and the presets that fill them in."""
