"""The moving average against its closed forms."""

import copy

import diffusers.training_utils
import pytest
import torch
from torch import nn
from torch.distributed import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from ddpm_hf.training.ema import EMA, ema_decay


def network(value: float) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


def test_constant_decay_on_a_step_has_its_closed_form():
    """From 0 to 1: after n steps the average of constant decay d is 1 - d^n."""
    ema = EMA(network(0.0), max_decay=0.9, inv_gamma=None, power=0.75)
    for n in range(1, 30):
        ema.update(network(1.0), n)
        assert ema.model.weight.item() == pytest.approx(1 - 0.9**n, rel=1e-5)


def test_a_line_is_followed_at_its_lag():
    """Weights n after step n: the average of constant decay d tends to n - d / (1 - d)."""
    ema = EMA(network(0.0), max_decay=0.5, inv_gamma=None, power=0.75)
    for n in range(1, 41):
        ema.update(network(float(n)), n)
    assert ema.model.weight.item() == pytest.approx(40 - 1.0, rel=1e-5)


def test_warm_up_forgets_the_initial_weights():
    """From 1 to 0 at inv_gamma = power = 1: the decays 1/2, 2/3, … leave the share 1 / (n + 1) after n steps."""
    ema = EMA(network(1.0), max_decay=1.0, inv_gamma=1.0, power=1.0)
    for n in range(1, 200):
        ema.update(network(0.0), n)
        assert ema.model.weight.item() == pytest.approx(1 / (n + 1), rel=1e-4)


@pytest.mark.parametrize("power", [0.0, 1.01, float("nan")])
def test_powers_that_never_forget_are_refused(power):
    """Above 1 the product of the decays has a limit above 0: 1/2 for power 2, from (1 - 1/4)(1 - 1/9)…"""
    with pytest.raises(ValueError, match="`power` must be above 0 and at most 1"):
        EMA(network(1.0), max_decay=0.9999, inv_gamma=1.0, power=power)


def test_warm_up_is_that_of_diffusers():
    """EMAModel counts from the first update, which copies: its decay after step n + 1 is ours after step n."""
    reference = diffusers.training_utils.EMAModel(
        [nn.Parameter(torch.zeros(1))], decay=0.99, use_ema_warmup=True, inv_gamma=2.0, power=0.75
    )
    for step in (1, 5, 100, 10_000):
        assert ema_decay(step, 0.99, 2.0, 0.75) == pytest.approx(reference.get_decay(step + 1), rel=1e-12)


def test_the_average_is_float32_apart_and_untrained():
    model = network(0.5).to(torch.float64).train()
    ema = EMA(model, 0.9, None, 0.75)
    model.weight.data.fill_(2.0)
    assert ema.model.weight.item() == 0.5 and ema.model.weight.dtype == torch.float32
    assert not ema.model.training and not ema.model.weight.requires_grad
    before = copy.deepcopy(model.weight)
    ema.update(model.float(), 1)
    assert torch.equal(model.weight, before.float())


def test_weights_in_half_precision_are_averaged_in_float32():
    ema = EMA(torch.nn.Linear(3, 2), 0.75, None, 1.0)
    start, trained = ema.model.weight.clone(), torch.nn.Linear(3, 2).to(torch.bfloat16)
    ema.update(trained, 1)
    assert ema.model.weight.dtype == torch.float32
    torch.testing.assert_close(ema.model.weight, 0.75 * start + 0.25 * trained.weight.float())


def test_weights_that_are_shared_out_are_averaged_whole():
    """As FSDP, version 2, keeps them; here in a group of one process."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        ema = EMA(torch.nn.Linear(3, 2), 0.75, None, 1.0)
        start, trained = ema.model.weight.clone(), torch.nn.Linear(3, 2)
        whole = trained.weight.detach().clone()
        fully_shard(trained, mesh=init_device_mesh("cpu", (1,)))
        assert isinstance(trained.weight, DTensor)
        ema.update(trained, 1)
        assert type(ema.model.weight) is torch.nn.Parameter
        torch.testing.assert_close(ema.model.weight.data, 0.75 * start + 0.25 * whole)
    finally:
        torch.distributed.destroy_process_group()
