"""An autoencoder that is trained beside a discriminator, and with a perceptual distance (Rombach et al. 2022, 3.1)."""

import math

import torch
from torch.func import functional_call

from ..data.examples import TrainingImages
from ..diffusion.adversarial import AdversarialTerm
from ..models.discriminator import LEAST_SIDE, PatchDiscriminator
from ..models.perceptual import LPIPS
from ..pipelines.reconstruction import Autoencoder
from ..seeds import generator_for
from ..settings.config import Config

_LEAST_PERCEPTUAL_SIDE = 16  # VGG16 halves it four times


class Judged(Autoencoder):
    """(noise, t, picture, judged) -> as `Autoencoder`, and if it is judged, what the discriminator says of it.

    Of D(x'), D(x) and D(x'), (B, 1, h, w), the first has gradients for the reconstruction x' alone, the others for the
    weights of D alone. x is the picture.
    """

    def __init__(self, autoencoder: Autoencoder, discriminator: PatchDiscriminator):
        super().__init__(autoencoder.vae)
        self.discriminator = discriminator

    def forward(
        self, noise: torch.Tensor, timesteps: torch.Tensor, picture: torch.Tensor, judged: bool = False
    ) -> tuple[torch.Tensor, ...]:
        """See `Autoencoder`; both pictures (B, C, H, W)."""
        output = super().forward(noise, timesteps, picture)
        if not judged:
            return output
        fixed = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        dtype = next(iter(fixed.values())).dtype
        fooled = functional_call(self.discriminator, fixed, output[0].to(dtype))
        real, fake = self.discriminator(torch.cat([picture, output[0].detach()]).to(dtype)).chunk(2)
        return *output, fooled, real, fake


def judged(config: Config, images: TrainingImages, network: Autoencoder) -> tuple[Judged, AdversarialTerm] | None:
    """The network with a discriminator, and what that adds to the loss; None if none joins within the run.

    Raises:
        ValueError: the settings or the pictures are not for a discriminator, naming the argument.
    """
    options = config.optimization
    start, weight = options.adversarial_start, options.adversarial_weight
    if start is None or not weight or start >= (options.max_train_steps or math.inf):
        return None
    without = "; --adversarial_weight 0 trains without a discriminator"
    if min(images.shape[1:]) < LEAST_SIDE:
        raise ValueError(
            f"--adversarial_start {start} needs a --resolution of at least {LEAST_SIDE}, got {config.data.resolution}"
            + without
        )
    if options.gradient_accumulation_steps > 1:  # else the weight would be that of each part of the batch
        raise ValueError(
            f"--gradient_accumulation_steps must be 1 with --adversarial_start {start}, whose weight follows from the "
            f"gradients of a whole batch, got {options.gradient_accumulation_steps}" + without
        )
    if options.mixed_precision == "fp16":  # the gradients that give the weight are not scaled
        raise ValueError(f"--mixed_precision must be no or bf16 with --adversarial_start {start}, got fp16" + without)
    generator = generator_for(options.seed, "initial weights", "discriminator")
    discriminator = PatchDiscriminator(images.shape[0], generator)
    return Judged(network, discriminator), AdversarialTerm(weight, start, network.vae.decoder.conv_out)


def perceptual(config: Config, images: TrainingImages) -> LPIPS | None:
    """What `--perceptual` names.

    Raises:
        ValueError: it is not at hand, or not for these pictures.
    """
    if config.optimization.perceptual == "none":
        return None
    channels, *size = images.shape
    if channels == 4 or min(size) < _LEAST_PERCEPTUAL_SIDE:
        raise ValueError(
            f"--perceptual must be none but for grey and RGB pictures of {_LEAST_PERCEPTUAL_SIDE} pixels a side or "
            f"more, got {config.optimization.perceptual} for {channels} channels of {config.data.resolution}"
        )
    return LPIPS()
