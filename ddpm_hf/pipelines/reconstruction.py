"""From a picture to its reconstruction by an autoencoder."""

from collections.abc import Callable, Sequence

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import nn

from ..conditions.picture import Picture
from .denoising import Denoising
from .output_types import check_output_type


class Autoencoder(nn.Module):
    """(noise, t, picture) -> reconstruction, and mean and log variance of the posterior q(z | picture), all float32.

    It is called as a network that denoises is: what it is told is the picture, and t has no meaning.

    Args:
        vae: of diffusers.
    """

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(
        self, noise: torch.Tensor, timesteps: torch.Tensor, picture: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """noise, of which the first c * h * w numbers of an image draw its latent, and picture, both (B, C, H, W)."""
        posterior = self.vae.encode(picture.to(self.vae.dtype)).latent_dist
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        noise = noise.flatten(1)[:, : mean[0].numel()].view_as(mean)
        z = mean + (log_variance / 2).exp() * noise
        return self.vae.decode(z.to(self.vae.dtype)).sample.float(), mean, log_variance


class ReconstructionPipeline(Denoising, DiffusionPipeline):
    """An autoencoder as a pipeline: what latent diffusion loses by working on latents.

    Its only component is saved as diffusers' own: `AutoencoderKL.from_pretrained(folder, subfolder="vae")` loads it
    without this package.

    Args:
        vae: of diffusers, for pictures in [-1, 1].
    """

    scheduler = None  # it takes no steps
    kind = "an autoencoder"

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.register_modules(vae=vae)

    def check_parts(self) -> None:
        """Raises ValueError if the autoencoder does not return what it takes."""
        config = self.vae.config
        if config.in_channels != config.out_channels:
            raise ValueError(
                f"vae must have as many outputs as its {config.in_channels} inputs, got {config.out_channels}"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        size = self.vae.config.sample_size
        return self.vae.config.in_channels, *((size, size) if isinstance(size, int) else size)

    @property
    def network(self) -> Autoencoder:
        """The network as training calls it."""
        return Autoencoder(self.vae)

    @property
    def conditions(self) -> Sequence[Picture]:
        """What the network is told: the picture."""
        return [Picture(shape=self.image_shape)]

    @torch.no_grad()
    def __call__(
        self,
        image: Sequence[Image.Image | torch.Tensor] | Image.Image | None = None,
        *,
        batch_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Reconstruct pictures.

        Args:
            image: of PIL, or tensors (C, H, W) in [-1, 1], all of the model's size.
            batch_size: their number, if it has to be said.
            generator: draws the latents from the posterior, one for all pictures, or one per picture; without one
                they are the posterior's mean.
            num_inference_steps, guidance_scale: only there to be called as other pipelines are: 1.
            output_type, return_dict: as in `DDPMPipeline`.
            callback_on_step_end: called once, as in `DDPMPipeline`.

        Raises:
            ValueError: for an invalid argument, naming the choices.
        """
        check_output_type(output_type)
        if num_inference_steps not in (None, 1):
            raise ValueError(f"`num_inference_steps` must be left out for an autoencoder, got {num_inference_steps}.")
        told, _, _ = self.ask({"image": image}, guidance_scale, batch_size)
        shape, device = told["picture"].shape, self._execution_device
        noise = torch.zeros(shape, device=device) if generator is None else randn_tensor(shape, generator, device)
        reconstruction, *_ = self.network(noise, torch.zeros(len(noise), device=device), **told)
        if callback_on_step_end is not None:
            callback_on_step_end(self, 0, torch.zeros((), device=device), {"latents": reconstruction})
        images = self._to_output(reconstruction, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)
