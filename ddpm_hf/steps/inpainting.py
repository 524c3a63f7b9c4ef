"""Drawing what is missing around pixels that are given, or drawing all of them anew from noise that leaves a part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import SchedulerMixin
from PIL import Image
from torch.nn.functional import adaptive_max_pool2d

from ..codecs.pixels import PixelCodec
from ..conditions.condition import Told
from ..data.transforms import RESAMPLING, to_channels, to_pixels

# One for all images, or one per image.
Pictures = Image.Image | Sequence[Image.Image]


@dataclass(frozen=True)
class Given:
    """Pixels that stay as they are while the others are drawn, starting from a picture.

    Attributes:
        x_0: of the pictures, (1 or B, C, H, W).
        hole: what is drawn of x_0, bool (1 or B, 1, H, W).
        noise: eps of the pictures, (B, C, H, W). All pixels of x_T have it, and at every later step the given ones
            are put back with as much of it as the others still have, so that any model can be told them
            (Lugmayr et al. 2022, arXiv 2201.09865, Eq. 8a, without going back and forth).
        clean: put them back without noise, which a model trained for inpainting expects, as stock
            `IFInpaintingPipeline` does.
    """

    x_0: torch.Tensor
    hole: torch.Tensor
    noise: torch.Tensor
    clean: bool
    told: ClassVar[Told] = {}
    """To the network beside x_t."""

    def start(self, scheduler: SchedulerMixin, calls: int = 0) -> torch.Tensor:
        """x_t where so many network calls are left out."""
        return self.keep(self._noisy(scheduler, calls), scheduler, calls)

    def keep(self, x_t: torch.Tensor, scheduler: SchedulerMixin, calls: int) -> torch.Tensor:
        """x_t with the given pixels as they are after so many network calls; at the end exactly the picture's."""
        clean = self.clean or calls == len(scheduler.timesteps)
        return torch.where(self.hole, x_t, self.x_0 if clean else self._noisy(scheduler, calls))

    def _noisy(self, scheduler: SchedulerMixin, calls: int) -> torch.Tensor:
        t = scheduler.timesteps[calls].expand(len(self.noise))
        return scheduler.add_noise(self.x_0.expand_as(self.noise), self.noise, t)


def given_pixels(
    image: Pictures | None,
    mask_image: Pictures | None,
    shape: tuple[int, int, int],
    codec: PixelCodec,
    generator: torch.Generator | list[torch.Generator] | None = None,
    all_drawn: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`Given.x_0` and `Given.hole`.

    Args:
        image: in any mode; converted to the model's channels.
        mask_image: white (at least 128 of 255) where to draw.
        shape: (channels, height, width) of the model's pictures.
        generator: of a codec that draws.
        all_drawn: whether the mask may be left out, for white everywhere.

    Raises:
        ValueError: one of them has another size, or a mask has no white pixel.
    """
    channels, height, width = shape
    if all_drawn and mask_image is None:
        mask_image = Image.new("L", (width, height), 255)
    for name, pictures in (("image", image), ("mask_image", mask_image)):
        for picture in _listed(pictures) or [None]:
            is_picture = isinstance(picture, Image.Image)
            if not is_picture or picture.size != (width, height):
                got = f"{picture.width}x{picture.height}" if is_picture else type(picture).__name__
                raise ValueError(f"`{name}` must be a PIL image of the model's {width}x{height} pixels, got {got}.")
    hole = _pixels(mask_image, 1) >= 128
    if not hole.flatten(1).any(1).all():
        raise ValueError("`mask_image` must be white where to draw, got one without white pixels.")
    x_0 = codec.encode({"images": _pixels(image, channels)}, generator)
    # Where x_0 is smaller than the picture, all of it that white pixels are part of is drawn.
    return x_0, adaptive_max_pool2d(hole.float(), x_0.shape[2:]) > 0


def check_counts(known: Sequence[torch.Tensor], count: int) -> None:
    """Raises ValueError if the pictures or the holes are neither one for all nor one per image."""
    for name, several in zip(("image", "mask_image"), known, strict=True):
        if len(several) not in (1, count):
            raise ValueError(f"`{name}` must be one per image, got {len(several)} for {count} images.")


def shrunk(given: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """`image` and `mask_image` at the (height, width) of a base; its hole covers all that is then drawn larger.

    What else is given stays as it is.
    """
    to = size[::-1]

    def small_hole(mask: Image.Image) -> Image.Image:
        hole = to_channels(mask, 1).point(lambda level: 255 * (level >= 128))
        return hole.resize(to, Image.Resampling.BOX).point(lambda level: 255 * (level > 0))

    small = {"image": lambda picture: picture.resize(to, RESAMPLING), "mask_image": small_hole}
    found = {name: [small[name](picture) for picture in _listed(given[name])] for name in given if name in small}
    return {**given, **found}


def _listed(pictures: Pictures | None) -> Sequence[Image.Image | None]:
    return pictures if isinstance(pictures, Sequence) else [pictures]


def _pixels(pictures: Pictures, channels: int) -> torch.Tensor:
    """uint8 (B, C, H, W)."""
    return torch.stack([torch.tensor(to_pixels(to_channels(picture, channels))) for picture in _listed(pictures)])
