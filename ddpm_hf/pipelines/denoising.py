"""From noise to samples: Algorithm 2 of Ho et al. 2020 (arXiv 2006.11239), for any network, condition and sampler."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import ImagePipelineOutput, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

from ..codecs.pixels import PixelCodec
from ..conditions.condition import Condition, Told, cycled
from ..pixels import channels_last
from ..portable import STOCK_PIPELINES, own_component, stock_component
from ..progress import progress_bar
from ..steps.denoiser import Denoiser
from ..steps.guidance import check_guidance, guided, guides_at
from ..steps.inpainting import Given, Pictures, check_counts, given_pixels
from ..steps.sampler import (
    check_starts_midway,
    set_steps,
    step_arguments,
    takes_variance,
    with_thresholding,
    without_learned_variance,
)
from .output_types import check_output_type


class Denoising:
    """What our pipelines have in common. List it before the diffusers class in the bases.

    Saved files name diffusers' own classes, so that stock diffusers can load them; `from_pretrained` of the pipeline
    loads them as ours.
    """

    conditions: Sequence[Condition]
    """What the network is told beside x_t and t."""
    id2label: Mapping[int, str] | None = None
    """Class number -> class name; None without names."""
    is_told_captions = False
    """Whether captions say what it draws."""
    kind = "a diffusion model"
    """What it is, for messages."""
    draws_pictures = True
    """Whether it draws pictures, not only numbers by which others draw or judge them."""
    keeps_given_clean = False
    """Whether the network was trained for inpainting: to see given pixels without noise."""
    has_prior = False
    """Whether captions are first turned into embeddings of pictures."""
    noise_levels = 0
    """How many levels of noise the pictures may get that it enlarges; 0 if it adds none."""

    @classmethod
    def load_config(cls, *args, **kwargs):
        """As in diffusers, but naming our classes for the components that have one."""
        config = super().load_config(*args, **kwargs)
        index = config[0] if isinstance(config, tuple) else config
        for name, value in index.items():
            # An upsampler's small pictures get no noise: their betas of 0 are wrong in any other process.
            if isinstance(value, list) and len(value) == 2 and name != "image_noising_scheduler":
                index[name] = own_component(*value)
        return config

    def to_json_string(self) -> str:
        """The index as JSON, naming stock classes instead of ours."""
        index = json.loads(super().to_json_string())
        index["_class_name"] = STOCK_PIPELINES.get(index["_class_name"], index["_class_name"])
        for name, value in index.items():
            if isinstance(value, list) and len(value) == 2:
                index[name] = stock_component(*value)
        return json.dumps(index, indent=2, sort_keys=True) + "\n"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        config = self.unet.config
        size = config.sample_size
        return config.in_channels, *((size, size) if isinstance(size, int) else size)

    @property
    def codec(self) -> PixelCodec:
        """What x_0 is."""
        return PixelCodec(self.image_shape)

    @property
    def network(self) -> Denoiser:
        """The network as training, the bound and sampling call it."""
        return Denoiser(self.unet)

    @property
    def stages(self) -> "list[Denoising]":
        """This pipeline, and those that then enlarge what it draws in the same call."""
        return [self]

    def alone(self) -> "Denoising":
        """This pipeline without the later stages."""
        return self

    def threshold(self, asked: Mapping[str, Any]) -> None:
        """Change dynamic thresholding, as `with_thresholding`; ValueError for latents, which have no range."""
        if asked and self.codec.span is None:
            raise ValueError("`thresholding` must be left out for a model of latents, which have no range.")
        self.scheduler = with_thresholding(self.scheduler, asked)

    def _draw(
        self,
        asked: Mapping[str, Any],
        batch_size: int,
        generator: torch.Generator | list[torch.Generator] | None,
        num_inference_steps: int | None,
        output_type: str,
        return_dict: bool,
        guidance_scale: float,
        latents: torch.Tensor | None,
        skip_steps: int | None,
        callback: Callable | None,
        guidance_interval: Sequence[float] | None = None,
        guidance_rescale: float = 0.0,
        image: Pictures | None = None,
        mask_image: Pictures | None = None,
        strength: float | None = None,
    ) -> ImagePipelineOutput | tuple:
        """The call of a pipeline, with arguments as in `DDPMPipeline`; `asked` as in `ask`, `strength` as in stock."""
        # 1. Check the arguments and turn words into what the network is told
        check_output_type(output_type)
        told, null, batch_size = self.ask(asked, guidance_scale, batch_size)
        check_guidance(guidance_scale, guidance_interval, guidance_rescale)
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"`generator` must be one per image, got {len(generator)} for {batch_size} images.")

        # 2. Timesteps
        scheduler = without_learned_variance(self.scheduler)
        total = scheduler.config.num_train_timesteps
        set_steps(scheduler, total if num_inference_steps is None else num_inference_steps)
        if image is not None and skip_steps is not None:
            raise ValueError(f"`skip_steps` must be left out with `image`, got {skip_steps}.")
        if strength is None:
            skipped = self._skip(skip_steps, scheduler, latents)
        else:
            if image is None:
                raise ValueError(f"`strength` must be left out without `image`, got {strength}.")
            skipped = self.skipped_by(strength, scheduler)

        # 3. x_T ~ N(0, I), or the x_t given, or what a picture and this noise make
        known = self.known(image, mask_image, strength, generator)
        x_t = self._initial_noise(batch_size, generator, latents)
        if skip_steps is None:
            x_t = x_t * scheduler.init_noise_sigma
        told, null = self._augmented(told, null, generator)
        given = None
        if known is not None:
            given, x_t = self._given(known, x_t, scheduler, skipped, generator, mask_image is not None)
            told, null = told | given.told, null | given.told

        # 4. x_t -> x_{t-1}, without dropout; training mode is restored
        network = self.network
        modes = [(part, part.training) for part in network.children()]
        network.eval()
        try:
            told, null = network.encode(told), network.encode(null) if guidance_scale != 1 else {}

            def predict(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
                scale = guidance_scale if guides_at(t, total, guidance_interval) else 1.0
                return guided(network, x_t, t, told, null, scale, guidance_rescale)

            x_0 = self._denoise(scheduler, predict, x_t, skipped, generator, callback, given)

            # 5. x_0 -> the output asked for
            images = self._to_output(x_0, output_type)
        finally:
            for part, was_training in modes:
                part.train(was_training)
            self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _denoise(
        self,
        scheduler: SchedulerMixin,
        predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        x_t: torch.Tensor,
        skipped: int,
        generator: torch.Generator | list[torch.Generator] | None,
        callback: Callable | None,
        given: Given | None,
    ) -> torch.Tensor:
        """The loop of Algorithm 2, for any sampler, without its first `skipped` steps."""
        for i, t in enumerate(self.progress_bar(scheduler.timesteps[skipped:]), start=skipped):
            network_input = scheduler.scale_model_input(x_t, t)
            model_output = predict(network_input, t)
            if not takes_variance(scheduler):
                model_output = model_output[:, : x_t.shape[1]]
            step = scheduler.step(model_output, t, x_t, **step_arguments(scheduler, i, generator))
            x_t = step.prev_sample if given is None else given.keep(step.prev_sample, scheduler, i + 1)
            if callback is not None:
                tensors = {"latents": x_t, "network_input": network_input, "model_output": model_output}
                tensors["pred_original_sample"] = step.get("pred_original_sample")
                x_t = (callback(self, i, t, tensors) or {}).get("latents", x_t)
        return x_t

    def ask(
        self, asked: Mapping[str, Any], guidance_scale: float = 1.0, batch_size: int = 1
    ) -> tuple[Told, Told, int]:
        """What the network is told, what instead for guidance, and the number of images.

        Args:
            asked: name of a condition -> its words, one or one an image; None if nothing is asked for.
            guidance_scale, batch_size: as in the call.

        Raises:
            ValueError: for words, a scale or a batch size that do not suit this model, naming the choices.
        """
        conditions = {condition.name: condition for condition in self.conditions}
        what = f"a model told {', '.join(conditions)}" if conditions else "an unconditional model"
        for name, words in asked.items():
            if words is not None and name not in conditions:
                raise ValueError(f"`{name}` must be left out for {what}, got {words!r}.")
        if guidance_scale != 1 and not any(condition.has_null for condition in conditions.values()):
            what = "a model trained without hiding them" if conditions else what
            raise ValueError(f"`guidance_scale` must be 1 for {what}, got {guidance_scale}.")
        listed = {name: _listed(words) for name, words in asked.items() if words is not None}
        for name, words in listed.items():
            if isinstance(words, list):
                if batch_size not in (1, len(words)):
                    raise ValueError(
                        f"`{name}` must be one per image, got {len(words)} for `batch_size={batch_size}`."
                    )
                batch_size = len(words)
        told, null = {}, {}
        for name, condition in conditions.items():
            words = listed.get(name)
            if words is None:
                if guidance_scale != 0 or not condition.has_null:
                    raise ValueError(f"`{name}` must be given for this model: {condition.choices()}.")
                words = cycled(condition.usual(), range(batch_size))
            words = words if isinstance(words, list) else [words] * batch_size
            said = condition.of_words(words, self._execution_device)
            told, null = told | said, null | (condition.null(said) if condition.has_null else said)
        return told, null, batch_size

    def _augmented(self, told: Told, null: Told, generator) -> tuple[Told, Told]:
        """What is told once noise has been added to it."""
        return told, null

    def _skip(self, skip_steps: int | None, scheduler: SchedulerMixin, latents: torch.Tensor | None) -> int:
        """How many steps to skip; also tells schedulers that count their own steps."""
        if skip_steps is None:
            return 0
        calls = len(scheduler.timesteps)
        if not 0 <= skip_steps < calls:
            raise ValueError(f"`skip_steps` must be between 0 and {calls - 1}, got {skip_steps}.")
        if latents is None:
            raise ValueError(f"`latents`, an image with noise added, must be given with `skip_steps={skip_steps}`.")
        check_starts_midway(scheduler)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(skip_steps)
        return skip_steps

    def skipped_by(self, strength: float, scheduler: SchedulerMixin) -> int:
        """How many steps stock diffusers skips; also tells schedulers that count their own steps.

        Args:
            strength: as in stock.
            scheduler: with its timesteps set.

        Raises:
            ValueError: no step would be left, or the scheduler cannot start midway.
        """
        steps = scheduler.num_inference_steps
        if not 1 <= (left := int(steps * strength)) <= steps:
            raise ValueError(f"`strength` must be at most 1 and leave one of {steps} steps, got {strength}.")
        skipped = (steps - left) * scheduler.order
        if skipped:
            check_starts_midway(scheduler)
            if hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(skipped)
        return skipped

    def known(
        self,
        image: Pictures | None = None,
        mask_image: Pictures | None = None,
        strength: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """x_0 of pictures that are given, and what is drawn of it; None if there are none.

        Raises:
            ValueError: the pictures do not suit the model, or the sampler keeps x_t at another scale.
        """
        if image is None and mask_image is None:
            return None
        if self.scheduler.init_noise_sigma != 1:
            name = type(self.scheduler).__name__
            raise ValueError(f"`scheduler` must be one that keeps x_t at unit variance, such as dpm-sde, got {name}.")
        all_drawn = strength is not None
        return given_pixels(image, mask_image, self.image_shape, self.codec, generator, all_drawn)

    def _given(
        self,
        known: tuple[torch.Tensor, torch.Tensor],
        noise: torch.Tensor,
        scheduler: SchedulerMixin,
        skipped: int,
        generator: torch.Generator | list[torch.Generator] | None,
        has_mask: bool,
    ) -> tuple[Given, torch.Tensor]:
        """What stays as it is, and x_t after so many steps."""
        check_counts(known, len(noise))
        x_0, hole = (each.to(noise.device) for each in known)
        given = Given(x_0=x_0, hole=hole, noise=noise, clean=self.keeps_given_clean)
        return given, given.start(scheduler, skipped)

    def _initial_noise(self, batch_size: int, generator, latents: torch.Tensor | None) -> torch.Tensor:
        """x_T of shape (B, C, H, W); in float32 even with half-precision weights."""
        shape = (batch_size, *self.codec.shape)
        device = self._execution_device
        if latents is None:
            # Random numbers from mps cannot be reproduced elsewhere.
            drawn_on = torch.device("cpu") if device.type == "mps" else device
            return randn_tensor(shape, generator=generator, device=drawn_on, dtype=torch.float32).to(device)
        if tuple(latents.shape) != shape:
            raise ValueError(f"`latents` must have shape {shape}, got {tuple(latents.shape)}.")
        return latents.to(device, torch.float32)

    def progress_bar(self, iterable=None, total: int | None = None):
        """As in diffusers, but plain lines in a log file."""
        return progress_bar(iterable, total=total, **getattr(self, "_progress_bar_config", {}))

    def _to_output(self, x_0: torch.Tensor, output_type: str):
        images = self.codec.decode(x_0)
        if output_type == "pt":
            return images
        array = channels_last(images)
        if output_type == "np":
            return array
        if array.shape[-1] > 4:
            raise ValueError(f"`output_type` must be 'np' or 'pt' for {array.shape[-1]} channels, got 'pil'.")
        return self.numpy_to_pil(array)


def _listed(words: Any) -> Any:
    """Several words as a list; a single one as it is."""
    if isinstance(words, torch.Tensor):
        return words.tolist() if words.ndim < 2 else list(words)
    return list(words) if isinstance(words, Sequence) and not isinstance(words, str) else words
