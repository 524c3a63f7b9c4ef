"""DDPMPipeline against diffusers' own, and what it adds."""

import diffusers
import numpy as np
import pytest
import torch

from ddpm_hf import DDPMPipeline
from ddpm_hf.conditions.class_labels import ClassLabels
from ddpm_hf.sampling.samplers import SAMPLER_NAMES, make_fast_sampler, make_sampler
from ddpm_hf.seeds import image_generators


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("steps", [5, None])
def test_same_pixels_as_stock_for_the_same_generator(tiny_pipeline, steps):
    ours = tiny_pipeline(num_train_timesteps=50)
    scheduler = diffusers.DDPMScheduler.from_config(ours.scheduler.config)
    # Stock's float32 table cancels at small t; with ours in its place the formulas are compared.
    scheduler.alphas_cumprod = ours.scheduler._alpha_bar.clone()
    scheduler.betas = 1 - scheduler.alphas_cumprod / torch.cat([torch.ones(1), scheduler.alphas_cumprod[:-1]])
    stock = diffusers.DDPMPipeline(ours.unet, scheduler)
    stock.set_progress_bar_config(disable=True)
    arguments = {"batch_size": 2, "output_type": "np"}
    expected = stock(generator=seeded(), num_inference_steps=steps or 50, **arguments).images
    given = {} if steps is None else {"num_inference_steps": steps}
    actual = ours(generator=seeded(), **given, **arguments).images
    assert np.abs(expected - actual).max() < 1e-5
    assert expected.std() > 0.1


def test_positional_call_is_that_of_stock(tiny_pipeline):
    ours = tiny_pipeline(num_train_timesteps=10)
    images = ours(2, seeded(), 3, "np", False)
    assert isinstance(images, tuple) and images[0].shape == (2, 8, 8, 3)


def test_an_image_does_not_depend_on_its_batch(tiny_pipeline):
    pipeline = tiny_pipeline(num_train_timesteps=20)
    together = pipeline(5, image_generators(3, range(5)), output_type="np").images
    alone = pipeline(1, image_generators(3, [4]), output_type="np").images
    assert np.abs(together[4] - alone[0]).max() < 1 / 255
    assert np.abs(together[4] - together[3]).max() > 0.1


def test_guidance_combines_the_two_predictions(tiny_pipeline):
    """One step with v = 0.. against the formula, written out on the network's outputs."""
    pipeline = tiny_pipeline(num_classes=3, num_train_timesteps=10)
    x_t, t = torch.randn(1, 3, 8, 8, generator=seeded()), torch.tensor(9)

    def eps(label: int) -> torch.Tensor:
        return pipeline.unet(x_t, t, class_labels=torch.tensor([label])).sample

    with torch.no_grad():
        guided = eps(3) + 2.5 * (eps(1) - eps(3))
        expected = pipeline.scheduler
        expected.set_timesteps(1)
        expected = expected.step(guided, 9, x_t).prev_sample
    result = pipeline(class_labels=1, guidance_scale=2.5, latents=x_t, num_inference_steps=1, output_type="pt").images
    torch.testing.assert_close(result, (expected / 2 + 0.5).clamp(0, 1), atol=1e-6, rtol=0)


def test_guidance_one_is_conditional_and_zero_unconditional(tiny_pipeline):
    pipeline = tiny_pipeline(num_classes=2, num_train_timesteps=10)

    def run(**arguments) -> np.ndarray:
        return pipeline(generator=seeded(), output_type="np", **arguments).images

    network = pipeline.unet.forward
    pipeline.unet.forward = lambda x, t, class_labels: network(x, t, class_labels)
    one, zero = run(class_labels=1, guidance_scale=1.0), run(class_labels=1, guidance_scale=0.0)
    pipeline.unet.forward = lambda x, t, class_labels: network(x, t, torch.full_like(class_labels, 1))
    np.testing.assert_array_equal(one, run(class_labels=0))
    pipeline.unet.forward = lambda x, t, class_labels: network(x, t, torch.full_like(class_labels, 2))
    np.testing.assert_array_equal(zero, run(class_labels=0))
    pipeline.unet.forward = lambda x, t, class_labels: network(x, t, class_labels)
    np.testing.assert_array_equal(zero, run(guidance_scale=0.0))  # needs no class at all
    assert np.abs(one - zero).max() > 0.01
    # Close to 1 the two-pass path tends to the one-pass path.
    assert np.abs(run(class_labels=1, guidance_scale=1 + 1e-6) - one).max() < 1e-4


def test_classes_by_name_number_list_and_tensor(tiny_pipeline):
    pipeline = tiny_pipeline(num_classes=3, id2label={0: "cat", 1: "dog", 2: "7"}, num_train_timesteps=5)
    for labels, expected in (
        ("dog", [1]),
        (1, [1]),
        (["cat", 2], [0, 2]),
        (torch.tensor([2, 0]), [2, 0]),
        ("7", [2]),
        (np.int64(1), [1]),
    ):
        told, null, count = pipeline.ask({"class_labels": labels})
        assert told["class_labels"].tolist() == expected and count == len(expected)
        assert null["class_labels"].tolist() == [3] * count
    assert pipeline.ask({"class_labels": "dog"}, batch_size=3)[0]["class_labels"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("model", "call", "words"),
    [
        ({"num_classes": 2}, {}, ["class_labels", "0 (class 0)", "1 (class 1)"]),
        ({"num_classes": 2}, {"class_labels": "bird"}, ["class_labels", "'bird'", "class 1"]),
        ({"num_classes": 2}, {"class_labels": 2}, ["class_labels", "2", "0 to 1"]),
        ({"num_classes": 2}, {"class_labels": [0, 1, 0], "batch_size": 2}, ["class_labels", "3", "batch_size=2"]),
        ({}, {"class_labels": 1}, ["class_labels", "unconditional"]),
        ({}, {"guidance_scale": 3.0}, ["guidance_scale", "3.0", "unconditional"]),
        ({}, {"output_type": "jpg"}, ["output_type", "'jpg'", "pil, np, pt"]),
        ({}, {"generator": [torch.Generator()], "batch_size": 2}, ["generator", "1", "2 images"]),
        ({}, {"latents": torch.zeros(1, 3, 4, 4)}, ["latents", "(1, 3, 4, 4)", "(1, 3, 8, 8)"]),
        ({"num_train_timesteps": 10}, {"num_inference_steps": 11}, ["num_inference_steps", "11", "10"]),
        ({"channels": 5, "num_train_timesteps": 2}, {}, ["output_type", "5", "'np'"]),
    ],
)
def test_bad_requests_are_named(tiny_pipeline, model, call, words):
    with pytest.raises(ValueError) as problem:
        tiny_pipeline(**model)(**call)
    assert all(word in str(problem.value) for word in words), problem.value


def test_what_has_no_null_is_told_in_both_passes_of_guidance(tiny_pipeline):
    class Bright(ClassLabels):
        name = "brightness"

        def of_words(self, words, device):
            return {"brightness": torch.tensor(words)}

        def null(self, told):
            raise NotImplementedError

    class Two(DDPMPipeline):
        conditions = (ClassLabels(count=3), Bright(count=3, has_null=False))

    told, null, _ = Two(**tiny_pipeline(num_classes=3).components).ask({"class_labels": [1], "brightness": [2]}, 3.0)
    assert {name: value.item() for name, value in told.items()} == {"class_labels": 1, "brightness": 2}
    assert {name: value.item() for name, value in null.items()} == {"class_labels": 3, "brightness": 2}


def test_guidance_needs_a_null_class(tiny_pipeline):
    pipeline = tiny_pipeline(num_classes=2, id2label={0: "a", 1: "b", 2: "c"}, num_train_timesteps=5)
    with pytest.raises(ValueError, match="`guidance_scale` must be 1 .* got 2.0"):
        pipeline(class_labels=2, guidance_scale=2.0)


@pytest.mark.parametrize("mode, channels", [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)])
def test_any_number_of_channels(tiny_pipeline, mode, channels):
    pipeline = tiny_pipeline(channels=channels, num_train_timesteps=3)
    image = pipeline(generator=seeded()).images[0]
    array = pipeline(generator=seeded(), output_type="np").images[0]
    assert image.mode == mode and image.size == (8, 8)
    rounded = np.rint(array * 255).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(image).reshape(8, 8, channels), rounded)


def test_sampling_is_without_dropout_and_leaves_the_mode_as_it_was(tiny_pipeline):
    pipeline = tiny_pipeline(num_train_timesteps=5)
    expected = pipeline(generator=seeded(), output_type="np").images
    pipeline.unet.train()
    np.testing.assert_array_equal(pipeline(generator=seeded(), output_type="np").images, expected)
    assert pipeline.unet.training
    with pytest.raises(RuntimeError, match="stop here"):
        pipeline(callback_on_step_end=_raise)
    assert pipeline.unet.training


def _raise(*arguments):
    raise RuntimeError("stop here")


def test_callback_sees_every_step_and_may_change_the_image(tiny_pipeline):
    pipeline, seen = tiny_pipeline(num_train_timesteps=10), []

    def callback(pipe, step, timestep, tensors):
        assert pipe is pipeline
        seen.append((step, int(timestep)))
        return {"latents": torch.ones_like(tensors["latents"])} if step == 3 else None

    images = pipeline(num_inference_steps=4, callback_on_step_end=callback, output_type="pt").images
    assert seen == [(0, 9), (1, 6), (2, 3), (3, 0)]
    assert bool((images == 1).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_give_images(tiny_pipeline, dtype):
    pipeline = tiny_pipeline(num_train_timesteps=10)
    full = pipeline(generator=seeded(), output_type="np").images
    pipeline.unet.to(dtype)
    half = pipeline(generator=seeded(), output_type="np").images
    assert half.dtype == np.float32 and np.isfinite(half).all()
    assert np.abs(half - full).mean() < 0.05
    assert pipeline(generator=seeded()).images[0].size == (8, 8)


@pytest.mark.parametrize(("name", "channels"), [*((name, 4) for name in SAMPLER_NAMES), ("ddpm", 1), ("dpm", 1)])
def test_a_learned_variance_does_not_reach_samplers_that_cannot_use_it(tiny_pipeline, name, channels):
    """The same network with and without its second half of channels, under every sampler but DDPM itself."""
    pipeline = tiny_pipeline(channels=channels, learned_variance=True, num_train_timesteps=100)
    learned = pipeline.scheduler
    pipeline.scheduler = make_sampler(name, learned)
    calls = {"generator": seeded(), "num_inference_steps": 4, "output_type": "np"}
    images = pipeline(**calls).images
    assert images.shape == (1, 8, 8, channels) and np.isfinite(images).all()
    if name == "ddpm":
        assert pipeline.scheduler.config.variance_type == "learned_range"
        return
    # Built from the learned config by hand, the sampler still asks for the variance; the pipeline keeps it out.
    asking = {**pipeline.scheduler.config, "variance_type": "learned_range"}
    pipeline.scheduler = type(pipeline.scheduler).from_config(asking)
    np.testing.assert_array_equal(pipeline(**calls | {"generator": seeded()}).images, images)
    if "variance_type" in pipeline.scheduler.config:
        assert pipeline.scheduler.config["variance_type"] == "learned_range"  # the component itself is untouched
    plain = tiny_pipeline(channels=channels, num_train_timesteps=100)
    outputs, state = pipeline.unet.state_dict(), {}
    for key, value in outputs.items():
        state[key] = value[:channels] if key.startswith("conv_out") else value
    plain.unet.load_state_dict(state)
    plain.scheduler = make_sampler(name, plain.scheduler)
    np.testing.assert_allclose(plain(**calls | {"generator": seeded()}).images, images, atol=1e-5)


@pytest.mark.parametrize("architecture", [{}, {"num_classes": 3}, {"learned_variance": True}])
@pytest.mark.parametrize(("total", "chain"), [(100, list(range(99, 0, -5))), (5, [4, 3, 2, 1, 0])])
def test_fast_sampling_is_diffusers_own_loop(tiny_pipeline, architecture, total, chain):
    """Over the trailing grid, T - 1 first, and over all timesteps where they are fewer."""
    pipeline = tiny_pipeline(num_train_timesteps=total, **architecture)
    config = {**pipeline.scheduler.config, "variance_type": None, "algorithm_type": "sde-dpmsolver++"}
    stock = diffusers.DPMSolverMultistepScheduler.from_config(config)
    stock.set_timesteps(timesteps=chain)
    classes = torch.tensor([2, 0]) if "num_classes" in architecture else None
    generator = seeded()
    x = torch.randn(2, 3, 8, 8, generator=generator)
    with torch.no_grad():
        for t in stock.timesteps:
            x = stock.step(pipeline.unet(x, t, classes).sample[:, :3], t, x, generator=generator).prev_sample
    pipeline.scheduler, steps = make_fast_sampler(pipeline.scheduler)
    drawn = pipeline(2, seeded(), steps, "pt", class_labels=classes).images
    assert drawn.std() > 0.05
    torch.testing.assert_close(drawn, (x / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=0)


def test_stock_and_ours_share_the_signature_of_the_call():
    import inspect

    stock = inspect.signature(diffusers.DDPMPipeline.__call__).parameters
    ours = inspect.signature(DDPMPipeline.__call__).parameters
    assert list(ours)[: len(stock)] == list(stock)
