"""What is drawn with one pipeline into a folder: images on all processes, chains and interpolations on one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import PartialState
from accelerate.utils import broadcast_object_list
from PIL import Image

from ..codecs.pixels import PixelCodec
from ..conditions.condition import cycled
from ..data.transforms import UnreadableImage, content_hash, native_channels, open_image, to_channels, to_pixels
from ..pipelines.ddpm import DDPMPipeline
from ..pipelines.fingerprint import upsampler_fingerprint, weights_fingerprint
from ..steps.guidance import check_guidance
from ..steps.inpainting import shrunk
from .cascade import forget_small, generate_by_stage
from .generation import generate, sampling_bar
from .interpolation import interpolate
from .pictures import image_grid
from .sample_folder import OVERVIEW, SampleFolder
from .strips import denoising_chain, save_chain

BASE_PICTURES = "base"  # folder of what the base of a cascade drew, in that of the images
_CHAIN_IMAGES, _CHAIN_FRAMES = 8, 40
_MIXTURES = np.linspace(0, 1, 11)


@dataclass(kw_only=True)
class Drawing:
    """A pipeline and how it draws.

    Attributes:
        pipeline: on this process's device, with any sampler.
        steps: of the sampler, per image.
        seed: image k of a seed is always the same.
        batch_size: images per network call of one process; does not affect the images.
        asked: what the network is told, as arguments of the pipeline call: name -> words to cycle through.
        guidance_scale: of the pipeline call.
        finer_guidance: `guidance_interval` and `guidance_rescale` of the pipeline call, where they are given.
        of_prior: `prior_guidance_scale` and `prior_candidates` of the pipeline call, where they are given.
        noise_level: of the pipeline call, if it is given.
        given: `image` and `mask_image` of the pipeline call, if only a part is drawn.
        calls: network calls per image.

    Raises:
        ValueError: the sampler cannot take this many steps, or as in `check_guidance`.
    """

    pipeline: DDPMPipeline
    steps: int
    seed: int = 0
    batch_size: int = 64
    asked: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    guidance_scale: float = 1.0
    finer_guidance: Mapping[str, Any] = field(default_factory=dict)
    of_prior: Mapping[str, Any] = field(default_factory=dict)
    noise_level: int | None = None
    given: Mapping[str, Image.Image] = field(default_factory=dict)

    def __post_init__(self):
        check_guidance(self.guidance_scale, **self.finer_guidance)
        for stage in self.pipeline.stages:
            stage.scheduler.set_timesteps(self.steps)
        self.calls = sum(len(stage.scheduler.timesteps) for stage in self.pipeline.stages)

    @property
    def guidance(self) -> dict[str, Any]:
        """All arguments of the pipeline call that are about it."""
        return {"guidance_scale": self.guidance_scale, **self.finer_guidance, **self.of_prior}

    def words(self, indices: Sequence[int]) -> dict[str, list[Any]]:
        """What is asked for each of these images."""
        return {name: cycled(words, indices) for name, words in self.asked.items()}

    def open_folder(
        self, path: Path, num_images: int, output_format: str = "png", **about: Any
    ) -> tuple[SampleFolder, list[int]]:
        """The output folder, with facts `about` it, and, equal on all processes, the images that it lacks.

        Raises:
            ValueError: the folder cannot be used, or what is asked for or the channels do not suit.
        """
        pipeline, channels = self.pipeline, self.pipeline.image_shape[0]
        if channels > 4:
            raise ValueError(f"the model's images must have at most 4 channels, got {channels}")
        words, table = self.words(range(num_images)), {}
        pipeline.ask(words, self.guidance_scale, num_images)
        for condition in pipeline.conditions:
            table |= condition.table(words[condition.name]) if condition.name in words else {}
        folder = SampleFolder(
            path=path,
            output_format=output_format,
            num_images=num_images,
            table=table,
            class_names=pipeline.id2label,
        )
        process = {key: value for key, value in pipeline.scheduler.config.items() if not key.startswith("_")}
        settings = {
            "seed": self.seed,
            "num_inference_steps": self.steps,
            **self.guidance,
            **{condition.name: None for condition in pipeline.conditions},
            **{name: [_recorded(word) for word in words] for name, words in self.asked.items()},
            **{name: content_hash(np.array(picture)) for name, picture in self.given.items()},
            "scheduler": {"class": type(pipeline.scheduler).__name__, **process},
            **({} if self.noise_level is None else {"noise_level": self.noise_level}),
            "weights": weights_fingerprint(pipeline),
            **upsampler_fingerprint(pipeline),
        }
        # Only the main process lists the files: another could miss some, or see new ones of this run.
        missing = folder.open(settings, **about) if PartialState().is_main_process else None
        return folder, broadcast_object_list([missing])[0]

    def draw_images(
        self, folder: SampleFolder, missing: Sequence[int], go_on: Callable[[], bool] = lambda: True
    ) -> bool:
        """Draw this process's share of the missing images, then wait for the others.

        What is enlarged is kept, in the folder's `base`: see `generate_by_stage`.

        Returns:
            False if `go_on`, asked after every batch, ended it.
        """
        state = PartialState()
        mine = missing[state.process_index :: state.num_processes]
        hidden = not (mine and state.is_main_process)
        what = (self.pipeline, mine, self.seed, self.batch_size, self.words(mine))
        with sampling_bar(folder.num_images, len(missing), len(mine), self.calls, disable=hidden) as show:
            how = {**self.guidance, "callback_on_step_end": show, "num_inference_steps": self.steps}
            place = folder.path / BASE_PICTURES if self.pipeline.stages[1:] else None
            if place is not None:
                enlarging = {"noise_level": self.noise_level}
                batches = generate_by_stage(*what, place, given=self.given, enlarging=enlarging, **how)
            else:
                batches = generate(*what, **how, **self.given)
            for indices, images in batches:
                folder.write(indices, images)
                if place is not None:
                    forget_small(place, indices)
                if not go_on():
                    return False
        state.wait_for_everyone()
        return True

    def draw_chain(self, folder: SampleFolder, name: str, predicted: bool = False) -> Path:
        """On one process, draw the first images again, keeping steps; `predicted` as in `denoising_chain`.

        Of pictures that are enlarged it shows the small ones.

        Returns:
            The strip in the folder's overview; beside it is an animation, a .webp of the same name.
        """
        shown = range(min(_CHAIN_IMAGES, folder.num_images))
        base = self.pipeline.alone()
        frames, _ = denoising_chain(
            base,
            shown,
            self.seed,
            self.steps,
            _CHAIN_FRAMES,
            self.words(shown),
            predicted=predicted,
            **self.guidance,
            **shrunk(self.given, base.image_shape[1:]),
        )
        strip = folder.path / OVERVIEW / f"{name}.png"
        save_chain(frames, strip, strip.with_suffix(".webp"))
        return strip

    def draw_interpolation(self, pair: tuple[torch.Tensor, torch.Tensor], depths: Sequence[int]) -> Image.Image:
        """On one process, a picture with a row per depth between the two images, as in `interpolate`."""
        images, taken = interpolate(
            self.pipeline.alone(),
            *pair,
            depths,
            _MIXTURES.tolist(),
            seed=self.seed,
            num_inference_steps=self.steps,
            batch_size=self.batch_size,
            **self.guidance,
            **{name: words[0] for name, words in self.asked.items()},
        )
        sides = self.pipeline.codec.pictures(torch.stack(pair))
        rows = [np.concatenate([sides[:1], row, sides[1:]]) for row in images]
        return image_grid(np.concatenate(rows), len(rows[0]), [f"t = {depth}" for depth in taken])


def _recorded(word: Any) -> Any:
    """A word as it stands in the record of a folder of images: of an embedding a hash."""
    return content_hash(word.cpu().numpy()) if torch.is_tensor(word) else word


def read_picture(file: str | Path) -> Image.Image:
    """An image file; ValueError if it cannot be read."""
    try:
        return open_image(Path(file).read_bytes())
    except (UnreadableImage, OSError) as problem:
        raise ValueError(f"cannot read {file}: {problem}") from None


def read_image(file: str | Path, codec: PixelCodec, channels: int) -> torch.Tensor:
    """x_0 of an image file; ValueError if it cannot be read or has another number of channels."""
    image = read_picture(file)
    found = native_channels(image)
    if found != channels:
        raise ValueError(f"{file} must have the model's {channels} channels, got {found}")
    return codec.encode({"images": torch.tensor(to_pixels(to_channels(image, channels)))[None]})[0]
