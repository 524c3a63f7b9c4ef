"""The U-Net of Ho et al. 2020 (arXiv 2006.11239, appendix B), built from diffusers' own blocks.

`DDPMUNet2D` has the weights, configuration and constructor of diffusers' `UNet2DModel`. It adds the paper's
parametrisation and initialisation, images of any size, and hooks that `UNet2DModel` lacks.
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
from diffusers.models.unets.unet_2d import UNet2DOutput

from ddpm_hf.models.initialization import init_paper_weights
from ddpm_hf.portable import PortableConfig, StrictWeights


class SelfAttnProcessor:
    """Self-attention over the pixels of a feature map with the backend chosen by `set_attention_backend`.

    Equals diffusers' `AttnProcessor2_0`, which silently ignores the chosen backend.
    """

    def __init__(self) -> None:
        self._attention_backend = None  # set by diffusers; None follows its process-wide setting

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Apply `attn` to `hidden_states`, (batch, channels, height, width) -> the same shape."""
        assert encoder_hidden_states is None and attention_mask is None, "UNet2DModel has self-attention only"
        x = hidden_states.flatten(2).transpose(1, 2)  # (batch, pixels, channels)
        if attn.group_norm is not None:
            x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
        query, key, value = (  # (batch, pixels, heads, channels per head)
            projection(x).unflatten(-1, (attn.heads, -1)) for projection in (attn.to_q, attn.to_k, attn.to_v)
        )
        x = self._attend(query, key, value)
        linear, dropout = attn.to_out
        x = dropout(linear(x.flatten(2)))
        x = x.transpose(1, 2).reshape(hidden_states.shape)
        if attn.residual_connection:
            x = x + hidden_states
        return x / attn.rescale_output_factor

    def _attend(self, *projections: torch.Tensor) -> torch.Tensor:
        """Softmax(QKᵀ)V; on a CPU that trains in float32, whose kernel goes backwards several times as fast."""
        given = projections[0]
        if not (given.is_cpu and given.requires_grad):
            return dispatch_attention_fn(*projections, backend=self._attention_backend)
        dtype = torch.promote_types(given.dtype, torch.float32)
        with torch.autocast("cpu", enabled=False):
            x = dispatch_attention_fn(*(x.to(dtype) for x in projections), backend=self._attention_backend)
        return x.to(given.dtype)


class DDPMUNet2D(StrictWeights, PortableConfig, UNet2DModel, AttentionMixin, PeftAdapterMixin):
    """diffusers' `UNet2DModel` with the paper's construction and initialisation, for images of any size.

    State-dict keys, configuration and constructor arguments are those of `UNet2DModel`, and so are the random weights
    that the constructor draws. A saved network names `UNet2DModel`, and stock diffusers loads it.

    Added here:
    - `from_paper` and `init_paper_weights`: the architecture and initialisation of Ho et al. 2020.
    - Images of any size: the input is padded to the next size divisible by `2 ** (levels - 1)`, the only sizes that
      `UNet2DModel` runs, and the output is cropped. On those sizes the two are equal bit for bit.
    - `attn_processors`, a working `set_attention_backend`, LoRA adapters, `device_map`, `compile_repeated_blocks`.
    """

    # An up block concatenates skip connections to its input, so it must not be split across devices.
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

    # diffusers reads the configuration's keys from the constructor's signature.
    @functools.wraps(UNet2DModel.__init__)
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for module in self.modules():
            if isinstance(module, Attention) and type(module.processor) is AttnProcessor2_0:
                module.set_processor(SelfAttnProcessor())

    def compile_repeated_blocks(self, *args: Any, **kwargs: Any) -> None:
        """`torch.compile` every residual and attention block, with the same arguments.

        Nearly every block of a U-Net compiles separately, but PyTorch stops after 8 compilations of one function. So
        this raises `torch._dynamo.config.recompile_limit` for the whole process.
        """
        blocks = sum(type(module).__name__ in self._repeated_blocks for module in self.modules())
        dynamo = torch._dynamo.config
        # 4: training and evaluation mode, static and dynamic image size.
        dynamo.recompile_limit = max(dynamo.recompile_limit, 4 * blocks)
        super().compile_repeated_blocks(*args, **kwargs)

    @classmethod
    def from_paper(
        cls, resolution: int | Sequence[int], *, generator: torch.Generator | None = None, **architecture: Any
    ) -> "DDPMUNet2D":
        """A new network with the architecture and initial weights of Ho et al. 2020.

        Args:
            resolution: side of the square images, or (height, width), in pixels.
            generator: for the initial weights; the global one if None.
            architecture: the other arguments of `paper_config`.

        Raises:
            ValueError: an argument of `paper_config` is out of range.
        """
        model = cls(**paper_config(resolution, **architecture))
        model.init_paper_weights(generator)
        return model

    @torch.no_grad()
    def init_paper_weights(self, generator: torch.Generator | None = None) -> None:
        """Reinitialise the weights as in the paper; see `initialization.init_paper_weights`."""
        init_paper_weights(self, [self.conv_out], generator)

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
            class_labels: shape (batch,), int64; only for class-conditional networks, and required by them.
            return_dict: whether to return a `UNet2DOutput` rather than a tuple.

        Returns:
            The prediction as `.sample` or the only element of a tuple, shape (batch, out_channels, height, width).

        Raises:
            ValueError: `class_labels` is missing, or given to an unconditional network.
        """
        height, width = sample.shape[-2:]
        padded = pad_to_multiple(sample, 2 ** (len(self.config.block_out_channels) - 1))
        output = super().forward(padded, timestep, class_labels, return_dict=False)[0]
        top, left = (padded.shape[-2] - height) // 2, (padded.shape[-1] - width) // 2
        output = output[..., top : top + height, left : left + width]
        return UNet2DOutput(sample=output) if return_dict else (output,)

    def set_attention_backend(self, backend: str) -> None:
        """As in diffusers, but ValueError if a layer's processor would silently ignore the backend."""
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
        """As in diffusers, but with defaults that read what `save_lora_adapter` writes.

        diffusers' defaults expect a pickle, which could run code, and keys of a transformer, and silently load
        nothing.
        """
        kwargs.setdefault("use_safetensors", True)
        super().load_lora_adapter(pretrained_model_name_or_path_or_dict, prefix=prefix, **kwargs)


def pad_to_multiple(images: torch.Tensor, multiple: int) -> torch.Tensor:
    """Pad images by reflection on all four sides until height and width are multiples of `multiple`.

    Reflection, because the input is mostly noise, and mirrored white noise looks like white noise at the border.
    Replication would give streaks and zeros a flat frame, which the network never sees inside an image. An image
    smaller than its padding is reflected several times.
    """
    for dim in (-2, -1):
        size = images.shape[dim]
        extra = -size % multiple
        if extra:
            position = torch.arange(size + extra, device=images.device) - extra // 2
            period = max(2 * (size - 1), 1)  # border pixels are not repeated; a single pixel is
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
    """The configuration of a network described in the terms of Ho et al. 2020 (appendix B).

    Args:
        resolution: side of the square images, or (height, width), in pixels.
        channels: of the images.
        base_channels: feature channels at multiplier 1.
        channel_multipliers: one per level; each level halves the feature map of the one before. By default
            (1, 2, 2, 2), cut to the depth from `default_depth`.
        attention_resolutions: sides of the feature maps with self-attention after each residual block. Each selects
            the level whose shorter side is closest to it. The middle block always has attention.
        blocks_per_level: residual blocks per level of the encoder; the decoder has one more.
        dropout: probability, in [0, 1).
        num_classes: for a class-conditional network, which gets one more embedding row, the null class of guidance.
        learned_variance: double the output channels, as `variance_type` "learned" and "learned_range" require.

    Returns:
        Keyword arguments for `DDPMUNet2D` and `UNet2DModel`, in the types of a saved config (lists, not tuples).

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
        raise ValueError("`channel_multipliers` must have one integer per level, got none.")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"`dropout` must be at least 0 and less than 1, got {dropout}.")
    depth = len(channel_multipliers)
    attends = attention_levels(min(height, width), depth, attention_resolutions)
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
        # The paper's 4 channels in a group of the first level. Alone in its group, a channel would lose its mean.
        "norm_num_groups": math.gcd(32, max(1, base_channels // 4)),
        # UNet2DModel's defaults differ from the paper, where the time embedding is sin ‖ cos with frequencies down to
        # 1/10000 inclusive, norms have TensorFlow's epsilon, strided convolutions pad bottom and right only, and
        # attention has a single head.
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
        "downsample_padding": 0,
        "attention_head_dim": None,
    }


def default_depth(height: int, width: int) -> int:
    """The default number of levels for images of this size, 2 to 4.

    The largest depth at which the size is divisible, so that stock diffusers can run the network. Odd sizes are never
    divisible and always padded; they get the largest depth with at least 4 pixels at the lowest level, or 2.
    """
    for depth in (4, 3, 2):
        if height % 2 ** (depth - 1) == 0 and width % 2 ** (depth - 1) == 0:
            return depth
    return next((depth for depth in (4, 3) if math.ceil(min(height, width) / 2 ** (depth - 1)) >= 4), 2)


def attention_levels(side: int, depth: int, attention_resolutions: Sequence[int]) -> list[bool]:
    """Whether each level has attention, for images whose shorter side is `side`."""
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
    raise ValueError(f"`resolution` must be a side or (height, width), in whole pixels, got {resolution!r}.")


def _require_positive(**arguments: int | Sequence[int]) -> None:
    for name, given in arguments.items():
        values = given if isinstance(given, Sequence) else [given]
        if any(not isinstance(value, int) or value < 1 for value in values):
            raise ValueError(f"`{name}` must be integers of at least 1, got {given!r}.")
