"""Low-rank adapters of a U-Net's attention (Hu et al. 2021, arXiv 2106.09685), as diffusers loads them."""

import copy
from itertools import chain

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers

from .text_to_image import TextDenoiser

_ADAPTED = ("to_q", "to_k", "to_v", "to_out.0")


class AdaptedDenoiser(TextDenoiser):
    """A network whose adapters alone are trained; they are also all that its state dict holds.

    Args:
        unet: stays as it is, but for adapters that at first do nothing.
        rank: of each adapter.

    Raises:
        ValueError: peft is not installed.
    """

    def __init__(self, unet: UNet2DConditionModel, rank: int):
        try:
            from peft import LoraConfig
        except ImportError:
            raise ValueError("`lora_rank` needs an extra: pip install peft") from None
        super().__init__(unet.requires_grad_(False), None, all_outputs=True)
        self.unet.add_adapter(
            LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(_ADAPTED))
        )
        self.register_state_dict_post_hook(_leave_out_the_others)
        self.register_load_state_dict_pre_hook(_keep_the_others)

    def fused(self) -> TextDenoiser:
        """The plain network that does the same, with the adapters that were added to its weights."""
        from peft import get_peft_model_state_dict

        unet = copy.deepcopy(self.unet)
        adapters = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
        unet.fuse_lora()
        unet.unload_lora()
        network = TextDenoiser(unet, None, all_outputs=True)
        network.adapters = adapters
        return network


def _leave_out_the_others(network: AdaptedDenoiser, state: dict[str, torch.Tensor], prefix: str, _) -> None:
    for name in [name for name in state if name.startswith(prefix) and ".lora_" not in name]:
        del state[name]


def _keep_the_others(network: AdaptedDenoiser, state: dict[str, torch.Tensor], prefix: str, *_) -> None:
    for name, weight in chain(network.named_parameters(), network.named_buffers()):
        state.setdefault(prefix + name, weight)
