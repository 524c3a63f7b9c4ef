"""A VQModel that changes nothing.

Stock `KandinskyV22CombinedPipeline` has its decoder draw latents, which a VQModel turns into pixels. Where the decoder
draws pixels, that network has to return what it is given.
"""

import torch
from diffusers import VQModel
from torch import nn

# Two channels are held at ±this. x adds little to their variance, so that the group norm divides by a constant.
_HELD = 1000.0


@torch.no_grad()
def identity_movq() -> VQModel:
    """(B, 3, H, W) -> the same, within 1e-5 for numbers in [-1, 1].

    x and -x have three of eight channels each. All residual blocks are 0, the last norm's weight is the constant by
    which it divides, and silu(x) - silu(-x) = x.
    """
    movq = VQModel(
        block_out_channels=(8,),
        layers_per_block=1,
        num_vq_embeddings=2,
        norm_num_groups=1,
        vq_embed_dim=3,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )
    for weight in movq.parameters():
        nn.init.zeros_(weight)
    for convolution in (movq.quant_conv, movq.post_quant_conv):
        nn.init.dirac_(convolution.weight)
    for half in (movq.encoder, movq.decoder):
        for channel in range(3):
            for place, sign in ((channel, 1.0), (channel + 3, -1.0)):
                half.conv_in.weight[place, channel, 1, 1] = sign
                half.conv_out.weight[channel, place, 1, 1] = sign
        half.conv_in.bias[6], half.conv_in.bias[7] = _HELD, -_HELD
        half.conv_norm_out.weight[:6] = (2 * _HELD**2 / 8) ** 0.5  # the standard deviation of the eight channels
    return movq.eval().requires_grad_(False)
