"""Which timesteps `LinearDDPMScheduler` visits."""

import itertools

import pytest
import torch
from diffusers import DDPMScheduler

from ddpm_hf.diffusion.scheduler import TIMESTEP_SPACINGS, LinearDDPMScheduler

SHAPE = (2, 3, 4, 4)


@pytest.mark.parametrize("total", [1, 10, 999])
@pytest.mark.parametrize("spacing", TIMESTEP_SPACINGS)
def test_every_count_gives_distinct_timesteps(spacing, total):
    ours, stock = (
        cls(num_train_timesteps=total, timestep_spacing=spacing) for cls in (LinearDDPMScheduler, DDPMScheduler)
    )
    unlike_stock = {}
    for n in range(1, total + 1):
        ours.set_timesteps(n)
        stock.set_timesteps(n)
        found, expected = ours.timesteps.tolist(), stock.timesteps.tolist()
        assert len(found) == n and all(a > b for a, b in itertools.pairwise(found))
        assert 0 <= found[-1] and found[0] < total
        assert spacing == "leading" or found[0] == total - 1
        if found != expected:
            unlike_stock[n] = expected
    if spacing == "leading" or total == 1:
        assert unlike_stock == {}
    elif spacing == "linspace":
        assert unlike_stock == {1: [0]}  # stock's single step starts from noise at timestep 0
    else:
        assert all(len(chain) == n + 1 and chain[-1] == -1 for n, chain in unlike_stock.items())
        assert unlike_stock or total < 100


def test_chain_of_ones_own():
    scheduler = LinearDDPMScheduler()
    scheduler.set_timesteps(timesteps=[900, 20, 3])
    assert scheduler.timesteps.tolist() == [900, 20, 3]
    assert [scheduler.previous_timestep(t) for t in (900, 20, 3)] == [20, 3, -1]
    assert scheduler.previous_timestep(scheduler.timesteps).tolist() == [20, 3, -1]
    assert scheduler.previous_timestep(torch.tensor(500)).item() == 20  # as documented
    scheduler.timesteps = scheduler.timesteps[1:]
    assert [scheduler.previous_timestep(t) for t in (20, 3)] == [3, -1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "Either `num_inference_steps` or `timesteps`"),
        ({"num_inference_steps": 3, "timesteps": [2, 1]}, "Either `num_inference_steps` or `timesteps`"),
        ({"num_inference_steps": 0}, "`num_inference_steps` must be between 1 and 1000, got 0"),
        ({"num_inference_steps": 1001}, "`num_inference_steps` must be between 1 and 1000, got 1001"),
        ({"timesteps": []}, r"one or more in \[0, 1000\)"),
        ({"timesteps": [1000, 3]}, r"one or more in \[0, 1000\)"),
        ({"timesteps": [10, -1]}, r"one or more in \[0, 1000\)"),
        ({"timesteps": [10, 10, 3]}, "`timesteps` must be decreasing, got"),
        ({"timesteps": [3, 10]}, "`timesteps` must be decreasing, got"),
    ],
)
def test_bad_chains(arguments, message):
    scheduler = LinearDDPMScheduler()
    with pytest.raises(ValueError, match=message):
        scheduler.set_timesteps(**arguments)
    assert len(scheduler.timesteps) == 1000 and scheduler.num_inference_steps is None


def test_steps_offset_that_leaves_the_table():
    scheduler = LinearDDPMScheduler(steps_offset=1)
    scheduler.set_timesteps(50)
    assert scheduler.timesteps[-1] == 1
    with pytest.raises(ValueError, match="`steps_offset` must leave room for 1000 of 1000 timesteps, got 1"):
        scheduler.set_timesteps(1000)


def test_timestep_outside_the_chain():
    scheduler = LinearDDPMScheduler()
    scheduler.set_timesteps(10)
    for call in (
        lambda: scheduler.previous_timestep(7),
        lambda: scheduler.step(torch.zeros(SHAPE), 7, torch.zeros(SHAPE)),
    ):
        with pytest.raises(ValueError, match="`timestep` must be one of the 10 timesteps .* got 7"):
            call()
    for t in (-1, 1000):
        with pytest.raises(ValueError, match=rf"`timesteps` must be in \[0, 1000\), got {t}"):
            scheduler.add_noise(torch.zeros(SHAPE), torch.zeros(SHAPE), t)
