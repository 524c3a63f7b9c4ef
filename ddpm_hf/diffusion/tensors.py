"""The dtype of computations, means of images, and standard normal noise."""

import torch
from diffusers.utils.torch_utils import randn_tensor

_PRECISE = (torch.float32, torch.float64)


def at_least_float32(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in the smallest dtype that holds either, at least float32."""
    if x.dtype is y.dtype and x.dtype in _PRECISE:
        return x, y
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    return x.to(dtype), y.to(dtype)


def in_dtype_of(given: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """x in the dtype of `given`. Checked first: even a `Tensor.to` without effect takes as long as a small sum."""
    return x if x.dtype is given.dtype else x.to(given.dtype)


def image_means(values: torch.Tensor, hole: torch.Tensor | None = None) -> torch.Tensor:
    """The mean of each image, (batch, C, H, W) -> (batch,), or of its pixels in a hole, bool (batch, 1, H, W)."""
    if hole is None:
        return values.flatten(1).mean(1)
    inside = torch.where(hole, values, 0).flatten(1).sum(1)
    return inside / (values.shape[1] * hole.flatten(1).sum(1))


def standard_normal(
    like: torch.Tensor, generator: torch.Generator | list[torch.Generator] | None, dtype: torch.dtype
) -> torch.Tensor:
    """The same numbers as diffusers' `randn_tensor`, faster when the generator is on the device."""
    if isinstance(generator, torch.Generator) and generator.device == like.device:
        # What torch.randn does, without the cost of parsing a shape.
        empty = torch.empty_like(like, dtype=dtype, memory_format=torch.contiguous_format)
        return empty.normal_(generator=generator)
    return randn_tensor(like.shape, generator, like.device, dtype)
