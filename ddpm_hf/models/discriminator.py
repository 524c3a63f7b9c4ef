"""The patch discriminator of Isola et al. 2017 (arXiv 1611.07004), which judges an autoencoder's reconstructions."""

import torch
from torch import nn

LEAST_SIDE = 24  # of a picture, which gives it a single number


class PatchDiscriminator(nn.Sequential):
    """How real each patch looks: (B, C, H, W) -> (B, 1, H // 8 - 2, W // 8 - 2), high for a real one.

    The convolutions see 70x70 pixels. Layers, widths and initial weights are those of Isola et al. 2017 (6.1.2, 6.2),
    which the code of Esser et al. 2021 (arXiv 2012.09841) and Rombach et al. 2022 took over (`NLayerDiscriminator`).
    They normalise over the batch; here the features of each picture are normalised in 32 groups, so that what is said
    of it depends neither on the others nor on how processes share them.

    Args:
        channels: of the pictures, whose sides are at least `LEAST_SIDE`.
        generator: of the weights; the global one if None.
    """

    def __init__(self, channels: int, generator: torch.Generator | None = None):
        layers = [nn.Conv2d(channels, 64, 4, 2, padding=1), nn.LeakyReLU(0.2)]
        for width, stride in ((64, 2), (128, 2), (256, 1)):
            convolution = nn.Conv2d(width, 2 * width, 4, stride, padding=1, bias=False)
            layers += [convolution, nn.GroupNorm(32, 2 * width), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(512, 1, 4, padding=1))
        for layer in self:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.02, generator=generator)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
