"""Super-resolution where the right answer is known."""

import torch
from diffusers import DDPMScheduler

from ddpm_hf import LinearDDPMScheduler
from ddpm_hf.codecs.pixels import PixelCodec
from ddpm_hf.conditions.low_resolution import LowResolution
from ddpm_hf.diffusion.losses import DiffusionLoss
from ddpm_hf.models.text_unet import new_text_unet
from ddpm_hf.pipelines.upsampling import UpsamplingDenoiser

SIDE, STEPS, BATCH, LAST = 4, 120, 64, 999


def test_what_is_as_its_small_picture_is_reproduced_and_worse_when_the_level_of_noise_is_told_wrong():
    """Pictures of one shade are what their small ones are enlarged to; x_T says nothing of them."""
    torch.manual_seed(0)
    shape = {"resolution": SIDE, "channels": 1, "base_channels": 32, "channel_multipliers": (1,), "text_width": 32}
    plain = {"attention_resolutions": (), "blocks_per_level": 1, "dropout": 0.0}
    network = UpsamplingDenoiser(new_text_unet(SIDE // 2, told_noise=True, **shape, **plain), None, all_outputs=False)
    scheduler, codec = LinearDDPMScheduler(prediction_type="v_prediction"), PixelCodec((1, SIDE, SIDE))
    picture = LowResolution(shape=(1, SIDE // 2, SIDE // 2), factor=2, noising=DDPMScheduler())
    loss, optimizer = DiffusionLoss(scheduler), torch.optim.Adam(network.parameters(), lr=2e-3)

    def drawn(count: int, **where: object) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        images = torch.randint(256, (count, 1, 1, 1), dtype=torch.uint8).expand(-1, -1, SIDE, SIDE)
        words = {"encoder_hidden_states": torch.zeros(count, 1, 32)}
        x_0 = codec.encode({"images": images})
        return x_0, torch.randn_like(x_0), picture.of_rows({"images": images, **where}) | words

    for step in range(STEPS):
        x_0, noise, told = drawn(BATCH, positions=range(BATCH * step, BATCH * (step + 1)))
        optimizer.zero_grad()
        loss(network, x_0, noise, torch.randint(LAST + 1, (BATCH,)), **told).mean().backward()
        optimizer.step()

    x_0, noise, told = drawn(1000, positions=range(BATCH * STEPS, BATCH * STEPS + 1000))
    late = torch.full((1000,), LAST)
    wrong = told | {"class_labels": LAST - told["class_labels"]}
    clean = told | picture.of_words(list(x_0[..., ::2, ::2]), x_0.device) | {"class_labels": torch.zeros_like(late)}
    x_t = scheduler.add_noise(x_0, noise, late)
    with torch.no_grad():
        worse = loss(network, x_0, noise, late, **wrong) - loss(network, x_0, noise, late, **told)
        found = scheduler.predict_original_sample(network(x_t, late, **clean), x_t, late)
    # Grey is the best guess of whoever knows x_T alone.
    assert (found - x_0).abs().mean() < 0.5 * x_0.abs().mean()
    assert worse.mean() > 5 * worse.std() / 1000**0.5  # standard errors
