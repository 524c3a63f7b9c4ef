"""The pictures that sample.py draws in place of images, or beside them: their flags, and what draws them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..flags import flag
from ..sampling.drawing import Drawing, read_image, read_picture
from ..sampling.embeddings import check_ddim, draw_between, embed, fitted, noise_of, redraw, slerp, towards
from ..sampling.interpolation import check_interpolation
from ..sampling.pictures import captioned_grid, image_grid
from ..sampling.sample_folder import OVERVIEW
from ..seeds import generator_for

_ROWS = 3  # of an interpolation
_SHARES = np.linspace(0, 1, 9).tolist()
_CHANGES = np.linspace(0, 0.5, 6).tolist()  # the paper's (§3.3) end there or at half of it
_OTHERS = 4  # variations beside a reconstruction
_DDIM_STEPS = 100  # there and back, unless --num_inference_steps says otherwise


@dataclass(kw_only=True)
class PictureArguments:
    """Pictures of the sampling process."""

    _argument_group_name = "pictures"

    denoising_strip: bool = flag(False, help="Show the denoising of the first images as a strip and an animation.")
    progressive: bool = flag(
        False, help="Show the network's prediction of x_0 at each of these steps (Ho et al., Fig. 6)."
    )
    interpolate: list[str] | None = flag(
        help="Only interpolate two image files: of the model's size, by their x_t (Ho et al., Fig. 8), or with dalle2 "
        "of any size, by their embeddings."
    )
    interpolation_depths: list[int] | None = flag(
        help="Diffusion steps before the two images are mixed; 0, T/4, T/2, 3T/4 and T by default."
    )


@dataclass(kw_only=True)
class EmbeddingArguments:
    """Pictures by way of an embedding, for models with a prior (dalle2)."""

    _argument_group_name = "embeddings"

    variations: str | None = flag(help="An image: draw others that are the same to CLIP.")
    text_difference: list[str] | None = flag(
        help="An image and two captions, such as photo.png 'a red three' 'a blue three': only show how the image "
        "changes as the first caption becomes the second."
    )
    reconstruct: str | None = flag(
        help="An image: only show how DDIM draws it again, from its embedding and the noise that DDIM makes of it."
    )

    @property
    def asked(self) -> str | None:
        """The flag that is given, if one is; ValueError for several, or for what is no image and two captions."""
        given = [name for name in ("variations", "text_difference", "reconstruct") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"--{given[0]} and --{given[1]} each draw a picture of their own; leave one out")
        if self.text_difference is not None and len(self.text_difference) != 3:
            raise ValueError(
                f"--text_difference must be an image and two captions, got {len(self.text_difference)} values"
            )
        return given[0] if given else None


def refuse(flag: str, why: str, others: Mapping[str, Any]) -> None:
    """Raises ValueError if one of these is given beside that flag."""
    given = [f"--{name}" for name, value in others.items() if value is not None and value is not False]
    if given:
        raise ValueError(f"--{flag} {why} {', '.join(given)}")


def read(flag: str, file: str) -> Image.Image:
    """An image file; ValueError, naming the flag, if it cannot be read."""
    try:
        return read_picture(file)
    except ValueError as problem:
        raise ValueError(f"--{flag}: {problem}") from None


def only_picture(
    drawing: Drawing, arguments: Any, pictures: PictureArguments, embeddings: EmbeddingArguments
) -> tuple[Path, Callable[[], Image.Image]] | None:
    """The only picture that is asked for, its file and what draws it; None if it is images that are asked for.

    Args:
        arguments: the `SampleArguments` of sample.py.

    Raises:
        ValueError: the model cannot draw it, an image cannot be read, or the picture is there.
    """
    name = "interpolation" if pictures.interpolate else embeddings.asked
    if name in (None, "variations"):
        return None
    file = Path(arguments.output_dir) / OVERVIEW / f"{name}.png"
    if file.exists():
        raise ValueError(f"--output_dir {arguments.output_dir} already has {file.name}; choose another folder")
    steps = arguments.num_inference_steps
    if name == "text_difference":
        return file, changing(drawing, *embeddings.text_difference, steps)
    if name == "reconstruct":
        return file, reconstructing(drawing, embeddings.reconstruct, steps)
    if drawing.pipeline.has_prior:
        told = {name: getattr(arguments, name) for name in ("prompt", "prompts", "negative_prompt")}
        told |= arguments.of_prior
        refuse(
            "interpolate",
            "is by embeddings here; leave out",
            told | {"interpolation_depths": pictures.interpolation_depths},
        )
        return file, between(drawing, pictures.interpolate)
    return file, interpolation(drawing, arguments, pictures)


def interpolation(drawing: Drawing, arguments: Any, pictures: PictureArguments) -> Callable[[], Image.Image]:
    """What draws pictures between two images; ValueError if the model cannot interpolate them."""
    pipeline = drawing.pipeline
    refuse("interpolate", "draws only one picture; leave out", {"fast": arguments.fast})
    if any(len(words) != 1 for words in drawing.asked.values()):
        raise ValueError("--interpolate needs exactly one class in --class_labels, or one --prompt")
    total = pipeline.scheduler.config.num_train_timesteps
    depths = pictures.interpolation_depths or [total * quarter // 4 for quarter in range(5)]
    try:
        codec, channels = pipeline.codec, pipeline.image_shape[0]
        pair = tuple(read_image(file, codec, channels) for file in pictures.interpolate)
        check_interpolation(pipeline, *pair, depths)
    except ValueError as problem:
        raise ValueError(f"--interpolate: {problem}") from None
    return partial(drawing.draw_interpolation, pair, depths)


def between(drawing: Drawing, files: list[str]) -> Callable[[], Image.Image]:
    """What draws pictures whose embeddings lie between those of two images: a row for each noise."""
    pictures = [read("interpolate", file) for file in files]
    ends = tuple(embed(drawing.pipeline, picture) for picture in pictures)

    def draw() -> Image.Image:
        images = draw_between(
            drawing.pipeline, ends, _SHARES, _ROWS, drawing.seed, num_inference_steps=drawing.steps, **drawing.guidance
        )
        first, last = (as_drawn(drawing, picture)[None] for picture in pictures)
        rows = [np.concatenate([first, row, last]) for row in images]
        return image_grid(np.concatenate(rows), len(rows[0]), [f"noise {k + 1}" for k in range(_ROWS)])

    return draw


def changing(drawing: Drawing, file: str, before: str, after: str, steps: int | None) -> Callable[[], Image.Image]:
    """What draws an image as one caption becomes another (text differences, §3.3)."""
    pipeline, picture = drawing.pipeline, read("text_difference", file)
    z = embed(pipeline, picture)
    check_ddim(pipeline, steps or _DDIM_STEPS)
    try:
        goal = towards(pipeline, z, before, after)
    except ValueError as problem:
        raise ValueError(f"--text_difference: {problem}") from None

    def draw() -> Image.Image:
        x_T = noise_of(pipeline, picture, z, steps or _DDIM_STEPS)
        changed = [slerp(z, goal, share) for share in _CHANGES]
        images = redraw(pipeline, x_T, changed, steps or _DDIM_STEPS, drawing.seed)
        shares = [f"{share:.0%} of the way" for share in _CHANGES[1:]]
        captions = [Path(file).name, "drawn again", *shares]
        return captioned_grid(np.stack([as_drawn(drawing, picture), *images]), captions, len(captions))

    return draw


def reconstructing(drawing: Drawing, file: str, steps: int | None) -> Callable[[], Image.Image]:
    """What draws an image again from its embedding and DDIM's noise, beside variations from other noise."""
    pipeline, picture = drawing.pipeline, read("reconstruct", file)
    z = embed(pipeline, picture)
    check_ddim(pipeline, steps or _DDIM_STEPS)

    def draw() -> Image.Image:
        x_T = noise_of(pipeline, picture, z, steps or _DDIM_STEPS)
        other = torch.randn(_OTHERS, *x_T.shape[1:], generator=generator_for(drawing.seed, "reconstruction"))
        noises = torch.cat([x_T, other.to(x_T.device)])
        images = redraw(pipeline, noises, [z] * len(noises), steps or _DDIM_STEPS, drawing.seed)
        captions = [Path(file).name, "from DDIM's noise", *["from other noise"] * _OTHERS]
        return captioned_grid(np.stack([as_drawn(drawing, picture), *images]), captions, len(captions))

    return draw


def as_drawn(drawing: Drawing, picture: Image.Image) -> np.ndarray:
    """A picture in the size and the channels of what is drawn, uint8 (H, W, C)."""
    return fitted(drawing.pipeline, picture).transpose(1, 2, 0)
