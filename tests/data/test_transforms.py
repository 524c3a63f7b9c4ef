"""Pixels: every mode of Pillow against hand-made values, borders of crops."""

import io

import numpy as np
import pytest
from PIL import Image

from ddpm_hf.data.transforms import (
    Decoder,
    UnreadableImage,
    content_hash,
    native_channels,
    open_image,
    parse_resolution,
    read_payload,
    resize_and_crop,
    resize_to_cover,
    to_channels,
)


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pixels_of(image, channels, size=None, format="PNG", **options):
    decoder = Decoder(size=size or (image.height, image.width), channels=channels)
    return decoder(encoded(image, format, **options))


class TestModes:
    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_black_and_white_survive_every_mode(self, mode, channels):
        corners = {"I;16": 65535, "I": 65535, "F": 255.0}
        grey = Image.fromarray(np.array([[0, 255]], dtype=np.uint8))
        if mode in corners:
            dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
            image = Image.fromarray(np.array([[0, corners[mode]]], dtype=dtype))
        else:
            image = (grey if mode != "CMYK" else grey.convert("RGB")).convert(mode)
        assert image.mode == mode
        got = pixels_of(image, channels, format="TIFF")
        assert got.dtype == np.uint8 and got.shape == (channels, 1, 2)
        assert got[: min(channels, 3)].tolist() == [[[0, 255]]] * min(channels, 3)
        if channels == 4:
            assert got[3].tolist() == [[255, 255]]

    def test_sixteen_bits_are_scaled_over_their_whole_range(self):
        values = np.array([[0, 1, 128, 129, 257, 32768, 65406, 65407, 65535]], dtype=np.uint16)
        got = pixels_of(Image.fromarray(values), 1)
        assert got[0].tolist() == np.rint(values / 257.0).astype(int).tolist()

    @pytest.mark.parametrize("values", [[0.0, 0.5, 1.0], [0.0, 127.5, 255.0]])
    def test_floats_are_of_one_or_of_255(self, values):
        image = Image.fromarray(np.array([values], dtype=np.float32))
        assert pixels_of(image, 1, format="TIFF")[0].tolist() == [[0, 128, 255]]

    @pytest.mark.parametrize("values", [[-0.1, 1], [0, 256], [0, float("nan")]])
    def test_other_floats_are_refused(self, values):
        image = Image.fromarray(np.array([values], dtype=np.float32))
        with pytest.raises(UnreadableImage, match=r"\[0, 1\] or \[0, 255\]"):
            pixels_of(image, 1, format="TIFF")

    def test_other_integers_are_refused(self):
        with pytest.raises(UnreadableImage, match="between 0 and 65535, got"):
            pixels_of(Image.fromarray(np.array([[0, 70_000]], dtype=np.int32)), 1, format="TIFF")

    @pytest.mark.parametrize("channels", [1, 3])
    def test_dropped_alpha_shows_a_white_page(self, channels):
        image = Image.new("RGBA", (3, 1))
        image.putdata([(0, 0, 0, 0), (0, 0, 0, 128), (0, 0, 0, 255)])
        expected = [255, 127, 0]  # white * (1 - alpha) + black * alpha
        for row in pixels_of(image, channels)[:, 0]:
            np.testing.assert_allclose(row, expected, atol=1)

    def test_kept_alpha_is_kept(self):
        image = Image.new("RGBA", (2, 1))
        image.putdata([(10, 20, 30, 40), (50, 60, 70, 255)])
        assert pixels_of(image, 4)[:, 0].T.tolist() == [[10, 20, 30, 40], [50, 60, 70, 255]]

    def test_transparent_palette(self):
        image = Image.new("P", (2, 1))
        image.putpalette([255, 0, 0, 0, 0, 255])
        image.putdata([0, 1])
        assert pixels_of(image, 3, transparency=0)[:, 0].T.tolist() == [[255, 255, 255], [0, 0, 255]]
        assert pixels_of(image, 4, transparency=0)[:, 0].T.tolist() == [[255, 0, 0, 0], [0, 0, 255, 255]]

    def test_transparent_colour_of_an_rgb_png(self):
        image = Image.new("RGB", (2, 1))
        image.putdata([(255, 0, 0), (0, 0, 255)])
        assert pixels_of(image, 3, transparency=(255, 0, 0))[:, 0].T.tolist() == [[255, 255, 255], [0, 0, 255]]

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation(self, orientation):
        upright = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8) * 40
        # How the file stores what should appear upright (EXIF 2.3, tag 274).
        stored = {
            1: upright,
            2: upright[:, ::-1],
            3: upright[::-1, ::-1],
            4: upright[::-1],
            5: upright.T,
            6: np.rot90(upright),
            7: upright[::-1, ::-1].T,
            8: np.rot90(upright, -1),
        }[orientation]
        exif = Image.Exif()
        exif[274] = orientation
        got = open_image(encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif))
        assert np.asarray(got).tolist() == upright.tolist()


class TestNativeChannels:
    @pytest.mark.parametrize(
        "mode, channels", [("1", 1), ("L", 1), ("LA", 1), ("P", 3), ("RGB", 3), ("RGBA", 3), ("CMYK", 3)]
    )
    def test_opaque(self, mode, channels):
        assert native_channels(Image.new("RGB", (2, 2), "white").convert(mode)) == channels

    @pytest.mark.parametrize("mode", ["LA", "RGBA"])
    def test_transparent(self, mode):
        image = Image.new("RGBA", (2, 2), (9, 9, 9, 254)).convert(mode)
        assert native_channels(image) == 4

    def test_deduced_channels_bind(self):
        decoder = Decoder(size=(2, 2), channels=1, same_channels=True)
        assert decoder(encoded(Image.new("L", (2, 2)))).shape == (1, 2, 2)
        with pytest.raises(ValueError, match="3 channels, others have 1; give `channels`"):
            decoder(encoded(Image.new("RGB", (2, 2))))

    @pytest.mark.parametrize("channels", [0, 2, 5])
    def test_impossible_channels(self, channels):
        with pytest.raises(ValueError, match="`channels` must be one of 1, 3, 4"):
            Decoder(size=(2, 2), channels=channels)


class TestSize:
    def test_the_right_size_is_not_resampled(self):
        noise = np.random.default_rng(0).integers(0, 256, (31, 45, 3), dtype=np.uint8)
        assert np.array_equal(pixels_of(Image.fromarray(noise), 3), noise.transpose(2, 0, 1))

    @pytest.mark.parametrize("source", [(48, 32), (31, 45), (1, 1), (3, 1000), (1000, 3), (64, 64)])
    @pytest.mark.parametrize("size", [(16, 16), (48, 32), (31, 45)])
    def test_every_image_fills_the_asked_size(self, source, size):
        image = Image.new("RGB", source[::-1], (10, 200, 30))
        assert (
            pixels_of(image, 3, size=size).tolist()
            == np.broadcast_to(np.array([10, 200, 30])[:, None, None], (3, *size)).tolist()
        )

    def test_centre_of_a_wide_image(self):
        ramp = np.zeros((10, 30), dtype=np.uint8)
        ramp[:, 10:20] = 255
        assert np.asarray(resize_and_crop(Image.fromarray(ramp), (10, 10))).tolist() == [[255] * 10] * 10

    def test_shrinking_is_antialiased(self):
        """A one-pixel chequer is the Nyquist frequency: halved without a filter it turns black or white."""
        chequer = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
        got = np.asarray(resize_and_crop(Image.fromarray(chequer), (16, 16))).astype(int)
        assert np.abs(got - 127.5)[2:-2, 2:-2].max() < 5

    def test_shrinking_is_symmetric(self):
        noise = np.random.default_rng(1).integers(0, 256, (40, 61), dtype=np.uint8)
        there = np.asarray(resize_and_crop(Image.fromarray(noise), (16, 16))).astype(int)
        mirrored = np.asarray(resize_and_crop(Image.fromarray(np.ascontiguousarray(noise[:, ::-1])), (16, 16)))
        assert np.abs(there - mirrored[:, ::-1]).max() <= 1

    @pytest.mark.parametrize(
        "source, size, expected",
        [((20, 40), (10, 10), (10, 20)), ((40, 20), (10, 10), (20, 10)), ((3, 1000), (10, 10), (10, 80))],
    )
    def test_cover_keeps_the_longer_side_up_to_a_limit(self, source, size, expected):
        assert resize_to_cover(Image.new("L", source[::-1]), size).size == expected[::-1]

    def test_large_jpegs_are_shrunk_by_their_decoder_and_look_the_same(self):
        across, down = np.meshgrid(np.linspace(0, 9, 1600), np.linspace(0, 7, 1200))
        smooth = (127.5 + 127 * np.sin(across + down)[..., None] * np.array([1, 0.5, -1])).astype(np.uint8)
        data = encoded(Image.fromarray(smooth), "JPEG", quality=95)
        assert open_image(data).size == (1600, 1200)
        assert open_image(data, needed_side=64).size == (200, 150)
        assert open_image(data, needed_side=200).size == (800, 600)
        assert open_image(encoded(Image.fromarray(smooth)), needed_side=64).size == (1600, 1200)
        quick = Decoder(size=(64, 64), channels=3)(data).astype(int)
        full = np.asarray(resize_and_crop(open_image(data), (64, 64))).transpose(2, 0, 1)
        assert np.abs(quick - full).max() <= 3

    def test_transparent_pixels_do_not_bleed_their_colour(self):
        """Straight alpha resampled as it is would mix the hidden red into the edge; Pillow premultiplies."""
        image = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
        image.paste((0, 0, 255, 255), (0, 0, 32, 64))
        got = pixels_of(image, 4, size=(16, 16)).astype(int)
        seen = got[3] > 8
        assert got[0][seen].max() <= 8 and got[2][seen].min() >= 247

    @pytest.mark.parametrize("given", [64, "64", (64, 64), "64x64", "64X64"])
    def test_square_resolution(self, given):
        assert parse_resolution(given) == (64, 64)

    def test_height_comes_first(self):
        assert parse_resolution("48x32") == parse_resolution((48, 32)) == (48, 32)

    @pytest.mark.parametrize("given", [0, -1, "0", "x", "", "64x", "4x4x4", "64.0", "-3", (3, 0), ()])
    def test_impossible_resolution(self, given):
        with pytest.raises(ValueError, match="`resolution` must be"):
            parse_resolution(given)


class TestPayload:
    def test_bytes_dict_path_and_array_are_the_same_image(self, tmp_path):
        values = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
        data = encoded(Image.fromarray(values))
        (tmp_path / "ünï cöde.png").write_bytes(data)
        cells = [
            data,
            {"bytes": data, "path": "gone.png"},
            {"bytes": None, "path": str(tmp_path / "ünï cöde.png")},
            str(tmp_path / "ünï cöde.png"),
            "ünï cöde.png",
            values.tolist(),
            values,
            values.transpose(2, 0, 1),
        ]
        for cell in cells:
            image = open_image(read_payload(cell, base_dir=tmp_path))
            assert np.array_equal(np.asarray(to_channels(image, 3)), values)

    @pytest.mark.parametrize("cell", [None, {"bytes": None, "path": None}, "no/such/file.png", [[1, 2], [3]], "\0"])
    def test_nothing_there(self, cell):
        with pytest.raises(UnreadableImage):
            read_payload(cell)

    @pytest.mark.parametrize("shape", [(4,), (0, 4), (5, 5, 2), (2, 5, 5), (1, 4, 4, 3)])
    def test_impossible_arrays(self, shape):
        with pytest.raises(UnreadableImage, match="an array must be .* got shape"):
            open_image(np.zeros(shape, dtype=np.uint8))

    def test_arrays_of_other_types(self):
        assert np.asarray(open_image(np.array([[True, False]]))).tolist() == [[255, 0]]
        assert np.asarray(open_image(np.array([[0.0, 1.0]]))).tolist() == [[0, 255]]
        assert np.asarray(open_image(np.array([[0, 65535]]))).tolist() == [[0, 255]]
        with pytest.raises(UnreadableImage, match="an array must be of numbers, got"):
            open_image(np.array([["a", "b"]]))

    def test_hash_is_blake2b_of_the_bytes(self):
        """Recorded hold-outs depend on it; the number is that of coreutils: printf abc | b2sum -l 64."""
        assert content_hash(b"abc").to_bytes(8, "little").hex() == "d8bb14d833d59559"

    def test_hash_of_an_array_is_of_its_type_shape_and_values(self):
        values = np.arange(6, dtype=np.uint8).reshape(2, 3)
        assert content_hash(values) == content_hash(np.asfortranarray(values)) == content_hash(values[::-1][::-1])
        others = [values.tobytes(), values.reshape(3, 2), values.view(np.int8), values.ravel(), values[::-1]]
        assert len({content_hash(each) for each in [values, *others]}) == 6


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
class TestDamage:
    def test_every_damaged_file_is_called_unreadable(self):
        noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        for format in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
            whole = encoded(Image.fromarray(noise), format)
            for cut in (1, 4, 10, 30, len(whole) // 2):
                with pytest.raises(UnreadableImage):
                    open_image(whole[:cut])

    @pytest.mark.parametrize(
        "data", [b"", b"\0" * 1000, b"hello, I am text", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"%PDF-1.4\n"]
    )
    def test_no_image(self, data):
        with pytest.raises(UnreadableImage):
            open_image(data)

    def test_flipped_bits_never_raise_anything_else(self):
        rng = np.random.default_rng(0)
        noise = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        for format in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA", "PCX"):
            whole = np.frombuffer(encoded(Image.fromarray(noise), format), dtype=np.uint8)
            for _ in range(60):
                damaged = whole.copy()
                damaged[rng.integers(0, len(whole), 3)] ^= rng.integers(1, 256, 3, dtype=np.uint8)
                try:
                    Decoder(size=(8, 8), channels=3)(damaged.tobytes())
                except UnreadableImage:
                    pass

    def test_pillows_limit_on_pixels_is_kept(self, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(UnreadableImage, match="DecompressionBomb"):
            open_image(encoded(Image.new("L", (30, 30))))
