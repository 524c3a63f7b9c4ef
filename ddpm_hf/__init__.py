"""Train denoising diffusion probabilistic models with Hugging Face diffusers."""
