"""Arrange small images in grids, enlarged by integer factors, with row names or with captions under them."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_SHORTEST_CELL, _SHORTEST_CAPTIONED_CELL = 64, 160
_MARGIN = 2
_LETTERS_PER_LINE, _CAPTION_LINES = 24, 6


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
    font = _font(14)
    left = _MARGIN
    if row_names:
        left += 8 + math.ceil(max(font.getlength(name) for name in row_names))
    canvas = Image.new("RGB", (left + columns * cell_width, _MARGIN + rows * cell_height), "white")
    for position, image in enumerate(images):
        row, column = divmod(position, columns)
        _paste(canvas, image, factor, (left + column * cell_width, _MARGIN + row * cell_height))
    draw = ImageDraw.Draw(canvas)
    for row, name in enumerate(row_names or ()):
        middle = _MARGIN + row * cell_height + (cell_height - _MARGIN) // 2
        draw.text((_MARGIN, middle), name, fill="black", font=font, anchor="lm")
    return canvas


def captioned_grid(images: np.ndarray, captions: Sequence[str], columns: int | None = None) -> Image.Image:
    """As `image_grid`, with a caption under each image, wrapped, in letters whose size goes with that of the images.

    Args:
        images: uint8, (N, H, W, C). Small ones are enlarged by an integer factor.
        captions: one per image. Of long ones the first lines are shown. What DejaVu Sans has no letters for, such as
            Chinese, Japanese, Hindi and emoji, shows as boxes.
        columns: images per row; by default the grid is about square.
    """
    _, height, width, _ = images.shape
    factor = max(1, math.ceil(_SHORTEST_CAPTIONED_CELL / min(height, width)))
    font = _font(2 * width * factor // _LETTERS_PER_LINE)
    shown = [_wrapped(caption, font, width * factor) for caption in captions]
    line = sum(font.getmetrics())
    size = (width * factor, height * factor + line * max(map(len, shown)))
    cells = []
    for image, lines in zip(images, shown, strict=True):
        cell = Image.new("RGB", size, "white")
        _paste(cell, image, factor, (0, 0))
        for number, words in enumerate(lines):
            ImageDraw.Draw(cell).text((0, height * factor + number * line), words, fill="black", font=font)
        cells.append(np.asarray(cell))
    return image_grid(np.stack(cells), columns)


def _paste(canvas: Image.Image, image: np.ndarray, factor: int, corner: tuple[int, int]) -> None:
    """Paste an image, enlarged; where it is transparent the canvas shows."""
    picture = to_pil(image)
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    mask = picture.getchannel("A") if picture.mode in ("RGBA", "LA") else None
    canvas.paste(picture.convert("RGB"), corner, mask)


def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, because Pillow's own font has ASCII only."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The lines of a text, broken between words and, where a word does not fit, within it."""
    lines = [""]
    # More letters than this fill all lines, even with the narrowest.
    for word in text[: 3 * _LETTERS_PER_LINE * _CAPTION_LINES].split():
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") <= width:
            word = f"{lines.pop()} {word}"
        elif not lines[-1]:
            lines.pop()
        while font.getlength(word) > width:
            fits = max(n for n in range(1, len(word)) if font.getlength(word[:n]) <= width)
            lines.append(word[:fits])
            word = word[fits:]
        lines.append(word)
    return lines if len(lines) <= _CAPTION_LINES else [*lines[: _CAPTION_LINES - 1], "…"]
