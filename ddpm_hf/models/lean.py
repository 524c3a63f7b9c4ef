"""The U-Net's forward pass for sampling: the same weights and sums, without what a small network spends its time on.

A step of sampling asks one timestep of the whole batch. So the time embedding and its projections in all residual
blocks are worked out once for the chain, and each projection becomes part of a convolution's bias. Queries, keys and
values come from one product, results are added in place, and no module is called. In a network whose layers take
microseconds that is most of the time.
"""

from collections.abc import Callable, Sequence

import torch
from diffusers import UNet2DModel
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import (
    AttnDownBlock2D,
    AttnUpBlock2D,
    DownBlock2D,
    UNetMidBlock2D,
    UpBlock2D,
)
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.nn import functional as F

from .unet import DDPMUNet2D, SelfAttnProcessor, run_padded

Layer = Callable[[torch.Tensor], torch.Tensor]

# Whatever else is found in a network (an adapter, a quantized layer, another kind of block) has a forward of its own.
_KNOWN = {
    *(UNet2DModel, DDPMUNet2D, Timesteps, TimestepEmbedding, ResnetBlock2D, Attention, Downsample2D, Upsample2D),
    *(DownBlock2D, AttnDownBlock2D, UNetMidBlock2D, UpBlock2D, AttnUpBlock2D),
    *(nn.ModuleList, nn.Conv2d, nn.Linear, nn.GroupNorm, nn.SiLU, nn.Dropout, nn.Embedding),
}


def is_lean(unet: nn.Module) -> bool:
    """Whether `LeanUNet` can stand for this network: in evaluation mode, of known parts, on one device, without hooks,
    compilation or autocast."""
    if unet.training or torch.is_autocast_enabled(unet.device.type):
        return False
    modules = list(unet.modules())
    if any(type(module) not in _KNOWN or _is_changed(module) for module in modules):
        return False
    if len({(parameter.device, parameter.dtype) for parameter in unet.parameters()}) != 1:
        return False
    return unet.config.class_embed_type is None and all(
        _has_usual_settings(module)
        for module in modules
        if isinstance(module, ResnetBlock2D | Attention | Downsample2D | Upsample2D | UpBlock2D)
    )


def _is_changed(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    return any(hooks) or "forward" in vars(module) or module._compiled_call_impl is not None


def _has_usual_settings(module: nn.Module) -> bool:
    if isinstance(module, ResnetBlock2D):
        plain = module.upsample is None and module.downsample is None and not module.skip_time_act
        usual = module.time_embedding_norm == "default" and type(module.nonlinearity) is nn.SiLU
        return plain and usual and module.output_scale_factor == 1 and module.time_emb_proj is not None
    if isinstance(module, Attention):
        usual = module.residual_connection and module.rescale_output_factor == 1 and module.group_norm is not None
        return usual and _attends_natively(module.processor)
    if isinstance(module, UpBlock2D):
        return all(getattr(module, name, None) is None for name in ("s1", "s2", "b1", "b2"))  # FreeU
    if isinstance(module, Downsample2D):
        return module.use_conv and module.norm is None
    return module.use_conv and module.interpolate and not module.use_conv_transpose and module.norm is None


def _attends_natively(processor: AttnProcessor2_0 | SelfAttnProcessor) -> bool:
    if type(processor) is SelfAttnProcessor:
        backend = processor._attention_backend or _AttentionBackendRegistry.get_active_backend()[0]
        return backend == AttentionBackendName.NATIVE
    return type(processor) is AttnProcessor2_0


class LeanUNet:
    """A network for which `is_lean` holds, as a function of images and a step of one chain.

    It holds copies of some weights: make it anew when the network has changed.

    Args:
        unet: the network.
        timesteps: of the chain, shape (number of steps,), as the scheduler has them.
    """

    def __init__(self, unet: UNet2DModel, timesteps: torch.Tensor):
        assert is_lean(unet), "this network has a forward of its own"
        self.unet = unet
        self.resnets = [module for module in unet.modules() if type(module) is ResnetBlock2D]
        self.multiple = 2 ** (len(unet.config.block_out_channels) - 1)
        # The blocks in the order in which they are called, which is not that of `modules()`.
        order = {id(resnet): i for i, resnet in enumerate(self.resnets)}
        self.down = [_down_block(block, order) for block in unet.down_blocks]
        self.middle = [] if unet.mid_block is None else _stages(unet.mid_block, order)
        self.up = [_up_block(block, order) for block in unet.up_blocks]
        with torch.no_grad():
            self._project_time(timesteps.to(unet.device))

    def _project_time(self, timesteps: torch.Tensor) -> None:
        unet, projections = self.unet, [resnet.time_emb_proj for resnet in self.resnets]
        self.sizes = [projection.out_features for projection in projections]
        self.weight = torch.cat([projection.weight for projection in projections])
        biases = [resnet.conv1.bias + resnet.time_emb_proj.bias for resnet in self.resnets]
        self.bias = torch.cat(biases)
        self.embedding = unet.time_embedding(unet.time_proj(timesteps).to(unet.dtype))
        if unet.class_embedding is None:
            shifts = F.linear(F.silu(self.embedding), self.weight, self.bias)
            self.shifts = [row.split(self.sizes) for row in shifts]

    def __call__(self, sample: torch.Tensor, step: int, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        """The network's prediction.

        Args:
            sample: (batch, in_channels, height, width), of the network's dtype.
            step: which of the chain's timesteps.
            class_labels: (batch,), for class-conditional networks.
        """
        if class_labels is None:
            shifts = self.shifts[step]
        else:
            embedding = self.embedding[step] + self.unet.class_embedding(class_labels)
            shifts = F.linear(F.silu(embedding), self.weight, self.bias).split(self.sizes, dim=1)
        return run_padded(lambda x: self._run(x, shifts), sample, self.multiple)

    def _run(self, x: torch.Tensor, shifts: Sequence[torch.Tensor]) -> torch.Tensor:
        unet = self.unet
        x = _convolve(unet.conv_in, x)
        skips = [x]
        for stages, downsample in self.down:
            for number, resnet, attention in stages:
                x = resnet(x, shifts[number])
                x = attention(x) if attention else x
                skips.append(x)
            if downsample:
                x = downsample(x)
                skips.append(x)
        for number, resnet, attention in self.middle:
            x = resnet(x, shifts[number])
            x = attention(x) if attention else x
        for stages, upsample in self.up:
            for number, resnet, attention in stages:
                x = resnet(torch.cat([x, skips.pop()], dim=1), shifts[number])
                x = attention(x) if attention else x
            x = upsample(x) if upsample else x
        return _convolve(unet.conv_out, _norm_silu(unet.conv_norm_out, x))


# One function for each kind of layer; a block is its residual blocks, with attention after each or not.

Stage = tuple[int, Callable[[torch.Tensor, torch.Tensor], torch.Tensor], Layer | None]


def _stages(block: nn.Module, order: dict[int, int]) -> list[Stage]:
    attentions = [attention and _attention(attention) for attention in getattr(block, "attentions", ())]
    if isinstance(block, UNetMidBlock2D):  # it begins with a residual block, attention comes between
        attentions.append(None)
    attentions = attentions or [None] * len(block.resnets)
    pairs = zip(block.resnets, attentions, strict=True)
    return [(order[id(resnet)], _residual(resnet), attention) for resnet, attention in pairs]


def _down_block(block: nn.Module, order: dict[int, int]) -> tuple[list[Stage], Layer | None]:
    if block.downsamplers is None:
        return _stages(block, order), None
    (downsampler,) = block.downsamplers
    conv, pad = downsampler.conv, downsampler.padding == 0

    def downsample(x: torch.Tensor) -> torch.Tensor:
        return _convolve(conv, F.pad(x, (0, 1, 0, 1)) if pad else x)

    return _stages(block, order), downsample


def _up_block(block: nn.Module, order: dict[int, int]) -> tuple[list[Stage], Layer | None]:
    if block.upsamplers is None:
        return _stages(block, order), None
    (upsampler,) = block.upsamplers

    def upsample(x: torch.Tensor) -> torch.Tensor:
        return _convolve(upsampler.conv, F.interpolate(x, scale_factor=2.0, mode="nearest"))

    return _stages(block, order), upsample


def _residual(block: ResnetBlock2D) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    norm1, conv1, norm2, conv2, shortcut = block.norm1, block.conv1, block.norm2, block.conv2, block.conv_shortcut

    def residual(x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        h = _norm_silu(norm1, x)
        if shift.ndim == 1:  # of all images: a bias
            h = torch.conv2d(h, conv1.weight, shift, conv1.stride, conv1.padding)
        else:
            h = torch.conv2d(h, conv1.weight, None, conv1.stride, conv1.padding).add_(shift[:, :, None, None])
        h = _convolve(conv2, _norm_silu(norm2, h))
        return h.add_(x if shortcut is None else _convolve(shortcut, x))

    return residual


def _attention(layer: Attention) -> Layer:
    projections = (layer.to_q, layer.to_k, layer.to_v)
    weight = torch.cat([projection.weight for projection in projections]).detach()
    bias = None if layer.to_q.bias is None else torch.cat([projection.bias for projection in projections]).detach()
    norm, out, heads = layer.group_norm, layer.to_out[0], layer.heads

    def attention(x: torch.Tensor) -> torch.Tensor:
        h = torch.group_norm(x.flatten(2), norm.num_groups, norm.weight, norm.bias, norm.eps).transpose(1, 2)
        h = F.linear(h, weight, bias).unflatten(-1, (3, heads, -1))  # (batch, pixels, 3, heads, channels per head)
        query, key, value = h.permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return F.linear(h, out.weight, out.bias).transpose(1, 2).reshape(x.shape).add_(x)

    return attention


def _norm_silu(norm: nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
    return F.silu(torch.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps), inplace=True)


def _convolve(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    return torch.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)
