"""Cost of everything in a step except the network: scheduler, EMA and optimizer, against diffusers'.

    OMP_NUM_THREADS=1 python benchmarks/overheads.py

Before timing, checks that both sides compute the same numbers.
"""

import copy
import sys
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import torch
from diffusers.training_utils import EMAModel
from measuring import Comparison, finish, make_parser, paired, start
from stock import make_adamw

import ddpm_hf
from ddpm_hf.models.unet import paper_config
from ddpm_hf.training.ema import EMA

TURNS = {"quick": 3, "normal": 9, "full": 25}
TOLERANCE = 1e-5
# (shape, goal for the ratio of step, of add_noise)
SHAPES = (((1, 1, 8, 8), 6.0, 2.5), ((16, 3, 32, 32), 1.8, 2.5), ((4, 3, 256, 256), None, None))


def preset_config(name: str) -> dict[str, Any]:
    """The configuration of a preset's network."""
    return paper_config(**{key: value for key, value in ddpm_hf.get_preset(name).model.items() if key != "dropout"})


def main(argv: list[str]) -> None:
    options = make_parser(__doc__, "overheads").parse_args(argv)
    facts = start(options)
    turns = TURNS[options.size]
    rows = [*scheduler_rows(turns), *update_rows(turns, options.size)]
    finish(options, rows, facts)


def require_equal(what: str, stock: torch.Tensor, ours: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    """End the benchmark if the two sides differ."""
    difference = float((stock.detach() - ours.detach()).abs().max())
    if not difference <= tolerance:
        raise SystemExit(f"{what}: the two sides differ by {difference:.2g}, more than {tolerance:g}")


# Scheduler


def scheduler_rows(turns: int) -> Iterator[Comparison]:
    """step, add_noise and set_timesteps."""
    stock, ours = diffusers.DDPMScheduler(), ddpm_hf.LinearDDPMScheduler()
    for shape, step_goal, noise_goal in SHAPES:
        size = "x".join(map(str, shape))
        x_t, eps = torch.randn(shape), torch.randn(shape)
        for plain, goal in ((False, step_goal), (True, None)):
            stock_step, our_step = (stepper(side, x_t, eps, plain) for side in (stock, ours))
            require_equal(f"step {size}", stock_step(0), our_step(0))
            name = f"scheduler.step {size}{', return_dict=False' if plain else ''}"
            yield paired(name, stock_step, our_step, turns, goal=goal)
        yield paired("bound: the calls of PyTorch in it, bare", stock_step, bare_step(x_t, eps), turns)
        yield paired("bound: drawing the noise alone", stock_step, noise_alone(x_t), turns)
        timesteps = torch.randint(0, 1000, shape[:1])
        stock_noise, our_noise = (noiser(side, x_t, eps, timesteps) for side in (stock, ours))
        require_equal(f"add_noise {size}", stock_noise(), our_noise())
        yield paired(f"add_noise {size}", stock_noise, our_noise, turns, goal=noise_goal)
    yield paired("set_timesteps(1000)", lambda: stock.set_timesteps(1000), lambda: ours.set_timesteps(1000), turns)


def stepper(
    scheduler: diffusers.DDPMScheduler, x_t: torch.Tensor, eps: torch.Tensor, plain: bool
) -> Callable[..., torch.Tensor]:
    """A function that takes a step in the middle of the chain; deterministic if there is a seed."""
    scheduler.set_timesteps(1000)
    generator, timestep = torch.Generator(), scheduler.timesteps[500]

    def step(seed: int | None = None) -> torch.Tensor:
        if seed is not None:
            generator.manual_seed(seed)
        if plain:
            return scheduler.step(eps, timestep, x_t, generator=generator, return_dict=False)[0]
        return scheduler.step(eps, timestep, x_t, generator=generator).prev_sample

    return step


def bare_step(x_t: torch.Tensor, eps: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Only the arithmetic of a step with clipping: no settings, checks or tables."""
    generator = torch.Generator()
    a, b, c, d, sigma = (torch.tensor(number) for number in (1.1, -0.3, 0.2, 0.8, 0.05))

    def step() -> torch.Tensor:
        x_0 = torch.addcmul(x_t * a, eps, b).clamp_(-1, 1)
        mean = torch.addcmul(x_0 * c, x_t, d)
        return mean.addcmul_(sigma, torch.randn(x_t.shape, generator=generator))

    return step


def noise_alone(x_t: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Only the noise that any step must draw."""
    generator = torch.Generator()
    return lambda: torch.randn(x_t.shape, generator=generator)


def noiser(
    scheduler: diffusers.DDPMScheduler, x_0: torch.Tensor, eps: torch.Tensor, timesteps: torch.Tensor
) -> Callable[[], torch.Tensor]:
    return lambda: scheduler.add_noise(x_0, eps, timesteps)


# Updates


def update_rows(turns: int, size: str) -> Iterator[Comparison]:
    """EMA and optimizer, on the networks of the presets."""
    for preset in ("digits", "ddpm-cifar10")[: 1 if size == "quick" else None]:
        unet = diffusers.UNet2DModel(**preset_config(preset))
        name = f"{sum(parameter.numel() for parameter in unet.parameters()) / 1e6:.1f} M parameters"
        stock, ours = averages(unet)
        yield paired(f"EMA update, {name}", stock, ours, turns, goal=1.8)
        stock, ours = optimizers(unet)
        yield paired(f"AdamW step, {name}", stock, ours, turns, goal=2.5)


def averages(unet: torch.nn.Module) -> tuple[Callable[[], None], Callable[[], None]]:
    """One EMA update per side, with the same constant decay; checks that both agree after two."""
    stock = EMAModel(unet.parameters(), decay=0.999, min_decay=0.999)
    stock.optimization_step = 10  # the first update would copy the weights
    ours = EMA(unet, 0.999, None, 0.75)
    moved = copy.deepcopy(unet)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(torch.randn_like(parameter))

    def step_stock() -> None:
        stock.step(moved.parameters())

    def step_ours() -> None:
        ours.update(moved, 1)

    for step in (step_stock, step_ours):
        step(), step()
    for theirs, mine in zip(stock.shadow_params, ours.model.parameters(), strict=True):
        require_equal("EMA", theirs, mine)
    return step_stock, step_ours


def optimizers(unet: torch.nn.Module) -> tuple[Callable[[], None], Callable[[], None]]:
    """One AdamW step per side, as in the example and in our trainer; checks that both agree after two."""
    networks = [copy.deepcopy(unet) for _ in range(2)]
    settings = make_adamw(networks[0]).defaults
    same = {name: settings[name] for name in ("lr", "betas", "weight_decay", "eps")}
    stock = make_adamw(networks[0])
    ours = torch.optim.AdamW(networks[1].parameters(), **same, fused=True)
    for first, second in zip(*(network.parameters() for network in networks), strict=True):
        first.grad = second.grad = torch.randn_like(first)
    for optimizer in (stock, ours):
        optimizer.step(), optimizer.step()
    for first, second in zip(*(network.parameters() for network in networks), strict=True):
        require_equal("AdamW", first, second)
    return stock.step, ours.step


if __name__ == "__main__":
    main(sys.argv[1:])
