"""What is random in a step: a function of (seed, step) alone, whatever slices it is taken in."""

from types import SimpleNamespace

import pytest
import torch

from ddpm_hf import LinearDDPMScheduler
from ddpm_hf.conditions.class_labels import ClassLabels
from ddpm_hf.conditions.condition import Condition
from ddpm_hf.seeds import derive_seed
from ddpm_hf.training.draws import StepDraws

CPU = torch.device("cpu")


class Brightness(Condition):
    def __init__(self, hidden: float):
        self.hidden = hidden

    def of_rows(self, batch):
        return {"brightness": batch["images"].float().mean((1, 2, 3)) / 255}

    def null(self, told):
        return {"brightness": torch.full_like(told["brightness"], -1)}


def draws(
    batch: int = 12, sampling: str = "stratified", seed: int = 0, dropout: float = 0.5, two=False, offset=None
) -> StepDraws:
    plan = SimpleNamespace(
        config=SimpleNamespace(
            optimization=SimpleNamespace(seed=seed, timestep_sampling=sampling, noise_offset=offset),
        ),
        facts=SimpleNamespace(global_batch_size=batch),
        system=SimpleNamespace(
            num_timesteps=1000,
            scheduler=LinearDDPMScheduler(),
            conditions=[ClassLabels(count=2, hidden=dropout), Brightness(dropout)][: 1 + two],
            told_from=(3, {"later": True}),
        ),
    )
    return StepDraws(plan)


@pytest.mark.parametrize("sampling", ["uniform", "stratified", "importance"])
def test_slices_make_up_the_global_batch(sampling):
    it, step = draws(sampling=sampling), 5
    whole, parts = range(60, 72), (range(60, 64), range(64, 72))
    labels = {"class_labels": torch.tensor([0, 1] * 6), "rows": torch.arange(12)}
    like = torch.zeros(1, 3, 4, 4)
    assert torch.equal(it.noise(whole, like), torch.cat([it.noise(part, like) for part in parts]))
    for entry in (0, 1):
        pieces = [it.timesteps(step, part, CPU)[entry] for part in parts]
        assert torch.equal(it.timesteps(step, whole, CPU)[entry], torch.cat(pieces))
    pieces = [
        it.told(step, part, {name: value[part.start - 60 : part.stop - 60] for name, value in labels.items()})
        for part in parts
    ]
    pieces = torch.cat([piece["class_labels"] for piece in pieces])
    assert torch.equal(it.told(step, whole, labels)["class_labels"], pieces)


def test_offset_noise_adds_a_normal_number_to_each_channel():
    positions, like = range(1000), torch.zeros(1, 4, 2, 3)
    added = draws(offset=0.1).noise(positions, like) - draws().noise(positions, like)
    added = added.double() / 0.1
    assert added.shape == (1000, 4, 2, 3) and torch.allclose(added, added[..., :1, :1].expand_as(added), atol=1e-5)
    each = added[..., 0, 0]
    # 4,000 numbers: their mean has a standard deviation of 0.016, and so have correlations of channels twice that.
    assert abs(each.mean()) < 0.06 and abs(each.var() - 1) < 0.1
    assert (each.T.corrcoef() - torch.eye(4)).abs().max() < 0.15
    whole = draws(offset=0.1).noise(range(8), like)
    assert torch.equal(whole[3:5], draws(offset=0.1).noise(range(3, 5), like))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_noise_of_an_image_is_what_a_generator_of_its_own_seed_draws(device):
    noise = draws(seed=3).noise(range(7, 10), torch.zeros(1, 3, 5, 4, device=device))
    for position, image in zip(range(7, 10), noise, strict=True):
        generator = torch.Generator(device).manual_seed(derive_seed(3, "noise", position))
        assert torch.equal(image, torch.randn(3, 5, 4, generator=generator, device=device))


def test_noise_is_standard_normal_and_new_at_every_position():
    noise = draws().noise(range(2000), torch.zeros(1, 1, 8, 8))
    n = noise.numel()
    assert abs(noise.mean()) < 4 / n**0.5 and abs(noise.var() - 1) < 4 * (2 / n) ** 0.5
    assert len({tuple(image.flatten()[:4].tolist()) for image in noise}) == 2000
    other = draws(seed=1).noise(range(2000), torch.zeros(1, 1, 8, 8))
    correlation = (noise * other).mean()
    assert abs(correlation) < 4 / n**0.5


def test_stratified_timesteps_have_one_in_each_stratum():
    timesteps, weights = draws(batch=10).timesteps(3, range(30, 40), CPU)
    assert sorted((timesteps // 100).tolist()) == list(range(10)) and torch.equal(weights, torch.ones(10))


def test_conditions_are_hidden_independently_at_their_rate_and_nowhere_else():
    batch, rate = 4000, 0.2
    rows = {"class_labels": torch.arange(batch) % 2, "rows": torch.arange(batch)}
    rows["images"] = torch.full((batch, 1, 2, 2), 51, dtype=torch.uint8)
    told = draws(batch=batch, dropout=rate, two=True).told(0, range(batch), rows)
    no_class, no_brightness = told["class_labels"] == 2, told["brightness"] == -1
    for hidden, share in ((no_class, rate), (no_brightness, rate), (no_class & no_brightness, rate**2)):
        assert abs(hidden.float().mean() - share) < 4 * (share * (1 - share) / batch) ** 0.5
    assert torch.equal(told["class_labels"][~no_class], rows["class_labels"][~no_class])
    assert (told["brightness"][~no_brightness] == 0.2).all()
    alone = draws(batch=batch, dropout=rate).told(0, range(batch), rows)
    assert torch.equal(alone["class_labels"], told["class_labels"])  # a further condition changes none before it
