"""A pipeline with an upsampler, which enlarges what it draws in the same call, and is saved in a folder below it."""

import copy
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from huggingface_hub import snapshot_download

from ..portable import INDEX_FILE, UPSAMPLER_FOLDER
from ..steps.guidance import check_noise_level
from ..steps.inpainting import Pictures, shrunk
from .denoising import Denoising
from .loading import component_names
from .output_types import check_output_type

if TYPE_CHECKING:
    from .upsampling import UpsamplingPipeline

# Arguments of `from_pretrained` that say where in the Hub and on the disk a model is.
_PLACE = ("revision", "cache_dir", "token", "local_files_only", "force_download")
# Arguments of `save_pretrained` that say what files are written.
_FORM = ("safe_serialization", "variant", "max_shard_size")


class Cascade:
    """What pipelines have in common that may have an upsampler. List it before `Denoising` in the bases."""

    upsampler: "UpsamplingPipeline | None" = None
    """Enlarges what is drawn, in the same call; None draws the small pictures alone."""

    @classmethod
    def from_pretrained(cls, name, **kwargs):
        """As in diffusers, with the upsampler if there is one in the folder or repository.

        A `unet` or `scheduler` that is given is the base's, as are components that the upsampler does not have; all
        else that is given is for both.
        """
        from .upsampling import UpsamplingPipeline

        pipeline, folder = super().from_pretrained(name, **kwargs), Path(name)
        if not folder.is_dir():
            place = {key: value for key, value in kwargs.items() if key in _PLACE}
            folder = Path(snapshot_download(name, allow_patterns=f"{UPSAMPLER_FOLDER}/*", **place))
        if (folder / UPSAMPLER_FOLDER / INDEX_FILE).is_file():
            own = {*component_names(cls)} - {*component_names(UpsamplingPipeline)} | {"unet", "scheduler"}
            shared = {key: value for key, value in kwargs.items() if key not in own}
            pipeline.upsampler = UpsamplingPipeline.from_pretrained(folder / UPSAMPLER_FOLDER, **shared)
        return pipeline

    def save_pretrained(self, save_directory, **kwargs) -> None:
        """As in diffusers, with the upsampler if there is one."""
        if self.upsampler is not None:
            form = {key: value for key, value in kwargs.items() if key in _FORM}  # the base pushes both
            self.upsampler.save_pretrained(Path(save_directory, UPSAMPLER_FOLDER), **form)
        super().save_pretrained(save_directory, **kwargs)

    @property
    def stages(self) -> list[Denoising]:
        """This pipeline and its upsampler."""
        return [self] if self.upsampler is None else [self, self.upsampler]

    def alone(self) -> Self:
        """This pipeline without its upsampler."""
        base = copy.copy(self)
        base.upsampler = None
        return base

    def check_parts(self) -> None:
        """As of the pipeline, for the upsampler too."""
        super().check_parts()
        if self.upsampler is not None:
            try:
                self.upsampler.check_parts()
            except ValueError as problem:
                raise ValueError(f"upsampler: {problem}") from None
            taken = self.upsampler.conditions[-1].shape
            if taken != self.image_shape:
                raise ValueError(f"upsampler must enlarge pictures of shape {self.image_shape}, but takes {taken}")

    def _draw_by_stage(
        self,
        draw: Callable[..., ImagePipelineOutput | tuple],
        small: torch.Tensor | None,
        *,
        output_type: str,
        return_dict: bool,
        image: Pictures | None,
        mask_image: Pictures | None,
        noise_level: int | None,
        **enlarging: Any,
    ) -> ImagePipelineOutput | tuple:
        """The call of a pipeline: what it draws, enlarged if there is an upsampler.

        Args:
            draw: draws with this pipeline alone, by `output_type`, `return_dict`, and `image` and `mask_image` if they
                are given.
            small, output_type, return_dict, image, mask_image, noise_level: of the call, as in `TextToImagePipeline`.
            enlarging: other arguments of the upsampler's call.
        """
        check_output_type(output_type)
        check_noise_level(noise_level, self.stages[-1].noise_levels)
        given = {"image": image, "mask_image": mask_image} if image is not None or mask_image is not None else {}
        self.stages[-1].known(**given)
        if self.upsampler is None:
            if small is not None:
                raise ValueError("`small` must be left out for a model without an upsampler.")
            return draw(output_type=output_type, return_dict=return_dict, **given)
        if small is None:
            small = draw(output_type="pt", return_dict=True, **shrunk(given, self.image_shape[1:])).images
        self.upsampler.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        return self.upsampler(
            image=2 * small - 1,
            guidance_scale=1,
            output_type=output_type,
            return_dict=return_dict,
            original_image=image,
            mask_image=mask_image,
            noise_level=noise_level,
            **enlarging,
        )


def _of_every_stage(name: str) -> Callable:
    """A method of diffusers, called for the upsampler too."""

    @wraps(getattr(DiffusionPipeline, name))
    def method(self: Cascade, *args, **kwargs):
        result = getattr(super(Cascade, self), name)(*args, **kwargs)
        for later in self.stages[1:]:
            getattr(later, name)(*args, **kwargs)
        return result

    return method


# Where and how a pipeline computes. The other methods of this kind, such as `enable_attention_slicing`, call these.
for _name in (
    *("to", "enable_model_cpu_offload", "enable_sequential_cpu_offload", "enable_group_offload", "remove_all_hooks"),
    *("reset_device_map", "set_attention_slice", "set_use_memory_efficient_attention_xformers"),
):
    setattr(Cascade, _name, _of_every_stage(_name))
