"""Convert encoded images to uint8 pixels of one shape.

The order: read, orient by EXIF, convert to 8 bits, convert channels, resize, crop. Flips and random crops differ from
epoch to epoch and are applied later, in `examples`.
"""

import hashlib
import io
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# Raster formats that Pillow decodes itself. Not EPS, for which Pillow runs Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA", "ICO", "QOI", "PCX", "DIB")

CHANNEL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"}

# Lanczos keeps the most detail of Pillow's filters, all of which antialias. The data tools of EDM and StyleGAN use it;
# diffusers' example uses torchvision's default, the softer bilinear.
RESAMPLING = Image.Resampling.LANCZOS

# Images kept for random crops are cut to this multiple of the crop's side, so a 10,000 x 3 strip stays small.
LONGEST_SIDE = 8

# What Pillow raises for damaged files and non-images (SyntaxError: a PNG with broken chunks).
DECODING_ERRORS = (
    *(OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, KeyError, OverflowError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)


class UnreadableImage(ValueError):
    """A value that cannot be decoded as an image. The message gives the reason; the caller adds the row and file."""


def parse_resolution(resolution: int | str | tuple[int, int]) -> tuple[int, int]:
    """`64`, `"64"`, `"48x32"` (height x width) or `(48, 32)` -> (height, width) in pixels.

    Raises:
        ValueError: it has another form, or a side is smaller than 1.
    """
    sides = resolution
    if isinstance(resolution, str):
        sides = tuple(int(side) if side.isascii() and side.isdigit() else 0 for side in resolution.lower().split("x"))
    if isinstance(sides, int):
        sides = (sides,)
    sides = tuple(sides) * 2 if len(sides) == 1 else tuple(sides)
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"`resolution` must be N or HxW (height x width), such as 64 or 48x32, got {resolution!r}.")
    return sides


def read_payload(value: object, base_dir: Path | None = None) -> bytes | np.ndarray:
    """Read a cell of an image column into memory: encoded bytes, or an array of pixels.

    Args:
        value: `{"bytes": ..., "path": ...}`, bytes, a path, or nested lists / an array of pixels.
        base_dir: folder that relative paths start from; the current one by default.

    Raises:
        UnreadableImage: the cell is empty, or its file cannot be read.
    """
    if isinstance(value, dict):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if value is None:
        raise UnreadableImage("the cell is empty")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, (str, os.PathLike)):
        return _read_file(os.fspath(value), base_dir)
    try:
        return np.asarray(value)
    except ValueError as error:
        raise UnreadableImage(f"nested lists have unequal lengths ({error})") from None


def _read_file(path: str, base_dir: Path | None) -> bytes:
    try:
        if "://" in path:  # a streamed folder on the Hub has URLs, which need the opener of `datasets`
            from datasets.utils.file_utils import xopen

            with xopen(path, "rb") as file:
                return file.read()
        return Path(base_dir or "", path).read_bytes()
    except (OSError, ValueError) as error:
        raise UnreadableImage(f"the file cannot be read ({error})") from None


def content_hash(payload: bytes | np.ndarray) -> int:
    """64-bit hash of an undecoded image: its encoded bytes, or an array's dtype, shape and values."""
    digest = hashlib.blake2b(digest_size=8)
    if isinstance(payload, np.ndarray):
        digest.update(f"{payload.dtype.str}{payload.shape}".encode())
        payload = payload.tobytes()
    digest.update(payload)
    return int.from_bytes(digest.digest(), "little")


def open_image(payload: bytes | np.ndarray, needed_side: int | None = None) -> Image.Image:
    """Encoded bytes or an array of pixels -> a loaded image with 8 bits per channel, oriented by its EXIF tag.

    16-bit grey is divided by 257 to keep the full range; 32-bit integers are treated as 16-bit grey. Floats are taken
    as [0, 1] if none exceeds 1, else as [0, 255]. Animations give their first frame. Arrays are (height, width),
    (height, width, channels) or (channels, height, width).

    Args:
        payload: from `read_payload`.
        needed_side: pixels; lets the JPEG decoder downscale by 2, 4 or 8, which is free, while both sides stay at
            least twice this long, which leaves the filtering to the final resize. None for full size.

    Raises:
        UnreadableImage: damaged, not an image, over Pillow's pixel limit (a decompression bomb), or out of range.
    """
    if isinstance(payload, np.ndarray):
        return Image.fromarray(_array_to_uint8(payload))
    if not payload:
        raise UnreadableImage("the file has no bytes")
    try:
        image = Image.open(io.BytesIO(payload), formats=FORMATS)
        if needed_side is not None:
            image.draft(None, (2 * needed_side, 2 * needed_side))
        image.load()
        image = ImageOps.exif_transpose(image)
    except Image.UnidentifiedImageError:
        raise UnreadableImage("not an image in a supported format") from None
    except DECODING_ERRORS as error:
        raise UnreadableImage(f"{type(error).__name__}: {error}") from None
    if image.mode == "F" or image.mode[0] == "I":
        grey = np.asarray(image)
        return Image.fromarray(_floats_to_uint8(grey) if image.mode == "F" else _sixteen_bits_to_uint8(grey))
    return image


def _sixteen_bits_to_uint8(values: np.ndarray) -> np.ndarray:
    if values.min() < 0 or values.max() > 65535:
        raise UnreadableImage(f"integers must be between 0 and 65535, got {values.min()} to {values.max()}")
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _floats_to_uint8(values: np.ndarray) -> np.ndarray:
    if not (values.min() >= 0 and values.max() <= 255):
        raise UnreadableImage(f"floats must be in [0, 1] or [0, 255], got {values.min()} to {values.max()}")
    return np.rint(values * 255 if values.max() <= 1 else values).astype(np.uint8)


def _array_to_uint8(array: np.ndarray) -> np.ndarray:
    """(h, w), (h, w, c) or (c, h, w) of any number type -> uint8 (h, w) or (h, w, c) with c in {3, 4}."""
    if array.ndim == 3 and array.shape[-1] not in CHANNEL_MODES and array.shape[0] in CHANNEL_MODES:
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.size == 0 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in CHANNEL_MODES):
        raise UnreadableImage(
            f"an array must be (h, w), (h, w, c) or (c, h, w) with c 1, 3 or 4, got shape {array.shape}"
        )
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if np.issubdtype(array.dtype, np.floating):
        return np.ascontiguousarray(_floats_to_uint8(array))
    if not np.issubdtype(array.dtype, np.integer):
        raise UnreadableImage(f"an array must be of numbers, got {array.dtype}")
    if array.min() < 0 or array.max() > 255:
        return np.ascontiguousarray(_sixteen_bits_to_uint8(array))
    return np.ascontiguousarray(array, dtype=np.uint8)


def native_channels(image: Image.Image) -> int:
    """The number of channels an image needs: 4 if any pixel is transparent, 1 for grey modes, else 3."""
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
        return 4
    return 1 if image.mode in GREY_MODES else 3


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """Any 8-bit image -> mode L, RGB or RGBA (1, 3 or 4 channels).

    Dropping alpha composites on white, which scans and logos assume; otherwise the colour hidden in transparent
    pixels, mostly black, would show. Colour -> grey is ITU-R 601.
    """
    mode = CHANNEL_MODES[channels]
    if image.mode == mode and not (image.has_transparency_data and channels < 4):
        return image
    if channels == 4 or not image.has_transparency_data:
        return image.convert(mode)
    image = image.convert("RGBA")
    page = Image.new("RGBA", image.size, "white")
    page.alpha_composite(image)
    return page.convert(mode)


def to_pixels(image: Image.Image) -> np.ndarray:
    """An 8-bit image -> uint8 pixels (channels, height, width), as many channels as its mode has."""
    return np.ascontiguousarray(np.atleast_3d(np.asarray(image)).transpose(2, 0, 1))


def resize_and_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize to cover (height, width) and crop the centre, in one resampling with sub-pixel borders."""
    height, width = size
    return ImageOps.fit(image, (width, height), RESAMPLING)


def resize_to_cover(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize to just cover (height, width), keeping the longer side up to `LONGEST_SIDE` times the crop."""
    height, width = size
    if image.width * height > image.height * width:
        width = min(max(width, round(image.width * height / image.height)), LONGEST_SIDE * width)
    else:
        height = min(max(height, round(image.height * width / image.width)), LONGEST_SIDE * height)
    return resize_and_crop(image, (height, width))


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """Decodes an image to pixels, deterministically.

    Attributes:
        size: (height, width) in pixels.
        channels: 1, 3 or 4.
        keep_sides: keep the longer side for random crops instead of cropping the centre.
        same_channels: refuse images that need a different number of channels; set when `channels` was deduced.
    """

    size: tuple[int, int]
    channels: int
    keep_sides: bool = False
    same_channels: bool = False

    def __post_init__(self):
        if self.channels not in CHANNEL_MODES:
            raise ValueError(f"`channels` must be one of 1, 3, 4, got {self.channels!r}.")

    def __call__(self, payload: bytes | np.ndarray) -> np.ndarray:
        """Encoded bytes or an array -> uint8 pixels (channels, height, width).

        Raises:
            UnreadableImage: it cannot be decoded.
            ValueError: `same_channels` is set and it needs a different number of channels.
        """
        image = open_image(payload, needed_side=max(self.size))
        if self.same_channels and (found := native_channels(image)) != self.channels:
            raise ValueError(f"it has {found} channels, others have {self.channels}; give `channels` (1, 3 or 4).")
        image = to_channels(image, self.channels)
        return to_pixels((resize_to_cover if self.keep_sides else resize_and_crop)(image, self.size))
