"""Arrange small images in grids, enlarged by integer factors, with row names."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_SHORTEST_CELL = 64
_MARGIN = 2


def to_pil(image: np.ndarray) -> Image.Image:
    """A uint8 array (H, W, C) as a PIL image of its first four channels."""
    channels = image.shape[-1]
    return Image.fromarray(image[..., 0] if channels == 1 else image[..., :4])


def image_grid(images: np.ndarray, columns: int | None = None, row_names: Sequence[str] | None = None) -> Image.Image:
    """An RGB image of a grid of images on white.

    Args:
        images: uint8, (N, H, W, C). Small ones are enlarged by an integer factor.
        columns: images per row; by default the grid is about square.
        row_names: written to the left of the rows.
    """
    count, height, width, _ = images.shape
    columns = columns or min(count, max(1, round(math.sqrt(count * height / width))))
    rows = math.ceil(count / columns)
    factor = max(1, _SHORTEST_CELL // min(height, width))
    cell_width, cell_height = width * factor + _MARGIN, height * factor + _MARGIN
    font = ImageFont.load_default(size=14)
    left = _MARGIN
    if row_names:
        left += 8 + math.ceil(max(font.getlength(name) for name in row_names))
    canvas = Image.new("RGB", (left + columns * cell_width, _MARGIN + rows * cell_height), "white")
    for position, image in enumerate(images):
        row, column = divmod(position, columns)
        picture = to_pil(image).resize((width * factor, height * factor), Image.Resampling.NEAREST)
        mask = picture.getchannel("A") if picture.mode in ("RGBA", "LA") else None
        canvas.paste(picture.convert("RGB"), (left + column * cell_width, _MARGIN + row * cell_height), mask)
    draw = ImageDraw.Draw(canvas)
    for row, name in enumerate(row_names or ()):
        middle = _MARGIN + row * cell_height + (cell_height - _MARGIN) // 2
        draw.text((_MARGIN, middle), name, fill="black", font=font, anchor="lm")
    return canvas
