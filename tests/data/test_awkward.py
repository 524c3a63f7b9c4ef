"""A folder of awkward files: each is either used rightly or named."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ddpm_hf.data.sources import load_images
from ddpm_hf.data.store import PixelStore

# A colour that palettes, JPEG and CMYK keep nearly, and its grey by ITU-R 601 (0.299 R + 0.587 G + 0.114 B).
COLOUR = (204, 102, 51)
GREY = round(0.299 * 204 + 0.587 * 102 + 0.114 * 51)


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def plain(size=(9, 9), mode="RGB"):
    return Image.new("RGB", size, COLOUR).convert(mode)


def grey(dtype, value, size=(9, 9)):
    return Image.fromarray(np.full(size, value, dtype=dtype))


def oriented(orientation):
    """Left half in colour, right half black once upright; stored as the EXIF tag says."""
    upright = np.zeros((12, 12, 3), dtype=np.uint8)
    upright[:, :6] = COLOUR
    stored = {3: upright[::-1, ::-1], 6: np.rot90(upright), 8: np.rot90(upright, -1)}[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    return Image.fromarray(np.ascontiguousarray(stored)), {"exif": exif}


def bomb():
    """A PNG of a few bytes that claims 60,000 x 60,000 pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 100))]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def write_good(folder):
    """File name -> the colour it must show (None: looked at elsewhere)."""
    good = {}

    def add(name, image, colour=COLOUR, **options):
        save(folder / name, image, **options)
        good[name] = colour

    for suffix in "png bmp gif tif tiff ppm tga ico qoi pcx jp2 webp jpg jpeg jfif dib".split():
        add(f"format.{suffix}", plain((16, 16)), **({"lossless": True} if suffix == "webp" else {}))
    for mode in ("1", "L", "LA"):
        add(f"mode {mode}.png", plain(mode="L").convert(mode), None if mode == "1" else (GREY,) * 3)
    add("mode P.png", plain(mode="P"), None)
    add("palette.png", plain().quantize(4))
    add("mode RGBA.png", plain(mode="RGBA"))
    add("mode CMYK.jpg", plain(mode="CMYK"))
    add("mode CMYK.tif", plain(mode="CMYK"))
    add("mode YCbCr.jpg", plain(mode="YCbCr"))
    add("mode I16.png", grey(np.uint16, 32896), (128,) * 3)
    add("mode I16.tif", grey(np.uint16, 32896), (128,) * 3)
    add("mode I.tif", grey(np.int32, 32896), (128,) * 3)
    add("mode F.tif", grey(np.float32, 0.5), (128,) * 3)
    add("mode F of 255.tif", grey(np.float32, 127.5), (128,) * 3)
    add("transparent.png", Image.new("RGBA", (9, 9), (0, 0, 0, 0)), (255,) * 3)
    add("transparent.gif", Image.new("P", (9, 9), 0), (255,) * 3, transparency=0)
    add("transparent grey.png", Image.new("LA", (9, 9), (0, 0)), (255,) * 3)
    add("transparent colour.png", plain(), (255,) * 3, transparency=COLOUR)
    for orientation in (3, 6, 8):
        image, options = oriented(orientation)
        add(f"exif {orientation}.png", image, None, **options)
    add("progressive.jpg", plain((64, 64)), progressive=True)
    add("animated.gif", plain(), save_all=True, append_images=[Image.new("RGB", (9, 9))])
    add("animated.png", plain(), save_all=True, append_images=[Image.new("RGB", (9, 9))])
    add("pages.tif", plain(), save_all=True, append_images=[Image.new("RGB", (9, 9))])
    for size in ((1, 1), (10_000, 3), (3, 10_000), (48, 32), (31, 45), (2000, 2000)):
        add(f"size {size[0]}x{size[1]}.png", plain(size))
    names = [
        "ünïcödé 日本語.png",
        "emoji 🙂.png",
        "new\nline.png",
        "100%.png",
        "a#b?c&d.png",
        "[x]{y}*.png",
        "-rf.png",
    ]
    for name in [
        *names,
        "UPPER.PNG",
        "two.dots.png",
        "x" * 200 + ".png",
        "one/same.png",
        "two/same.png",
        "a/b/c/d/e.png",
    ]:
        add(name, plain())
    save(folder / "a jpeg.png", plain((16, 16)), format="JPEG")
    good["a jpeg.png"] = COLOUR
    (folder / "link.png").symlink_to(folder / "format.png")
    good["link.png"] = COLOUR
    (folder / "one" / "loop").symlink_to(folder)
    return good


def write_bad(folder):
    """File name -> a word of the reason that must be given."""
    bad = {
        "text.png": b"I am text",
        "page.jpg": b"<!doctype html><html><body>404</body></html>",
        "drawing.png": b"<svg xmlns='http://www.w3.org/2000/svg'></svg>",
        "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
        "paper.jpg": b"%PDF-1.7\n",
        "archive.png": b"PK\x03\x04",
        "zeros.png": bytes(1000),
        "signature.png": b"\x89PNG\r\n\x1a\n",
    }
    reasons = dict.fromkeys(bad, "not an image") | {"empty.png": "no bytes", "bomb.png": "DecompressionBomb"}
    bad |= {"empty.png": b"", "bomb.png": bomb()}
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    for suffix in "png jpg gif bmp tif ppm webp qoi pcx jp2".split():
        save(folder / f"cut.{suffix}", noise)
        whole = (folder / f"cut.{suffix}").read_bytes()
        bad[f"cut.{suffix}"] = whole[: len(whole) // 2]
        reasons[f"cut.{suffix}"] = ""
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    save(folder / "nan.tif", grey(np.float32, np.nan))
    save(folder / "negative.tif", grey(np.int32, -1))
    reasons |= {"nan.tif": "must be in [0, 1] or [0, 255]", "negative.tif": "must be between 0 and 65535"}
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    return reasons | {"dangling.png": "cannot be read"}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_each_is_used_rightly_or_named(tmp_path):
    good, bad = write_good(tmp_path / "my images"), write_bad(tmp_path / "my images")
    assert len(good) + len(bad) >= 60
    data = load_images(train_data_dir=tmp_path / "my images")
    store = PixelStore.build(data, (8, 8), 3, skip_unreadable=True, progress=False)

    cells = [row.value["path"] for rows in data.batches() for row in rows]
    files = [os.path.relpath(path, tmp_path / "my images") for path in cells]
    used = dict(zip((files[row] for row in store.rows), store.gather(np.arange(len(store))), strict=True))
    assert set(used) == set(good)
    for name, colour in good.items():
        if colour is not None:
            np.testing.assert_allclose(used[name].reshape(3, -1).T, [colour] * 64, atol=4, err_msg=name)
    for orientation in (3, 6, 8):
        image = used[f"exif {orientation}.png"]
        np.testing.assert_allclose(image[:, :, 0].T, [COLOUR] * 8, atol=12)
        assert image[:, :, 7].max() <= 12

    assert len(store.unreadable) == len(bad)
    for name, reason in bad.items():
        (line,) = [line for line in store.unreadable if f"/{name})" in line]
        assert reason in line.partition("): ")[2], line


@pytest.mark.parametrize("random_crop", [False, True])
def test_strips_stay_small_in_the_store(tmp_path, random_crop):
    save(tmp_path / "i" / "strip.png", plain((10_000, 3)))
    data = load_images(train_data_dir=tmp_path / "i")
    store = PixelStore.build(data, (32, 32), random_crop=random_crop, progress=False)
    assert (store.folder / "pixels.u8").stat().st_size <= 8 * 32 * 32 * 3


def test_a_name_that_is_no_text(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    try:
        with open(path, "wb") as file:
            plain().save(file, "PNG")
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    with pytest.raises(ValueError, match=r"`train_data_dir` has a file name that is not UTF-8: .*caf\\udce9.png'"):
        load_images(train_data_dir=tmp_path)


def test_a_column_may_mix_bytes_and_paths(tmp_path):
    import datasets
    from pictures import parquet

    save(tmp_path / "there.png", plain())
    file = io.BytesIO()
    plain().save(file, "PNG")
    cells = [{"bytes": file.getvalue(), "path": "gone.png"}, {"bytes": None, "path": str(tmp_path / "there.png")}]
    path = parquet(tmp_path / "t" / "x.parquet", {"image": cells}, {"image": datasets.Image()})
    data = load_images(train_data_dir=path, cache_dir=tmp_path / "c")
    images = PixelStore.build(data, (9, 9), progress=False).gather(np.arange(2))
    assert (images == np.array(COLOUR)[:, None, None]).all()
