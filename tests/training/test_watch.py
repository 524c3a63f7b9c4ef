"""What an untrained predictor reaches, against simulation; and which runs get a finding while they run."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from texts import begin_text_run

from ddpm_hf.training import watch
from ddpm_hf.training.ema import EMA
from ddpm_hf.training.watch import GROUPS, Watch, untrained_losses


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_untrained_losses_are_those_of_a_simulation(start, prediction):
    """White Gaussian pixels with the data's mean and variance: the zero and the best linear pixelwise predictor."""
    plan = start("--prediction_type", prediction).plan
    pixels = plan.images.some_pixels() / 127.5 - 1
    generator = np.random.default_rng(0)
    zero, limit = (table.numpy() for table in untrained_losses(plan))
    betas = plan.system.scheduler.betas.double().numpy()
    for t in (0, 10, 300, 700, 990):
        alpha_bar = np.prod(1 - betas[: t + 1])
        x_0 = generator.normal(pixels.mean(), pixels.std(), 400_000)
        eps = generator.normal(size=x_0.shape)
        x_t = np.sqrt(alpha_bar) * x_0 + np.sqrt(1 - alpha_bar) * eps
        v = np.sqrt(alpha_bar) * eps - np.sqrt(1 - alpha_bar) * x_0
        target = {"epsilon": eps, "sample": x_0, "v_prediction": v}[prediction]
        slope, offset = np.polyfit(x_t, target, 1)
        pixelwise = np.mean((slope * x_t + offset - target) ** 2)
        assert zero[t] == pytest.approx(np.mean(target**2), rel=0.02), t
        assert limit[t] == pytest.approx(1.2 * pixelwise + 0.05, rel=0.02), t


def test_weights_of_the_loss_weight_the_untrained_losses_too(start, tmp_path):
    flags = ["--prediction_type", "epsilon"]
    plain = start(*flags).plan
    weighted = start(*flags, "--loss_weighting", "min_snr", output_dir=tmp_path / "weighted").plan
    alpha_bar = (1 - plain.system.scheduler.betas.double()).cumprod(0)
    snr = alpha_bar / (1 - alpha_bar)
    expected = snr.clamp(max=5) / snr  # arXiv 2303.09556, on eps
    for one, other in zip(untrained_losses(plain), untrained_losses(weighted), strict=True):
        torch.testing.assert_close(other, one * expected, rtol=1e-4, atol=0)


@pytest.fixture
def watched(start):
    """A Watch, and a function that feeds it losses of every timestep: given factors of the limit for each group."""
    trainer = start("--max_train_steps", "5000")
    watch = Watch(trainer.plan, trainer.accelerator, trainer.ema, trainer.plan.system.network)

    def feed(factors, of: str = "limit") -> None:
        zero, limit = watch.tables
        timesteps = torch.arange(len(zero)).repeat(3)
        base = {"zero": zero, "limit": limit}[of][timesteps]
        watch.see(timesteps, base * torch.tensor(factors).repeat_interleave(len(zero) // GROUPS).repeat(3))

    return watch, feed


def test_a_group_of_timesteps_that_is_not_learnt_is_named_once(watched):
    watch, feed = watched
    feed([0.5] * 7 + [1.1] + [0.5] * 2)
    (finding,) = watch.findings(2000)
    assert finding.name == "poor-timesteps" and "700 to 799" in finding.what and "600" not in finding.what
    feed([0.5] * 9 + [1.1])
    assert watch.findings(2100) == []


@pytest.mark.parametrize(("step", "factor", "names"), [(199, 1.0, []), (200, 1.0, ["learns-nothing"]), (200, 0.9, [])])
def test_the_level_of_the_zero_predictor_counts_after_the_start(watched, step, factor, names):
    watch, feed = watched
    feed([factor] * 10, of="zero")
    assert [finding.name for finding in watch.findings(step)] == names


def test_groups_are_judged_late_and_on_enough_images(watched):
    watch, feed = watched
    feed([0.5] * 9 + [1.1])
    assert watch.findings(999) == []
    timesteps = torch.arange(1000)
    losses = torch.where(timesteps < 900, 0.5, 1.1) * watch.tables[1]
    watch.see(timesteps, losses)
    assert watch.findings(2000) == [], "1,000 images are too few"
    watch.see(timesteps, losses)
    assert [finding.name for finding in watch.findings(2000)] == ["poor-timesteps"]


@pytest.fixture
def impatient(monkeypatch):
    """Verdicts after a few steps, so that a run can be short."""
    for name, value in (("_FIRST_STEP", 15), ("_IMAGES", 300), ("_AVERAGE_STEPS", 10)):
        monkeypatch.setattr(watch, name, value)


LONG = "--max_train_steps 30 --train_batch_size 16 --logging_steps 5".split()


def test_a_run_that_learns_nothing_says_so_once(train, impatient, capsys):
    stuck = train(*LONG, "--learning_rate", "1e-30", ending=False)
    kept = json.loads((stuck.output / "training_summary.json").read_text())["doctor"]
    assert [entry["name"] for entry in kept] == ["learns-nothing"]
    printed = capsys.readouterr()
    assert (printed.out + printed.err).count("learns-nothing") == 1


def test_a_run_that_learns_with_an_average_that_stands_still(train, impatient):
    still = train(*LONG, *"--learning_rate 1e-2 --ema_decay 1 --ema_warmup false".split(), ending=False)
    kept = json.loads((still.output / "training_summary.json").read_text())["doctor"]
    assert [entry["name"] for entry in kept] == ["slow-average", "still-average"]
    assert torch.equal(still.ema.model.unet.conv_out.weight, start_weights(still))
    assert not torch.equal(still.plan.system.network.unet.conv_out.weight, start_weights(still))


def start_weights(trainer) -> torch.Tensor:
    return trainer.bookkeeper.watch.beginning[0]


def test_a_run_on_the_bound_has_its_average_watched_alone(start):
    trainer = start("--loss", "vlb", "--variance_type", "learned_range")
    watch = Watch(trainer.plan, trainer.accelerator, trainer.ema, trainer.plan.system.network)
    watch.see(torch.tensor([1]), torch.tensor([100.0]))
    assert watch.findings(5000) == []


def test_of_a_model_with_a_text_encoder_the_last_layer_of_the_unet_is_watched(tmp_path):
    plan, _ = begin_text_run(tmp_path)
    network = plan.system.network
    watch = Watch(plan, Accelerator(), EMA(network, 0.99, None, 0.75), network)
    assert all(torch.equal(part, network.unet.conv_out.weight) for part in watch.beginning)
