"""Where guidance acts, and how its contrast is taken back, against diffusers' own function and by counting calls."""

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from ddpm_hf.steps.guidance import guided

T = 10
WORDS = {"prompt": ["a red apple", "🍎"]}
ASKED = {
    "classes": {"class_labels": [1, 0]},
    "captions": WORDS,
    "captions and small pictures": WORDS | {"image": torch.rand(2, 3, 8, 8) * 2 - 1},
}


@pytest.fixture(params=ASKED)
def draw(request, tiny_pipeline, tiny_text_pipeline, tiny_cascade):
    """Draws two pictures with a real network: `draw(**call)` gives them and the batch of every network call."""
    if request.param == "classes":
        pipeline = tiny_pipeline(num_classes=2, num_train_timesteps=T)
    elif request.param == "captions":
        pipeline = tiny_text_pipeline(num_train_timesteps=T)
    else:
        pipeline = tiny_cascade(num_train_timesteps=T).upsampler
        pipeline.set_progress_bar_config(disable=True)
    sizes = []
    pipeline.unet.register_forward_hook(lambda module, given, output: sizes.append(len(given[0])))

    def run(**call):
        sizes.clear()
        generator = torch.Generator().manual_seed(0)
        fixed = {"num_inference_steps": T, "generator": generator, "output_type": "pt"}
        return pipeline(**ASKED[request.param], **fixed, **call).images, list(sizes)

    return run


def test_outside_the_interval_there_is_one_call_for_each_picture(draw):
    plain, calls = draw(guidance_scale=1.0)
    assert calls == [2] * T
    everywhere, calls = draw(guidance_scale=3.0)
    assert calls == [4] * T and (everywhere - plain).abs().max() > 0.01
    # t = 9, 8, … 0
    some, calls = draw(guidance_scale=3.0, guidance_interval=(0.3, 0.6))
    assert calls == [2, 2, 2, 4, 4, 4, 4, 2, 2, 2]
    assert (some - plain).abs().max() > 1e-3 and (some - everywhere).abs().max() > 1e-3
    assert torch.equal(draw(guidance_scale=3.0, guidance_interval=(0, 1))[0], everywhere)
    none, calls = draw(guidance_scale=3.0, guidance_interval=(0.95, 1))
    assert torch.equal(none, plain) and calls == [2] * T


def test_rescaling_is_that_of_diffusers(draw, tiny_pipeline):
    assert torch.equal(draw(guidance_scale=3.0, guidance_rescale=0)[0], draw(guidance_scale=3.0)[0])
    assert (draw(guidance_scale=3.0, guidance_rescale=0.7)[0] - draw(guidance_scale=3.0)[0]).abs().max() > 1e-3

    pipeline = tiny_pipeline(num_classes=2, learned_variance=True)
    network, x_t, t = pipeline.network, torch.randn(2, 3, 8, 8), torch.tensor(700)
    told, null, _ = pipeline.ask({"class_labels": [0, 1]}, 3.0)
    with torch.no_grad():
        found = guided(network, x_t, t, told, null, 3.0, 0.7)
        conditional, unconditional = network(x_t, t, **told), network(x_t, t, **null)
    mean = (unconditional + 3 * (conditional - unconditional))[:, :3]
    expected = rescale_noise_cfg(mean, conditional[:, :3], guidance_rescale=0.7)
    torch.testing.assert_close(found[:, :3], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[:, 3:], conditional[:, 3:], atol=1e-5, rtol=1e-5)


def test_a_network_that_predicts_zeros_can_be_rescaled():
    def network(x_t, t, told):
        return torch.zeros_like(x_t)

    args = (network, torch.randn(2, 3, 8, 8), torch.tensor(3), {"told": torch.ones(2)}, {"told": torch.zeros(2)})
    assert torch.equal(guided(*args, 3.0, 1.0), torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"guidance_interval": (0.5, 0.2)}, "`guidance_interval` must be LOW and HIGH with .*, got 0.5 0.2"),
        ({"guidance_interval": (0.2, 1.2)}, "`guidance_interval` must be .* <= 1, got 0.2 1.2"),
        ({"guidance_interval": [0.2]}, "`guidance_interval` must be .*, got 0.2"),
        ({"guidance_rescale": -0.1}, "`guidance_rescale` must be between 0 and 1, got -0.1"),
        (
            {"guidance_rescale": 0.5, "guidance_scale": 1},
            "`guidance_rescale` must be left out with .*=1`",
        ),
        ({"guidance_interval": (0, 0.5), "guidance_scale": 0}, "`guidance_interval` must be left out with .*=0`"),
    ],
)
def test_what_cannot_be_guided_is_named(draw, call, words):
    with pytest.raises(ValueError, match=words):
        draw(**{"guidance_scale": 3.0, **call})
