"""The prior of DALL·E 2: what it learns from, a step of it, a run that is killed, and what cannot be trained."""

import numpy as np
import pytest
import torch
from diffusers import KandinskyV22PriorPipeline
from priors import make_clip, save_clip_in
from running import TINY, forget_accelerator, killed_at, load_script
from safetensors.torch import load_file
from texts import save_clip
from transformers import CLIPVisionModelWithProjection

from ddpm_hf.cli.parser import parse_training_arguments
from ddpm_hf.conditions.condition import tell
from ddpm_hf.hub.folder import ModelFolder
from ddpm_hf.training.loop import Trainer
from ddpm_hf.training.start import train

FLAGS = [
    *("--system", "dalle2", "--stage", "prior", "--init_caption_from_labels", "a {}", "--seed", "3"),
    *("--num_train_timesteps", "40", "--prior_width", "32", "--prior_layers", "1", "--checkpointing_steps", "2"),
]
KEPT = ("--center_crop", "--random_flip")
WEIGHTS = "prior/prior/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    return save_clip_in(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def begin(start, clip, tmp_path):
    def run(*flags: str, clip_model: str = clip, out: str = "out") -> Trainer | None:
        return start(*FLAGS, "--clip_model", clip_model, *flags, output_dir=tmp_path / out)

    return run


def batches_of(trainer) -> list[dict]:
    return [batch for _, batch in trainer._micro_steps()]


def test_kept_and_computed_embeddings_are_the_same_within_half_precision(begin):
    trainers = [begin(*KEPT, *more, out=str(len(more))) for more in ((), ("--no_cache_latents",))]
    kept, computed = (batches_of(trainer) for trainer in trainers)
    look = make_clip().look
    for one, other in zip(kept, computed, strict=True):
        assert torch.equal(one["images"], other["images"]) and "embeddings" not in other
        assert one["embeddings"].dtype == torch.float16
        codecs = [trainer.plan.system.codec for trainer in trainers]
        exact = look(one["images"])
        assert torch.equal(codecs[1].embeddings(other), exact)
        assert ((codecs[0].embeddings(one) - exact).abs() <= 2**-11 * exact.abs() + 1e-6).all()
        torch.testing.assert_close(codecs[0].encode(one), codecs[1].encode(other), atol=5e-3, rtol=0)


def test_another_clip_has_files_of_its_own(begin, tmp_path):
    trainers = [begin(*KEPT), begin(*KEPT, clip_model=save_clip_in(tmp_path / "another", seed=1), out="other")]
    first, second = ([array.folder for array in _kept_by(trainer)] for trainer in trainers)
    assert len(first) == len(second) == 2 and not {*first} & {*second}
    assert all(list(folder.glob("*.f16")) for folder in first + second)


def _kept_by(trainer):
    return trainer.plan.images.kept["embeddings"], trainer.plan.system.conditions[0].states.array


def test_mean_and_deviation_are_those_of_the_training_pictures(begin, clip):
    """By transformers' own class from the files, numpy and float64; no gradient ever reaches them."""
    trainer = begin("--center_crop", "--holdout", "6")
    images, prior = trainer.plan.images, trainer.plan.system.network.prior
    assert images.count == 18
    pictures = torch.from_numpy(images.store.gather(images.indices))
    stock = CLIPVisionModelWithProjection.from_pretrained(clip)
    with torch.no_grad():
        embeddings = stock(pixel_values=pictures / 127.5 - 1).image_embeds.double().numpy()
    np.testing.assert_allclose(prior.clip_mean[0].numpy(), embeddings.mean(0), atol=1e-3)
    np.testing.assert_allclose(prior.clip_std[0].numpy(), embeddings.std(0), atol=1e-3)
    assert not prior.clip_mean.requires_grad and not prior.clip_std.requires_grad
    assert torch.equal(trainer.ema.model.prior.clip_std, prior.clip_std)


def test_a_step_is_the_square_error_of_x_0(begin):
    """x_t by float64 from the cosine schedule's definition, the embeddings by the codec."""
    system = begin(*KEPT).plan.system
    batch = batches_of(begin(*KEPT))[0]
    x_0, told = system.codec.encode(batch), tell(system.conditions, batch)
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1))
    timesteps = torch.tensor([0, 7, 20, 39])
    bar = np.cos((np.arange(41) / 40 + 0.008) / 1.008 * np.pi / 2) ** 2
    bar = np.cumprod(1 - np.minimum(1 - bar[1:] / bar[:-1], 0.999))[timesteps.numpy(), None]
    x_t = np.sqrt(bar) * x_0.double().numpy() + np.sqrt(1 - bar) * noise.double().numpy()
    with torch.no_grad():
        predicted = system.network.prior(torch.tensor(x_t).float(), timesteps, **told).predicted_image_embedding
        losses = system.loss(system.network, x_0, noise, timesteps, **told)
    expected = ((predicted.double() - x_0.double()) ** 2).mean(1)
    torch.testing.assert_close(losses.double(), expected, atol=1e-5, rtol=1e-5)


def test_the_usual_plan_has_no_previews(start, capsys):
    """Of the bundled digits, by the preset, with a CLIP that is yet to be trained."""
    start("--system", "dalle2", "--stage", "prior", "--dry_run", tiny=False, data=False)
    told = capsys.readouterr().out
    assert "492,864 parameters" in told and "embeddings: of 64 channels" in told and "previews" not in told
    with pytest.raises(ValueError, match="--stage prior needs a finished CLIP in .*/clip; train it with --stage clip"):
        start("--system", "dalle2", "--stage", "prior", tiny=False, data=False)


def test_captions_are_told_as_stock_tells_them_and_hidden_as_the_empty_one(begin):
    trainer = begin(*KEPT)
    system, batch = trainer.plan.system, batches_of(trainer)[0]
    pipeline = system.pipeline(system.network)
    stock = KandinskyV22PriorPipeline(**pipeline.components)
    hidden = torch.tensor([True, False, True, False])
    told = tell(system.conditions, batch, [hidden])
    words = ["" if is_hidden else str(word) for is_hidden, word in zip(hidden, batch["captions"], strict=True)]
    embeddings, states, mask = stock._encode_prompt(words, "cpu", 1, False)
    assert torch.equal(told["attention_mask"], mask)
    torch.testing.assert_close(told["proj_embedding"], embeddings, atol=2e-3, rtol=0)
    torch.testing.assert_close(told["encoder_hidden_states"], states, atol=4e-3, rtol=0)


def _settings(images, out, clip, *flags):
    forget_accelerator()
    arguments = ["--train_data_dir", str(images), "--output_dir", str(out), *TINY, *FLAGS, "--clip_model", clip]
    return parse_training_arguments([*arguments, *flags])


@pytest.fixture(scope="module")
def trained(image_folder, clip, tmp_path_factory):
    """Killed after its third step and begun again by the same command; judged at its end."""
    out = tmp_path_factory.mktemp("prior") / "out"
    with killed_at(3):
        train(_settings(image_folder, out, clip, "--holdout", "6"))
    train(_settings(image_folder, out, clip, "--holdout", "6"))
    return out


def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(trained, image_folder, clip, tmp_path):
    train(_settings(image_folder, tmp_path / "whole", clip, "--holdout", "6"))
    first, second = (load_file(out / WEIGHTS) for out in (trained, tmp_path / "whole"))
    assert first.keys() == second.keys() and all(torch.equal(weight, second[name]) for name, weight in first.items())


@pytest.mark.processes
def test_two_processes_train_as_one(trained, image_folder, clip, tmp_path, on_two_processes):
    flags = ["--train_data_dir", image_folder, "--output_dir", tmp_path / "out", *TINY, *FLAGS, "--clip_model", clip]
    on_two_processes("train.py", *flags, "--holdout", "6", "--train_batch_size", "2")
    first, second = (load_file(out / WEIGHTS) for out in (trained, tmp_path / "out"))
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, atol=1e-4, rtol=0)


def test_what_it_leaves_is_a_stock_pipeline_that_was_judged(trained):
    pipe = KandinskyV22PriorPipeline.from_pretrained(trained / "prior")
    assert (pipe.prior.clip_std > 0).all() and pipe.scheduler.config.prediction_type == "sample"
    assert pipe("a cat", num_inference_steps=3).image_embeds.shape == (1, 32)
    card = (trained / "prior" / "README.md").read_text()
    assert "an embedding of 32 numbers" in card and 'prior("a cat", ' in card and "| prior_cosine |" in card
    assert "of real training images" not in card, "the floor is another"
    assert '"prior_cosine"' in (trained / "prior" / "evaluation.json").read_text()


def test_evaluate_py_asks_for_candidates(trained, image_folder, capsys):
    data = [str(trained / "prior"), "--train_data_dir", str(image_folder), "--init_caption_from_labels", "a {}"]
    data += ["--num_inference_steps", "3"]
    load_script("evaluate.py").main([*data, "--prior_candidates", "2"])
    metrics = ModelFolder.read(trained / "prior").metrics
    assert sorted(entry["prior_candidates"] for entry in metrics) == [1, 1, 2, 2], "those of training, and these"
    with pytest.raises(SystemExit):
        load_script("evaluate.py").main([*data, "--prior_guidance_scale", "2"])
    assert "is a prior, which draws no pictures; leave out --prior_guidance_scale" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--prediction_type", "epsilon"), "--prediction_type must be sample for --stage prior, got epsilon"),
        (("--beta_schedule", "linear"), "--beta_schedule must be squaredcos_cap_v2 for --stage prior, got linear"),
        (("--variance_type", "fixed_large"), "--variance_type must be fixed_small for --stage prior, got fixed_large"),
        (("--loss", "vlb"), "--loss must be simple for --stage prior, got vlb"),
        (("--eval_inference_steps", "1"), "--eval_inference_steps must be at least 2 for --stage prior, got 1"),
        (("--num_train_timesteps", "1"), "--num_train_timesteps must be at least 2 for --stage prior, got 1"),
        (("--eval_metrics", "prompt"), "--eval_metrics must be prior for --stage prior"),
        (("--preset", "clip-digits"), "--preset clip-digits is for --stage clip alone"),
        (("--channels", "1"), "--channels must be 3 for --stage prior, got 1"),
    ],
)
def test_what_stocks_pipeline_could_not_draw_is_not_trained(begin, flags, problem):
    with pytest.raises(ValueError, match=problem):
        begin(*flags, "--dry_run")


def test_a_clip_whose_widths_do_not_fit_is_refused_and_one_that_sees_no_difference(begin, start, tmp_path):
    with pytest.raises(ValueError, match="--text_width must be --embedding_width for .* got 96 and 512"):
        start(*FLAGS, "--text_width", "96", "--dry_run")  # before that CLIP has been trained
    with pytest.raises(ValueError, match="--clip_model must have states of captions as wide .* got 32 and 16"):
        begin("--dry_run", clip_model=str(save_clip(tmp_path / "narrow")))
    blind = make_clip()
    torch.nn.init.zeros_(blind.model.visual_projection.weight)
    for part in (blind.model, blind.tokenizer, blind.processor):
        part.save_pretrained(tmp_path / "blind")
    with pytest.raises(ValueError, match="`clip_model` must tell the training pictures apart, .* 32 of 32 channels"):
        begin(*KEPT, clip_model=str(tmp_path / "blind"))
