"""The U-Net of Ho et al. 2020 (arXiv 2006.11239, appendix B), built from diffusers' own blocks.

`DDPMUNet2D` has the weights, the configuration and the constructor of diffusers' `UNet2DModel`. It adds the paper's
vocabulary and initialisation, images of any size, and the hooks that `UNet2DModel` lacks.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import (
    ModelMixin,  # noqa: F401  diffusers looks it up here when an index names this module
    UNet2DModel,
)
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

from ddpm_hf.portable import PortableConfig, StrictWeights

# The paper's code asks for a scale of 0 in closing layers and puts this number in its place.
NEAR_ZERO_SCALE = 1e-10


class SelfAttnProcessor:
    """Self-attention over the pixels of a feature map, by the backend that `set_attention_backend` names.

    The numbers are those of diffusers' `AttnProcessor2_0`, which always calls PyTorch's own kernel and so ignores a
    chosen backend without a word.
    """

    def __init__(self) -> None:
        self._attention_backend = None  # the name diffusers looks for; None follows its process-wide setting

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`attn` applied to `hidden_states`; both it and the result have shape (batch, channels, height, width)."""
        assert encoder_hidden_states is None and attention_mask is None, "UNet2DModel has self-attention only"
        x = hidden_states.flatten(2).transpose(1, 2)  # (batch, pixels, channels)
        if attn.group_norm is not None:
            x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
        query, key, value = (  # (batch, pixels, heads, channels per head)
            projection(x).unflatten(-1, (attn.heads, -1)) for projection in (attn.to_q, attn.to_k, attn.to_v)
        )
        x = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        linear, dropout = attn.to_out
        x = dropout(linear(x.flatten(2)))
        x = x.transpose(1, 2).reshape(hidden_states.shape)
        if attn.residual_connection:
            x = x + hidden_states
        return x / attn.rescale_output_factor


class DDPMUNet2D(StrictWeights, PortableConfig, UNet2DModel, AttentionMixin, PeftAdapterMixin):
    """diffusers' `UNet2DModel` with the paper's construction and initialisation, for images of any size.

    State-dict keys, configuration and constructor arguments are those of `UNet2DModel`; the bare constructor draws the
    same random weights. A saved network names `UNet2DModel`, and stock diffusers loads it.

    Added here:
    - `from_paper` and `init_paper_weights`: the network in the terms of Ho et al. 2020, and as they initialise it.
    - Images of any size: the input is padded to the next size that the network can halve, the output is cropped back.
      `UNet2DModel` itself runs only sizes divisible by `2 ** (levels - 1)`; on these the two are equal bit for bit.
    - `attn_processors`, a `set_attention_backend` that acts, LoRA adapters, `device_map`, `compile_repeated_blocks`.
    """

    # An up block joins its input with feature maps of the way down. Kept whole, it finds both on its own device.
    _no_split_modules = [
        "ResnetBlock2D",
        "Attention",
        "UpBlock2D",
        "AttnUpBlock2D",
        "SkipUpBlock2D",
        "AttnSkipUpBlock2D",
        "ResnetUpsampleBlock2D",
    ]
    _repeated_blocks = ["ResnetBlock2D", "Attention"]

    # The signature seen from outside is UNet2DModel's: diffusers reads the configuration's keys from it.
    @functools.wraps(UNet2DModel.__init__)
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for module in self.modules():
            if isinstance(module, Attention) and type(module.processor) is AttnProcessor2_0:
                module.set_processor(SelfAttnProcessor())

    def compile_repeated_blocks(self, *args: Any, **kwargs: Any) -> None:
        """`torch.compile` every residual and attention block; the arguments are its own.

        PyTorch gives up after 8 compiled forms of a function, and nearly every block of a U-Net needs a form of its
        own. So this raises `torch._dynamo.config.recompile_limit`, which holds for the process.
        """
        blocks = sum(type(module).__name__ in self._repeated_blocks for module in self.modules())
        dynamo = torch._dynamo.config
        # In training and in evaluation, for one size of images and for any.
        dynamo.recompile_limit = max(dynamo.recompile_limit, 4 * blocks)
        super().compile_repeated_blocks(*args, **kwargs)

    @classmethod
    def from_paper(
        cls, resolution: int | Sequence[int], *, generator: torch.Generator | None = None, **architecture: Any
    ) -> "DDPMUNet2D":
        """A new network in the terms of Ho et al. 2020, with the paper's initial weights.

        Args:
            resolution: side of the square images, or (height, width), in pixels.
            generator: the source of the initial weights; the global one if None.
            architecture: the other arguments of `paper_config`.

        Raises:
            ValueError: an argument of `paper_config` is out of range.
        """
        model = cls(**paper_config(resolution, **architecture))
        model.init_paper_weights(generator)
        return model

    @torch.no_grad()
    def init_paper_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights anew as the authors' code does (github.com/hojonathanho/diffusion, `nn.py`).

        Kernels are uniform with variance `scale / fan_avg`, fan_avg = (fan_in + fan_out)/2, and biases zero. The scale
        is 1, but 1e-10 in the layers that close a residual branch (second convolution, attention output) and the
        network, so at the start every residual block passes its input on and the prediction is zero. Norms become
        the identity. The paper has no classes; their embedding is standard normal, as in Dhariwal & Nichol 2021.

        Args:
            generator: on the device of the weights; equal generators give equal weights. The global one if None.
        """
        closing = {self.conv_out}
        for module in self.modules():
            if isinstance(module, ResnetBlock2D):
                closing.add(module.conv2)
            elif isinstance(module, Attention):
                closing.add(module.to_out[0])
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                # Xavier's uniform law has variance gain² / fan_avg.
                gain = math.sqrt(NEAR_ZERO_SCALE) if module in closing else 1.0
                nn.init.xavier_uniform_(module.weight, gain=gain, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, generator=generator)
            elif isinstance(module, nn.GroupNorm):
                module.reset_parameters()

    @property
    def null_class(self) -> int | None:
        """The label that stands for "no class" in guidance: the last embedding row. None for unconditional networks.

        This is the convention of `paper_config(num_classes=...)`; a class-conditional network trained elsewhere may
        have a real class in its last row.
        """
        rows = self.config.num_class_embeds
        return None if rows is None else rows - 1

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """The network's prediction for noisy images.

        Args:
            sample: noisy images, shape (batch, in_channels, height, width), any height and width.
            timestep: 0 to T - 1, one for all images or shape (batch,).
            class_labels: shape (batch,), int64; needed by class-conditional networks, refused by others.
            return_dict: whether to return a `UNet2DOutput` rather than a tuple.

        Returns:
            The prediction as `.sample`, or as the only element of a tuple, shape (batch, out_channels, height, width).

        Raises:
            ValueError: `class_labels` are missing, or given to an unconditional network.
        """
        height, width = sample.shape[-2:]
        padded = pad_to_multiple(sample, 2 ** (len(self.config.block_out_channels) - 1))
        output = super().forward(padded, timestep, class_labels, return_dict=False)[0]
        top, left = (padded.shape[-2] - height) // 2, (padded.shape[-1] - width) // 2
        output = output[..., top : top + height, left : left + width]
        return UNet2DOutput(sample=output) if return_dict else (output,)

    def set_attention_backend(self, backend: str) -> None:
        """diffusers' method of this name. ValueError where it would pass over a layer's processor without a word."""
        for name, processor in self.attn_processors.items():
            if not hasattr(processor, "_attention_backend"):
                raise ValueError(
                    f"{name}: {type(processor).__name__} does not follow an attention backend; "
                    "call set_attn_processor(SelfAttnProcessor()) first."
                )
        super().set_attention_backend(backend)

    def load_lora_adapter(
        self, pretrained_model_name_or_path_or_dict: str | dict, prefix: str | None = None, **kwargs: Any
    ) -> None:
        """diffusers' method of this name, with defaults that read what `save_lora_adapter` writes.

        diffusers' own look for a pickle, which could run code, and for the keys of a transformer, and then load
        nothing without an error.
        """
        kwargs.setdefault("use_safetensors", True)
        super().load_lora_adapter(pretrained_model_name_or_path_or_dict, prefix=prefix, **kwargs)


def pad_to_multiple(images: torch.Tensor, multiple: int) -> torch.Tensor:
    """Images extended by reflection on all four sides, until height and width are multiples of `multiple`.

    Reflection, because the input is mostly noise: mirrored white noise is white next to the border, so the network
    sees there what it sees everywhere. Replication would draw streaks of equal pixels, and zeros a flat frame, and
    neither is ever seen inside an image. An image smaller than its frame is reflected several times.
    """
    for dim in (-2, -1):
        size = images.shape[dim]
        extra = -size % multiple
        if extra:
            position = torch.arange(size + extra, device=images.device) - extra // 2
            period = max(2 * (size - 1), 1)  # there and back, the border pixels once; a single pixel repeats itself
            position = position % period
            images = images.index_select(dim, torch.minimum(position, period - position))
    return images


def paper_config(
    resolution: int | Sequence[int],
    channels: int = 3,
    base_channels: int = 128,
    channel_multipliers: Sequence[int] | None = None,
    attention_resolutions: Sequence[int] = (16,),
    blocks_per_level: int = 2,
    dropout: float = 0.0,
    num_classes: int | None = None,
    learned_variance: bool = False,
) -> dict[str, Any]:
    """The configuration of a network that is described as Ho et al. 2020 describe theirs (appendix B).

    Args:
        resolution: side of the square images, or (height, width), in pixels.
        channels: of the images.
        base_channels: feature maps at multiplier 1.
        channel_multipliers: one for each level; every further level halves the feature map. By default
            (1, 2, 2, 2), cut to the depth that `default_depth` gives.
        attention_resolutions: sides of the feature maps with self-attention after each residual block. Each stands
            for the level whose shorter side is nearest to it, which is the level itself wherever there is one.
            The middle block has attention always.
        blocks_per_level: residual blocks of a level on the way down; the way up has one more.
        dropout: probability, in [0, 1).
        num_classes: for a class-conditional network. It gets one embedding row more, the null class of guidance.
        learned_variance: twice the output channels, as `variance_type` "learned" and "learned_range" need.

    Returns:
        Keyword arguments for `DDPMUNet2D` and `UNet2DModel`; lists and numbers, as they come back from a saved config.

    Raises:
        ValueError: an argument is out of range.
    """
    height, width = _height_width(resolution)
    if channel_multipliers is None:
        channel_multipliers = (1, 2, 2, 2)[: default_depth(height, width)]
    _require_positive(
        channels=channels,
        base_channels=base_channels,
        channel_multipliers=channel_multipliers,
        attention_resolutions=attention_resolutions,
        blocks_per_level=blocks_per_level,
        num_classes=() if num_classes is None else num_classes,
    )
    if not channel_multipliers:
        raise ValueError("channel_multipliers is empty; give one whole number for each level.")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout is {dropout}; choose a probability of at least 0 and less than 1.")
    depth = len(channel_multipliers)
    attends = _attention_levels(min(height, width), depth, attention_resolutions)
    return {
        "sample_size": height if height == width else [height, width],
        "in_channels": channels,
        "out_channels": 2 * channels if learned_variance else channels,
        "block_out_channels": [base_channels * multiplier for multiplier in channel_multipliers],
        "layers_per_block": blocks_per_level,
        "down_block_types": ["AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        "up_block_types": ["AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
        "dropout": dropout,
        "num_class_embeds": None if num_classes is None else num_classes + 1,
        "norm_num_groups": math.gcd(32, base_channels),  # the paper's 32, or fewer where channels are few
        # Where UNet2DModel's defaults are not the paper's: the time embedding is sin ‖ cos with frequencies up to
        # 1/10000 inclusive, norms have TensorFlow's epsilon, strided convolutions pad below and to the right only,
        # and attention has a single head.
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
        "downsample_padding": 0,
        "attention_head_dim": None,
    }


def default_depth(height: int, width: int) -> int:
    """Levels of a network for images of this size when the user names none: 2 to 4.

    The largest depth whose halvings the size bears, so that stock diffusers can run the network too. Odd sizes bear
    none and are padded whatever the depth; they get the largest that keeps 4 pixels at the lowest level, or 2.
    """
    for depth in (4, 3, 2):
        if height % 2 ** (depth - 1) == 0 and width % 2 ** (depth - 1) == 0:
            return depth
    return next((depth for depth in (4, 3) if math.ceil(min(height, width) / 2 ** (depth - 1)) >= 4), 2)


def _attention_levels(side: int, depth: int, attention_resolutions: Sequence[int]) -> list[bool]:
    """For each level of a network of this depth on images of this shorter side: does it attend?"""
    multiple = 2 ** (depth - 1)
    lowest = math.ceil(side / multiple)
    sides = [lowest * multiple // 2**level for level in range(depth)]
    nearest = {min(sides, key=lambda s: abs(math.log(s / wanted))) for wanted in attention_resolutions}
    return [s in nearest for s in sides]


def _height_width(resolution: int | Sequence[int]) -> tuple[int, int]:
    match resolution:
        case int(side) if side >= 1:
            return side, side
        case [int(height), int(width)] if height >= 1 and width >= 1:
            return height, width
    raise ValueError(f"resolution is {resolution!r}; give a side or (height, width), in whole pixels.")


def _require_positive(**arguments: int | Sequence[int]) -> None:
    for name, given in arguments.items():
        values = given if isinstance(given, Sequence) else [given]
        if any(not isinstance(value, int) or value < 1 for value in values):
            raise ValueError(f"{name} is {given!r}; whole numbers of at least 1 are needed.")
