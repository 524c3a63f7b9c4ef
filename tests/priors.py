"""Tiny priors, and the CLIPs whose embeddings they draw; all of them random."""

from pathlib import Path

import torch
from diffusers import UnCLIPScheduler

from ddpm_hf.models.clip import Clip, new_clip, new_image_processor, train_clip_tokenizer
from ddpm_hf.models.prior import new_prior
from ddpm_hf.pipelines.prior import PriorPipeline

LENGTH = 12  # tokens of a caption
CAPTIONS = ("a red apple", "ein grüner Käse", "красное яблоко", "a cat", "a dog")


def make_clip(seed: int = 0, text_width: int = 32) -> Clip:
    """Of pictures of 8x8, with embeddings of 32 channels."""
    torch.manual_seed(seed)
    tokenizer = train_clip_tokenizer(CAPTIONS, LENGTH)
    widths = {"width": 32, "layers": 1, "text_width": text_width, "text_layers": 1, "embedding_width": 32}
    clip = new_clip(8, tokenizer, patch=4, **widths)
    return Clip(clip.eval().requires_grad_(False), tokenizer, new_image_processor(8))


def save_clip_in(folder: Path, seed: int = 0, text_width: int = 32) -> str:
    """One as the Hub has them."""
    clip = make_clip(seed, text_width)
    for part in (clip.model, clip.tokenizer, clip.processor):
        part.save_pretrained(folder)
    return str(folder)


def make_prior(**process) -> PriorPipeline:
    """One whose embeddings have means and standard deviations of their own."""
    clip = make_clip()
    prior = new_prior(32, LENGTH, width=32, layers=1).eval()
    torch.nn.init.normal_(prior.positional_embedding)
    torch.nn.init.normal_(prior.proj_in.weight)  # so that x_t matters
    torch.nn.init.normal_(prior.clip_mean)
    torch.nn.init.uniform_(prior.clip_std, 0.5, 2.0)
    scheduler = UnCLIPScheduler(**{"prediction_type": "sample", "clip_sample_range": 10.0} | process)
    pipeline = PriorPipeline(prior, clip.vision(), clip.text(), clip.tokenizer, scheduler, clip.processor)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
