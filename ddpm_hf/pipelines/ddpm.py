"""From noise back to images: Algorithm 2 of Ho et al. 2020 (arXiv 2006.11239), with class labels and guidance."""

import inspect
import json
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import diffusers
import torch
from diffusers import ImagePipelineOutput, SchedulerMixin, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor

from ..diffusion.scheduler import LEARNED_VARIANCES
from ..portable import own_component, stock_component
from ..progress import progress_bar
from .steps import check_starts_midway, takes_variance, without_learned_variance

OUTPUT_TYPES = ("pil", "np", "pt")


class DDPMPipeline(diffusers.DDPMPipeline):
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

    @classmethod
    def load_config(cls, *args, **kwargs):
        """As in diffusers, but naming our classes for the components that have one."""
        config = super().load_config(*args, **kwargs)
        index = config[0] if isinstance(config, tuple) else config
        for name, value in index.items():
            if isinstance(value, list) and len(value) == 2:
                index[name] = own_component(*value)
        return config

    def to_json_string(self) -> str:
        """The index as JSON, naming stock classes instead of ours."""
        index = json.loads(super().to_json_string())
        for name, value in index.items():
            if isinstance(value, list) and len(value) == 2:
                index[name] = stock_component(*value)
        return json.dumps(index, indent=2, sort_keys=True) + "\n"

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
    def num_classes(self) -> int:
        """Number of classes; 0 for an unconditional model."""
        if self.id2label is not None:
            return len(self.id2label)
        return self.unet.config.num_class_embeds or 0

    @property
    def null_class(self) -> int | None:
        """The embedding that means "no class", which guidance needs; None if the model has none."""
        embeddings = self.unet.config.num_class_embeds or 0
        return embeddings - 1 if self.num_classes and embeddings == self.num_classes + 1 else None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        config = self.unet.config
        size = config.sample_size
        return config.in_channels, *((size, size) if isinstance(size, int) else size)

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
        latents: torch.Tensor | None = None,
        skip_steps: int | None = None,
        callback_on_step_end: Callable[["DDPMPipeline", int, torch.Tensor, dict[str, Any]], dict | None] | None = None,
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
            latents: x_T, standard normal, (B, C, H, W), instead of drawing it.
            skip_steps: how many steps to skip at the start of the chain. `latents` must then be x_t at the first
                remaining timestep, as made by the scheduler's `add_noise`.
            callback_on_step_end: called after each step as `callback(pipeline, step, timestep, tensors)`. The tensors
                are "latents": x after the step, "network_input": x before it at unit variance, "model_output", and
                "pred_original_sample": the scheduler's x_0, None if it returns none. May return a dict with other
                "latents".

        Raises:
            ValueError: for an invalid argument, naming the choices.
        """
        # 1. Check the arguments and turn class names into numbers
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}.")
        classes, batch_size = self.check_classes(class_labels, guidance_scale, batch_size)
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(f"`generator` must be one per image, got {len(generator)} for {batch_size} images.")

        # 2. Timesteps
        scheduler = without_learned_variance(self.scheduler)
        total = scheduler.config.num_train_timesteps
        scheduler.set_timesteps(total if num_inference_steps is None else num_inference_steps)
        skipped = self._skip(skip_steps, scheduler, latents)

        # 3. x_T ~ N(0, I), or the x_t given
        x_t = self._initial_noise(batch_size, generator, latents)
        if skip_steps is None:
            x_t = x_t * scheduler.init_noise_sigma

        # 4. x_t -> x_{t-1}, without dropout; training mode is restored
        was_training = self.unet.training
        self.unet.eval()
        try:
            x_0 = self._denoise(scheduler, x_t, skipped, generator, classes, guidance_scale, callback_on_step_end)
        finally:
            self.unet.train(was_training)
            self.maybe_free_model_hooks()

        # 5. [-1, 1] -> the output asked for
        images = self._to_output(x_0, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _denoise(
        self,
        scheduler: SchedulerMixin,
        x_t: torch.Tensor,
        skipped: int,
        generator: torch.Generator | list[torch.Generator] | None,
        classes: torch.Tensor | None,
        guidance_scale: float,
        callback: Callable | None,
    ) -> torch.Tensor:
        """The loop of Algorithm 2, for any sampler, without its first `skipped` steps."""
        step_arguments = {"generator": generator} if _accepts_generator(type(scheduler)) else {}
        for i, t in enumerate(self.progress_bar(scheduler.timesteps[skipped:]), start=skipped):
            network_input = scheduler.scale_model_input(x_t, t)
            model_output = self._predict(network_input, t, classes, guidance_scale)
            if not takes_variance(scheduler):
                model_output = model_output[:, : x_t.shape[1]]
            step = scheduler.step(model_output, t, x_t, **step_arguments)
            x_t = step.prev_sample
            if callback is not None:
                tensors = {"latents": x_t, "network_input": network_input, "model_output": model_output}
                tensors["pred_original_sample"] = step.get("pred_original_sample")
                x_t = (callback(self, i, t, tensors) or {}).get("latents", x_t)
        return x_t

    def check_classes(
        self,
        class_labels: int | str | Sequence[int | str] | torch.Tensor | None,
        guidance_scale: float,
        batch_size: int,
    ) -> tuple[torch.Tensor | None, int]:
        """Class numbers of shape (B,), or None, and the number of images.

        Raises:
            ValueError: for labels, a scale or a batch size that do not suit this model, naming the choices.
        """
        if self.num_classes == 0:
            if class_labels is not None:
                self.class_number(class_labels)
            if guidance_scale != 1.0:
                raise ValueError(f"`guidance_scale` must be 1 for an unconditional model, got {guidance_scale}.")
            return None, batch_size
        if guidance_scale != 1.0 and self.null_class is None:
            raise ValueError(f"`guidance_scale` must be 1 for a model without a null class, got {guidance_scale}.")
        if class_labels is None:
            if guidance_scale != 0.0:
                raise ValueError(f"`class_labels` must be given for this model: {self._class_choices()}.")
            return torch.full((batch_size,), self.null_class, device=self._execution_device), batch_size
        if isinstance(class_labels, Integral | str):
            class_labels = [class_labels] * batch_size
        labels = class_labels.tolist() if isinstance(class_labels, torch.Tensor) else list(class_labels)
        if batch_size not in (1, len(labels)):
            raise ValueError(f"`class_labels` must be one per image, got {len(labels)} for `batch_size={batch_size}`.")
        numbers = [self.class_number(label) for label in labels]
        return torch.tensor(numbers, device=self._execution_device), len(numbers)

    def class_number(self, label: int | str) -> int:
        """The number of a class given by name or number; ValueError with the choices if it does not exist."""
        for number, name in (self.id2label or {}).items():
            if label == name:
                return number
        if isinstance(label, Integral) and 0 <= label < self.num_classes:
            return int(label)
        choices = self._class_choices() if self.num_classes else "left out for an unconditional model"
        raise ValueError(f"`class_labels` must be {choices}, got {label!r}.")

    def _class_choices(self) -> str:
        named = ", ".join(f"{number} ({name})" for number, name in list((self.id2label or {}).items())[:20])
        return f"from 0 to {self.num_classes - 1}" + (f": {named}" if named else "")

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

    def _initial_noise(self, batch_size: int, generator, latents: torch.Tensor | None) -> torch.Tensor:
        """x_T of shape (B, C, H, W); in float32 even with half-precision weights."""
        shape = (batch_size, *self.image_shape)
        device = self._execution_device
        if latents is None:
            # Random numbers from mps cannot be reproduced elsewhere.
            drawn_on = torch.device("cpu") if device.type == "mps" else device
            return randn_tensor(shape, generator=generator, device=drawn_on, dtype=torch.float32).to(device)
        if tuple(latents.shape) != shape:
            raise ValueError(f"`latents` must have shape {shape}, got {tuple(latents.shape)}.")
        return latents.to(device, torch.float32)

    def _predict(
        self, x_t: torch.Tensor, t: torch.Tensor, classes: torch.Tensor | None, guidance_scale: float
    ) -> torch.Tensor:
        """The network's output at timestep t, with guidance."""
        if classes is None or guidance_scale == 1.0:
            return self._network(x_t, t, classes)
        no_class = torch.full_like(classes, self.null_class)
        if guidance_scale == 0.0:
            return self._network(x_t, t, no_class)
        both = self._network(torch.cat([x_t, x_t]), t, torch.cat([classes, no_class]))
        conditional, unconditional = both.chunk(2)
        output = conditional.clone()
        channels = x_t.shape[1]
        # Only the mean is guided, not a learned variance.
        output[:, :channels] = torch.lerp(unconditional, conditional, guidance_scale)[:, :channels]
        return output

    def _network(self, x_t: torch.Tensor, t: torch.Tensor, classes: torch.Tensor | None) -> torch.Tensor:
        """The network's output, float32 in and out whatever the dtype of its weights."""
        conditions = {} if classes is None else {"class_labels": classes}
        return self.unet(x_t.to(self.unet.dtype), t, **conditions).sample.float()

    def progress_bar(self, iterable=None, total: int | None = None):
        """As in diffusers, but plain lines in a log file."""
        return progress_bar(iterable, total=total, **getattr(self, "_progress_bar_config", {}))

    def _to_output(self, x_0: torch.Tensor, output_type: str):
        images = (x_0 / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return images
        array = images.cpu().permute(0, 2, 3, 1).float().numpy()
        if output_type == "np":
            return array
        if array.shape[-1] > 4:
            raise ValueError(f"`output_type` must be 'np' or 'pt' for {array.shape[-1]} channels, got 'pil'.")
        return self.numpy_to_pil(array)


def _accepts_generator(scheduler_class: type) -> bool:
    return "generator" in inspect.signature(scheduler_class.step).parameters
