"""The forecast of memory against the resident memory of real steps, that of work against counting by hand."""

import os
import subprocess
import sys

import pytest
import torch

from ddpm_hf import DDPMUNet2D
from ddpm_hf.models.unet import paper_config
from ddpm_hf.training.forecast import trace_step

TINY = paper_config(8, base_channels=8, channel_multipliers=(1, 2), attention_resolutions=(4,), blocks_per_level=1)

# Trains real steps as the loop does. First a few of a very small network, so that kernels and libraries are loaded
# before the baseline is taken. Linux alone tells a peak that starts anew (5 is written to clear_refs).
MEASURE = """
import sys
from pathlib import Path
import torch
from ddpm_hf.training.command_line import parse_training_arguments
from ddpm_hf.training.device import make_accelerator
from ddpm_hf.training.ema import EMA
from ddpm_hf.training.forecast import forecast
from ddpm_hf.training.plan import make_plan

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))

def train(plan, batch, steps):
    optimizer = torch.optim.AdamW(plan.unet.parameters(), fused=True)
    ema = EMA(plan.unet, 0.99, None, 0.75)
    plan.unet.train()
    if plan.config.model.gradient_checkpointing:
        plan.unet.enable_gradient_checkpointing()
    for step in range(steps):
        x_0 = torch.rand(batch, *plan.images.shape) * 2 - 1
        timesteps = torch.randint(0, 1000, (batch,))
        with torch.autocast("cpu", torch.bfloat16, enabled=accelerator.mixed_precision == "bf16"):
            losses = plan.loss(lambda x_t, t: plan.unet(x_t, t).sample, x_0, torch.randn_like(x_0), timesteps)
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(plan.unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(plan.unet, step + 1)

flags = sys.argv[1:]
config = parse_training_arguments(flags)
accelerator = make_accelerator(config)
small = "--resolution 8 --base_channels 8 --channel_multipliers 1 2 --blocks_per_level 1 --max_train_steps 1"
train(make_plan(parse_training_arguments([*small.split(), *flags[:2]]), accelerator), 1, 1)
plan = make_plan(config, accelerator)
cost = forecast(plan, accelerator)
base = status("VmRSS") - cost.parameters  # the network itself is part of what is forecast
Path("/proc/self/clear_refs").write_text("5")
train(plan, config.optimization.train_batch_size, 3)
print(cost.total, status("VmHWM") - base)
"""


@pytest.mark.processes
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc/self/clear_refs is Linux's")
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize(
    "preset",
    [
        ["--preset", "digits"],
        ["--preset", "small-32", "--channels", "3", "--train_batch_size", "8"],
        ["--preset", "small-32", "--channels", "3", "--train_batch_size", "16", "--gradient_checkpointing"],
    ],
)
def test_memory_is_within_15_percent_of_what_real_steps_take(tmp_path, preset, precision):
    flags = ["--mixed_precision", precision, "--output_dir", str(tmp_path / "out"), *preset]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, *flags], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]
    forecast, measured = map(int, result.stdout.split()[-2:])
    assert forecast == pytest.approx(measured, rel=0.15)


def count_by_hand(unet: torch.nn.Module, batch: int, channels: int, side: int) -> int:
    """Multiplications and additions of convolutions and linear layers, forwards, from the shapes that pass."""
    total = 0

    def count(module, inputs, output):
        nonlocal total
        per_output = module.weight[0].numel()
        total += 2 * output.numel() * per_output

    handles = [
        module.register_forward_hook(count)
        for module in unet.modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
    ]
    with torch.no_grad():
        unet(torch.zeros(batch, channels, side, side), torch.zeros(batch, dtype=torch.int64))
    for handle in handles:
        handle.remove()
    return total


def test_work_is_three_times_the_forward_work_counted_by_hand():
    """Backwards a layer computes the gradients of its input and of its weights, each as much as forwards."""
    unet = DDPMUNet2D(**TINY)
    _, flops = trace_step(unet, (4, 3, 8, 8))
    forward = count_by_hand(unet, 4, 3, 8)
    # Nobody wants the gradient of the first layer's input. Attention's two products (16 pixels, 16 channels) are not
    # layers; backwards there are four, and the first is computed again.
    first = 2 * 4 * 8 * 64 * 3 * 9
    attention = 2 * 2 * 4 * 16 * 16 * 16
    blocks = sum(type(module).__name__ == "Attention" for module in unet.modules())
    assert flops == pytest.approx(3 * forward - first + 3.5 * blocks * attention, rel=0.001)


def test_memory_grows_with_the_batch_and_shrinks_with_precision_and_checkpointing():
    unet = DDPMUNet2D(**paper_config(32, base_channels=32, channel_multipliers=(1, 2), blocks_per_level=2))
    shape = (16, 3, 32, 32)
    peak, flops = trace_step(unet, shape)
    double, double_flops = trace_step(unet, (32, 3, 32, 32))
    assert double == pytest.approx(2 * peak, rel=0.1) and double_flops == pytest.approx(2 * flops)
    half, _ = trace_step(unet, shape, torch.bfloat16)
    assert half == pytest.approx(peak / 2, rel=0.1)
    again, more = trace_step(unet, shape, gradient_checkpointing=True)
    assert again < 0.6 * peak and flops < more < 4 / 3 * flops


def test_the_network_itself_stays_as_it_is():
    unet = DDPMUNet2D(**{**TINY, "num_class_embeds": 4}).eval()
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    trace_step(unet, (2, 3, 7, 9))
    assert not unet.training and all(parameter.grad is None for parameter in unet.parameters())
    assert not unet.is_gradient_checkpointing
    for name, value in unet.state_dict().items():
        assert type(value) is torch.Tensor and torch.equal(value, before[name])
