"""The command lines; `accelerate launch -m ddpm_hf.cli.train` needs no checkout."""
