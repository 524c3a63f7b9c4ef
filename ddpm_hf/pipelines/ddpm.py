"""From noise back to images: Algorithm 2 of Ho et al. 2020 (arXiv 2006.11239), with class labels and guidance."""

from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import torch
from diffusers import ImagePipelineOutput, SchedulerMixin, UNet2DModel

from ..conditions.class_labels import ClassLabels
from ..conditions.condition import Condition
from ..diffusion.process import LEARNED_VARIANCES
from ..steps.inpainting import Pictures
from .denoising import Denoising


class DDPMPipeline(Denoising, diffusers.DDPMPipeline):
    """Unconditional and class-conditional image generation; replaces diffusers' pipeline of the same name.

    It has the same components, the same call and, for the same generator, the same pixels. It adds class labels by
    name or number, classifier-free guidance (arXiv 2207.12598), one generator per image, given latents, a callback,
    any number of channels, every sampler of diffusers, half-precision weights, and evaluation mode while sampling.

    Saved files name diffusers' own classes, so that stock diffusers can load them; this class's `from_pretrained`
    loads them as `DDPMUNet2D` and `LinearDDPMScheduler`.

    Args:
        unet: the network; predicts from (x_t, timestep), images in [-1, 1].
        scheduler: `LinearDDPMScheduler` or any sampler of diffusers made from its config.
        id2label: class number -> class name, for class-conditional models only. A network with one embedding more than
            there are names was trained for guidance: the last embedding means "no class".
    """

    # diffusers checks what it reads from JSON against the annotation, and JSON keys are strings: hence a bare dict.
    def __init__(self, unet: UNet2DModel, scheduler: SchedulerMixin, id2label: dict | None = None):
        super().__init__(unet=unet, scheduler=scheduler)
        if id2label is not None:
            id2label = {int(number): str(name) for number, name in id2label.items()}
            self.register_to_config(id2label=id2label)
        self.id2label = id2label

    def check_parts(self) -> None:
        """Raises ValueError, naming the component, if the network's outputs, size or classes suit no sampling."""
        network, process = self.unet.config, self.scheduler.config
        if network.sample_size is None:
            raise ValueError("unet has no sample_size")
        expected = network.in_channels * (2 if process.get("variance_type") in LEARNED_VARIANCES else 1)
        # Other samplers than DDPM never see a learned variance.
        if network.out_channels != expected and isinstance(self.scheduler, diffusers.DDPMScheduler):
            raise ValueError(
                f"unet must have {expected} output channels for {network.in_channels} channels and the scheduler's "
                f"variance_type {process.variance_type!r}, got {network.out_channels}"
            )
        if self.id2label is not None and (network.num_class_embeds or 0) - len(self.id2label) not in (0, 1):
            raise ValueError(
                f"unet must have an embedding for each of {len(self.id2label)} classes, and at most one more, got "
                f"{network.num_class_embeds}"
            )

    @property
    def conditions(self) -> Sequence[Condition]:
        """What the network is told beside x_t and t."""
        return ClassLabels.of_model(self.unet.config, self.id2label)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        *,
        class_labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float = 0.0,
        latents: torch.Tensor | None = None,
        skip_steps: int | None = None,
        image: Pictures | None = None,
        mask_image: Pictures | None = None,
        callback_on_step_end: Callable[["DDPMPipeline", int, torch.Tensor, dict[str, Any]], dict | None] | None = None,
        **asked: Any,
    ) -> ImagePipelineOutput | tuple:
        """Sample images: x_T from N(0, I), then the scheduler's steps down to x_0.

        Args:
            batch_size: number of images. With a list of class labels it may be left out.
            generator: one for all images, or a list with one per image, which makes images independent of the batch.
            num_inference_steps: by default all timesteps the model was trained on.
            output_type: "pil" (1 channel L, 2 LA, 3 RGB, 4 RGBA), "np" (B, H, W, C) or "pt" (B, C, H, W), in [0, 1].
            return_dict: False gives a tuple with the images.
            class_labels: a class number or name, or one per image; required for class-conditional models unless
                `guidance_scale` is 0.
            guidance_scale: w in eps = eps(none) + w (eps(class) - eps(none)): 1 is plain conditional sampling,
                0 unconditional, above 1 favours what is typical of the class.
            guidance_interval: (low, high): guide only at timesteps t with low <= t/T <= high, 0 being clean and 1
                noise; elsewhere the network is called once, as with a scale of 1 (Kynkäänniemi et al. 2024, arXiv
                2404.07724). By default always.
            guidance_rescale: phi, from 0 to 1: how far the guided output of the network, whatever it predicts, gets
                back the standard deviation of the conditional one (Lin et al. 2023, arXiv 2305.08891, section 3.4).
            latents: x_T, standard normal, (B, C, H, W), instead of drawing it.
            skip_steps: how many steps to skip at the start of the chain. `latents` must then be x_t at the first
                remaining timestep, as made by the scheduler's `add_noise`.
            image, mask_image: draw only where the mask is white, and keep the image elsewhere; one for all images,
                or a list with one per image. Both have the model's size.
            callback_on_step_end: called after each step as `callback(pipeline, step, timestep, tensors)`. The tensors
                are "latents": x after the step, "network_input": x before it at unit variance, "model_output", and
                "pred_original_sample": the scheduler's x_0, None if it returns none. May return a dict with other
                "latents".

        Raises:
            ValueError: for an invalid argument, naming the choices.
        """
        return self._draw(
            {"class_labels": class_labels, **asked},
            batch_size,
            generator,
            num_inference_steps,
            output_type,
            return_dict,
            guidance_scale,
            latents,
            skip_steps,
            callback_on_step_end,
            guidance_interval,
            guidance_rescale,
            image,
            mask_image,
        )
