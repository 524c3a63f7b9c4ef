"""Draw many images with a base and its upsampler, and keep what the base drew: who is interrupted while pictures are
enlarged need not draw the small ones again."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..files import replacing
from ..pixels import channels_last, to_levels
from ..seeds import image_generators
from ..steps.inpainting import shrunk
from .pictures import to_pil

if TYPE_CHECKING:
    from ..pipelines.cascade import Cascade


def generate_by_stage(
    pipeline: "Cascade",
    indices: Sequence[int],
    seed: int,
    batch_size: int,
    asked: Mapping[str, Sequence[Any]],
    folder: Path,
    *,
    given: Mapping[str, Any],
    enlarging: Mapping[str, Any],
    **call_arguments,
) -> Iterator[tuple[list[int], np.ndarray]]:
    """As `generate`, which draws the same images.

    Args:
        pipeline: with an upsampler.
        folder: where small pictures stay, as 00000.png, …; beside each is a .npz with its exact pixels and the
            state of its generator, for `forget_small` once the enlarged picture has been written.
        given: `image` and `mask_image` of the pipeline call, if only a part is drawn.
        enlarging: arguments of the pipeline call that are for the upsampler alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base, call = pipeline.alone(), {"output_type": "pt", **call_arguments}
    for start in range(0, len(indices), batch_size):
        chosen = list(indices[start : start + batch_size])
        words = {name: list(each[start : start + batch_size]) for name, each in asked.items()}
        new = [place for place, index in enumerate(chosen) if not _state(folder, index).is_file()]
        if new:
            some = {name: [each[place] for place in new] for name, each in words.items()}
            generators = image_generators(seed, [chosen[place] for place in new])
            whole = shrunk(given, base.image_shape[1:])
            small = base(batch_size=len(new), generator=generators, **some, **whole, **call).images
            for place, picture, generator in zip(new, small, generators, strict=True):
                _keep(folder, chosen[place], picture, generator)
        small, generators = zip(*(_kept(_state(folder, index)) for index in chosen), strict=True)
        more = {"small": torch.stack(small), "generator": list(generators), **given, **enlarging}
        images = pipeline(batch_size=len(chosen), **words, **more, **call).images
        yield chosen, channels_last(to_levels(images))


def forget_small(folder: Path, indices: Sequence[int]) -> None:
    """What `generate_by_stage` kept to enlarge these; their pictures stay."""
    for index in indices:
        _state(folder, index).unlink(missing_ok=True)  # a worker of a dead launcher may draw the same


def _state(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.npz"


def _keep(folder: Path, index: int, picture: torch.Tensor, generator: torch.Generator) -> None:
    with replacing(folder / f"{index:05d}.png", shared=True) as beside:
        to_pil(channels_last(to_levels(picture[None]))[0]).save(beside, format="PNG")
    with replacing(_state(folder, index), shared=True) as beside, beside.open("wb") as file:
        np.savez(file, picture=picture.float().cpu().numpy(), generator=generator.get_state().numpy())


def _kept(file: Path) -> tuple[torch.Tensor, torch.Generator]:
    with np.load(file, allow_pickle=False) as arrays:
        generator = torch.Generator()
        generator.set_state(torch.from_numpy(arrays["generator"]))
        return torch.from_numpy(arrays["picture"]), generator
