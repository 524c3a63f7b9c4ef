"""A DDPM pipeline in one file, for models that diffusers' own DDPMPipeline cannot sample.

It needs only torch and diffusers, and adds class labels, classifier-free guidance, images of any size, and learned
variances with every sampler.

    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(repository, custom_pipeline=repository, trust_remote_code=True)
    images = pipe(batch_size=4).images
"""

import inspect
from collections.abc import Sequence

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, ImagePipelineOutput, SchedulerMixin, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor


class StandaloneDDPMPipeline(DiffusionPipeline):
    """Image generation with a DDPM (Ho et al. 2020, arXiv 2006.11239, Algorithm 2).

    Args:
        unet: the network, for images in [-1, 1].
        scheduler: the process the network was trained on, or another diffusers scheduler made from its config.
        id2label: class number -> class name, for class-conditional models only. If the network has one embedding more
            than there are names, it was trained for guidance, and the last embedding means "no class".
    """

    model_cpu_offload_seq = "unet"

    def __init__(self, unet: UNet2DModel, scheduler: SchedulerMixin, id2label: dict | None = None):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(id2label=id2label)
        self.names = [name for _, name in sorted((int(number), name) for number, name in (id2label or {}).items())]

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        class_labels: int | str | Sequence[int | str] | None = None,
        guidance_scale: float = 1.0,
    ) -> ImagePipelineOutput | tuple:
        """Sample images.

        Args:
            batch_size: number of images; ignored if `class_labels` is a list.
            generator: one for all images, or a list with one per image.
            num_inference_steps: number of steps; by default all timesteps the model was trained on.
            output_type: "pil", "np" (B, H, W, C) or "pt" (B, C, H, W); the last two in [0, 1].
            return_dict: whether to return an `ImagePipelineOutput` rather than a tuple.
            class_labels: a class number or name, or a list with one per image; required by class-conditional models.
            guidance_scale: w in eps(none) + w (eps(class) - eps(none)), arXiv 2207.12598; 1 is plain conditional
                sampling, larger values give more typical images of the class.

        Raises:
            ValueError: an argument is out of range, or the model does not support it.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"`output_type` must be one of pil, np, pt, got {output_type!r}.")
        classes = self._classes(class_labels, guidance_scale, batch_size)
        batch_size = batch_size if classes is None else len(classes)
        scheduler = self._sampler()
        scheduler.set_timesteps(num_inference_steps or scheduler.config.num_train_timesteps)
        accepts_generator = "generator" in inspect.signature(scheduler.step).parameters

        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        shape = (batch_size, self.unet.config.in_channels, height, width)
        x_t = randn_tensor(shape, generator=generator, device=self._execution_device) * scheduler.init_noise_sigma
        for t in self.progress_bar(scheduler.timesteps):
            output = self._predict(scheduler.scale_model_input(x_t, t), t, classes, guidance_scale)
            output = self._for_step(output, scheduler)
            x_t = scheduler.step(output, t, x_t, **({"generator": generator} if accepts_generator else {})).prev_sample
        self.maybe_free_model_hooks()

        images = (x_t / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).float().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _classes(self, labels, guidance_scale: float, batch_size: int) -> torch.Tensor | None:
        embeddings = self.unet.config.num_class_embeds
        if not embeddings:
            if labels is not None or guidance_scale != 1.0:
                raise ValueError("This model is unconditional: leave out `class_labels` and `guidance_scale`.")
            return None
        count = len(self.names) or embeddings
        if guidance_scale != 1.0 and embeddings != count + 1:
            raise ValueError(
                f"`guidance_scale` must be 1, because this model was not trained for guidance, got {guidance_scale}."
            )
        names = f" or one of {', '.join(self.names)}" if self.names else ""
        must_be = f"`class_labels` must be 0 to {count - 1}{names}"
        if labels is None:
            raise ValueError(f"{must_be}, got None.")
        labels = [labels] * batch_size if isinstance(labels, int | str) else list(labels)
        numbers = [self.names.index(label) if label in self.names else label for label in labels]
        for number in numbers:
            if not isinstance(number, int) or not 0 <= number < count:
                raise ValueError(f"{must_be}, got {number!r}.")
        return torch.tensor(numbers, device=self._execution_device)

    def _predict(self, x_t: torch.Tensor, t: torch.Tensor, classes: torch.Tensor | None, w: float) -> torch.Tensor:
        if classes is None or w == 1.0:
            return self._network(x_t, t, classes)
        none = torch.full_like(classes, self.unet.config.num_class_embeds - 1)
        conditional, unconditional = self._network(torch.cat([x_t, x_t]), t, torch.cat([classes, none])).chunk(2)
        channels = x_t.shape[1]
        # Guidance applies to the mean; a learned variance stays that of the class.
        guided = torch.lerp(unconditional, conditional, w)[:, :channels]
        return torch.cat([guided, conditional[:, channels:]], dim=1)

    def _network(self, x_t: torch.Tensor, t: torch.Tensor, classes: torch.Tensor | None) -> torch.Tensor:
        """Run the network on the input padded by reflection to a size it supports, and crop the output."""
        height, width = x_t.shape[-2:]
        multiple = 2 ** (len(self.unet.config.block_out_channels) - 1)
        for dim, side in ((-2, height), (-1, width)):
            place = torch.arange(side + -side % multiple, device=x_t.device) - (-side % multiple) // 2
            period = max(2 * (side - 1), 1)
            x_t = x_t.index_select(dim, torch.minimum(place % period, period - place % period))
        output = self.unet(x_t.to(self.unet.dtype), t, classes).sample.float()
        top, left = (-height % multiple) // 2, (-width % multiple) // 2
        return output[..., top : top + height, left : left + width]

    def _sampler(self) -> SchedulerMixin:
        """The scheduler, with settings replaced that its diffusers class handles differently."""
        config, changes = self.scheduler.config, {}
        variance_type = config.get("variance_type")
        if not isinstance(self.scheduler, DDPMScheduler) and variance_type in ("learned", "learned_range"):
            changes = {"variance_type": None}  # multistep solvers would cut the output to three channels
        elif type(self.scheduler) is DDPMScheduler and variance_type == "fixed_large_log":
            changes = {"variance_type": "fixed_large"}  # the same variance; diffusers takes the root of the log
        return type(self.scheduler).from_config({**config, **changes}) if changes else self.scheduler

    def _for_step(self, output: torch.Tensor, scheduler: SchedulerMixin) -> torch.Tensor:
        """The output with the channels and the unit of variance that the scheduler's step expects."""
        channels = self.unet.config.in_channels
        if not isinstance(scheduler, DDPMScheduler) or scheduler.config.variance_type not in (
            "learned",
            "learned_range",
        ):
            return output[:, :channels]
        if type(scheduler) is DDPMScheduler and scheduler.config.variance_type == "learned":
            # The network predicts the log-variance; diffusers expects the variance.
            return torch.cat([output[:, :channels], output[:, channels:].exp()], dim=1)
        return output
