"""The diffusion process: q, and p given a prediction. No network code here."""
