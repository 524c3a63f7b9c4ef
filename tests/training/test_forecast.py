"""The forecast of memory and work against counting by hand and against what a run really holds."""

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from ddpm_hf import DDPMUNet2D
from ddpm_hf.models.unet import paper_config
from ddpm_hf.steps.denoiser import Denoiser
from ddpm_hf.systems.forecast import count_pass, forecast

SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def unet() -> DDPMUNet2D:
    size = {"base_channels": 8, "channel_multipliers": (1, 2), "attention_resolutions": (4,), "blocks_per_level": 1}
    return DDPMUNet2D(**paper_config(8, **size))


@pytest.fixture(scope="module")
def layers(unet) -> list[tuple[nn.Module, torch.Tensor, torch.Tensor]]:
    """Every layer with its input and output in a pass of one image, all kept, so that none shares another's memory."""
    seen = []
    kinds = nn.Conv2d | nn.Linear | nn.GroupNorm | nn.SiLU
    handles = [
        module.register_forward_hook(lambda module, inputs, output: seen.append((module, inputs[0], output)))
        for module in unet.modules()
        if isinstance(module, kinds)
    ]
    unet.train()(torch.zeros(1, *SHAPE), torch.zeros(1, dtype=torch.int64))
    for handle in handles:
        handle.remove()
    return seen


def needed(layers, unet: DDPMUNet2D, inside: set[nn.Module]) -> dict[object, int]:
    """What the derivatives of these layers need -> its bytes: each one's input, the mean and deviation of the groups
    of a GroupNorm, and query, key and value."""
    projections = ("to_q", "to_k", "to_v")
    projecting = {getattr(part, name) for part in unet.modules() for name in projections if hasattr(part, name)}
    found = {}
    for layer, given, made in layers:
        if layer in inside:
            for tensor in (given, made) if layer in projecting else (given,):
                found[tensor.untyped_storage()] = tensor.untyped_storage().nbytes()
            if isinstance(layer, nn.GroupNorm):
                found[layer] = 2 * 4 * layer.num_groups
    return found


def work(layers, inside: set[nn.Module]) -> int:
    """Multiplications and additions of the convolutions and linear layers, forwards."""
    counted = [(layer, made) for layer, _, made in layers if isinstance(layer, nn.Conv2d | nn.Linear)]
    return sum(2 * made.numel() * layer.weight[0].numel() for layer, made in counted if layer in inside)


def test_what_is_kept_is_what_the_derivatives_need(unet, layers):
    by_hand = sum(needed(layers, unet, set(unet.modules())).values())
    assert count_pass(Denoiser(unet), SHAPE, {})[0] == pytest.approx(
        by_hand, rel=0.02
    )  # device "meta" copies one concatenation
    assert count_pass(Denoiser(unet), SHAPE, {}, half=True)[0] == pytest.approx(by_hand / 2, rel=0.02)


def test_work_is_three_times_the_forward_work_of_every_layer(unet, layers):
    """Backwards a layer computes the gradients of its input and of its weights, each as much work as its output."""
    blocks = sum(isinstance(module, Attention) for module in unet.modules())
    attention = 2 * 2 * 16 * 16 * 16  # two products of 16 pixels with 16 channels
    assert count_pass(Denoiser(unet), SHAPE, {})[1] == 3 * (work(layers, set(unet.modules())) + blocks * attention)


def test_checkpointing_drops_the_inside_of_residual_blocks_and_computes_it_again(unet, layers):
    first = unet.mid_block.resnets[0]  # which diffusers does not checkpoint
    residual = [module for module in unet.modules() if isinstance(module, ResnetBlock2D) and module is not first]
    blocks = [set(module.modules()) for module in residual]
    kept = needed(layers, unet, set(unet.modules()).difference(*blocks))
    for block in blocks:  # what enters it: the image, which its first layer gets, and the embedding of t
        entering = [given for layer, given, _ in layers if layer in block]
        for tensor in (entering[0], next(tensor for tensor in entering if tensor.dim() == 2)):
            kept[tensor.untyped_storage()] = tensor.untyped_storage().nbytes()
    inside = [needed(layers, unet, block) for block in blocks]
    largest = max(sum(size for key, size in found.items() if key not in kept) for found in inside)
    counted, flops = count_pass(Denoiser(unet), SHAPE, {}, gradient_checkpointing=True)
    assert counted == pytest.approx(sum(kept.values()) + largest, rel=0.02)
    assert flops == count_pass(Denoiser(unet), SHAPE, {})[1] + sum(work(layers, block) for block in blocks)


def test_weights_optimizer_and_average_are_those_of_a_run(train):
    trainer = train("--max_train_steps", "1", "--gradient_checkpointing", ending=False)
    cost = forecast(trainer.plan, trainer.accelerator)
    moments = [value for state in trainer.optimizer.state.values() for value in state.values() if value.dim()]
    assert cost.optimizer == sum(value.nbytes for value in moments)
    assert cost.ema == sum(parameter.nbytes for parameter in trainer.ema.model.parameters())
    assert cost.parameters == cost.gradients == sum(parameter.nbytes for parameter in trainer.model.parameters())
    kept, flops = count_pass(trainer.plan.system.network, trainer.plan.images.shape, {}, gradient_checkpointing=True)
    assert (cost.activations, cost.flops) == (round(2.3 * 4 * kept), 4 * flops)
