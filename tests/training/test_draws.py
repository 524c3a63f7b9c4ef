"""What is random in a step: a function of (seed, step) alone, whatever slices it is taken in."""

from types import SimpleNamespace

import pytest
import torch

from ddpm_hf.seeds import derive_seed
from ddpm_hf.training.draws import StepDraws

CPU = torch.device("cpu")


def draws(batch: int = 12, sampling: str = "stratified", seed: int = 0, dropout: float = 0.5) -> StepDraws:
    plan = SimpleNamespace(
        config=SimpleNamespace(
            optimization=SimpleNamespace(seed=seed, timestep_sampling=sampling),
            model=SimpleNamespace(condition_dropout=dropout),
        ),
        facts={"global_batch_size": batch},
        scheduler=SimpleNamespace(config=SimpleNamespace(num_train_timesteps=1000)),
        id2label={0: "cat", 1: "dog"},
    )
    return StepDraws(plan)


@pytest.mark.parametrize("sampling", ["uniform", "stratified", "importance"])
def test_slices_make_up_the_global_batch(sampling):
    it, step = draws(sampling=sampling), 5
    whole, parts = range(60, 72), (range(60, 64), range(64, 72))
    labels = {"class_labels": torch.tensor([0, 1] * 6)}
    like = torch.zeros(1, 3, 4, 4)
    assert torch.equal(it.noise(whole, like), torch.cat([it.noise(part, like) for part in parts]))
    for entry in (0, 1):
        pieces = [it.timesteps(step, part, CPU)[entry] for part in parts]
        assert torch.equal(it.timesteps(step, whole, CPU)[entry], torch.cat(pieces))
    pieces = [
        it.conditions(step, part, {"class_labels": labels["class_labels"][part.start - 60 : part.stop - 60]})
        for part in parts
    ]
    pieces = torch.cat([piece["class_labels"] for piece in pieces])
    assert torch.equal(it.conditions(step, whole, labels)["class_labels"], pieces)


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


def test_classes_are_hidden_at_their_rate_and_nowhere_else():
    batch, rate = 4000, 0.2
    labels = torch.arange(batch) % 2
    told = draws(batch=batch, dropout=rate).conditions(0, range(batch), {"class_labels": labels})["class_labels"]
    hidden = told == 2
    assert abs(hidden.float().mean() - rate) < 4 * (rate * (1 - rate) / batch) ** 0.5
    assert torch.equal(told[~hidden], labels[~hidden])
