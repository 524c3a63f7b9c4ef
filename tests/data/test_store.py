"""Decoded once: the same pixels as decoding each time, a cache that survives what may happen to it."""

import json
import multiprocessing
import pickle
import resource

import datasets
import numpy as np
import pytest
from pictures import noise, parquet, png, write_png

from ddpm_hf.data.decoding import deduce_channels
from ddpm_hf.data.sources import load_images
from ddpm_hf.data.store import PixelStore
from ddpm_hf.data.transforms import Decoder
from ddpm_hf.files import partial_path


def folder_of(tmp_path, pictures):
    for name, pixels in pictures.items():
        write_png(tmp_path / "images" / name, pixels)
    return load_images(train_data_dir=tmp_path / "images")


def decoded_by_hand(data, decoder):
    return [decoder(data.payload(row)) for rows in data.batches() for row in rows]


def stores(cache):
    return sorted(path.name for path in (cache / "ddpm_hf").iterdir() if not path.name.endswith(".lock"))


class TestPixels:
    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_equal_to_decoding_each_time(self, tmp_path, channels):
        data = folder_of(tmp_path, {f"{i:03d}.png": noise(i, size=(9 + i % 5, 12)) for i in range(600)})
        store = PixelStore.build(data, (8, 10), channels, progress=False)
        expected = decoded_by_hand(data, Decoder(size=(8, 10), channels=channels))
        assert store.shape == (channels, 8, 10) and len(store) == 600
        assert np.array_equal(store.gather(np.arange(600)), expected)
        chosen = np.array([599, 0, 7, 7])
        assert np.array_equal(store.gather(chosen), np.stack(expected)[chosen])
        assert store.rows.tolist() == list(range(600)) and store.extra == {}

    def test_labels_and_names(self, tmp_path):
        folder_of(tmp_path, {"dog/1.png": noise(1), "cat/1.png": noise(2)})
        data = load_images(train_data_dir=tmp_path / "images", class_conditional=True)
        store = PixelStore.build(data, (8, 8), progress=False)
        assert store.extra["class_labels"].tolist() == [0, 1] and data.class_names == ("cat", "dog")

    def test_what_is_gathered_may_be_changed(self, tmp_path):
        store = PixelStore.build(folder_of(tmp_path, {"1.png": noise(1)}), (8, 8), progress=False)
        store.gather(np.array([0]))[:] = 0
        assert store.gather(np.array([0])).any()

    def test_equal_files_have_equal_hashes(self, tmp_path):
        data = folder_of(tmp_path, {"1.png": noise(1), "2.png": noise(2), "3.png": noise(1)})
        hashes = PixelStore.build(data, (8, 8), progress=False).hashes
        assert hashes[0] == hashes[2] != hashes[1]


class TestRandomCrop:
    def test_crops_are_pieces_of_what_covers(self, tmp_path):
        pictures = {"1.png": noise(1, (8, 20)), "2.png": noise(2, (30, 8)), "3.png": noise(3, (8, 8))}
        data = folder_of(tmp_path, pictures)
        store = PixelStore.build(data, (8, 8), random_crop=True, progress=False)
        assert store.shape == (3, 8, 8)
        wholes = decoded_by_hand(data, Decoder(size=(8, 8), channels=3, keep_sides=True))
        assert [whole.shape[1:] for whole in wholes] == [(8, 20), (30, 8), (8, 8)]
        for index, whole in enumerate(wholes):
            pieces = {
                whole[:, top : top + 8, left : left + 8].tobytes()
                for top in range(whole.shape[1] - 7)
                for left in range(whole.shape[2] - 7)
            }
            bits = np.random.default_rng(0).integers(0, 2**64, 400, dtype=np.uint64)
            crops = store.gather(np.full(400, index), bits)
            assert {crop.tobytes() for crop in crops} == pieces

    def test_without_bits_the_centre(self, tmp_path):
        data = folder_of(tmp_path, {"1.png": noise(1, (8, 20))})
        store = PixelStore.build(data, (8, 8), random_crop=True, progress=False)
        assert np.array_equal(store.gather(np.array([0]))[0], noise(1, (8, 20)).transpose(2, 0, 1)[:, :, 6:14])

    def test_images_of_the_right_shape_need_no_room(self, tmp_path):
        data = folder_of(tmp_path, {"1.png": noise(1, (16, 16))})
        store = PixelStore.build(data, (8, 8), random_crop=True, progress=False)
        one, other = (store.gather(np.array([0]), np.array([bits], np.uint64)) for bits in (0, 2**64 - 1))
        assert np.array_equal(one, other)


class TestChannels:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_deduced(self, tmp_path, channels):
        data = folder_of(tmp_path, {f"{i}.png": noise(i, channels=channels) for i in range(5)})
        assert PixelStore.build(data, (8, 8), progress=False).channels == deduce_channels(data) == channels

    def test_alpha_counts_where_it_shows(self, tmp_path):
        opaque = noise(0, channels=4)
        opaque[..., 3] = 255
        assert deduce_channels(folder_of(tmp_path / "a", {"1.png": opaque})) == 3
        assert deduce_channels(folder_of(tmp_path / "b", {"1.png": noise(0, channels=4)})) == 4

    def test_mixed_needs_a_choice(self, tmp_path):
        data = folder_of(tmp_path, {"1.png": noise(1), "2.png": noise(2, channels=1)})
        with pytest.raises(
            ValueError, match=r"`channels` must be given .* images differ: 1 in row 1 \(.*2.png\); 3 in row 0 \("
        ):
            PixelStore.build(data, (8, 8), progress=False)
        assert PixelStore.build(data, (8, 8), 3, progress=False).channels == 3

    def test_an_exception_among_many_is_found(self, tmp_path, own_cache):
        pictures = {f"{i:04d}.png": noise(i, (2, 2)) for i in range(300)}
        pictures["0001.png"] = noise(0, (2, 2), channels=1)
        data = folder_of(tmp_path, pictures)
        assert deduce_channels(data) == 3
        with pytest.raises(ValueError, match="row 1 .*0001.png.*has 1 channels, others have 3; give `channels`"):
            PixelStore.build(data, (2, 2), progress=False)
        assert stores(own_cache) == []


class TestCache:
    def test_a_second_call_decodes_nothing(self, tmp_path, monkeypatch):
        data = folder_of(tmp_path, {"1.png": noise(1)})
        first = PixelStore.build(data, (8, 8), progress=False)
        monkeypatch.setattr(Decoder, "__call__", None)
        monkeypatch.setattr("ddpm_hf.data.decoding.deduce_channels", None)
        second = PixelStore.build(data, (8, 8), progress=False)
        assert np.array_equal(second.gather(np.array([0])), first.gather(np.array([0])))

    def test_other_parameters_are_other_stores(self, tmp_path, own_cache):
        data = folder_of(tmp_path, {"cat/1.png": noise(1, (8, 12)), "dog/1.png": noise(2)})
        labelled = load_images(train_data_dir=tmp_path / "images", class_conditional=True)
        for _ in range(2):
            PixelStore.build(data, (8, 8), 3, progress=False)
            PixelStore.build(data, (4, 4), 3, progress=False)
            PixelStore.build(data, (8, 8), 1, progress=False)
            PixelStore.build(data, (8, 8), 3, random_crop=True, progress=False)
            PixelStore.build(labelled, (8, 8), 3, progress=False)
        assert len(stores(own_cache)) == 5

    def test_other_columns_are_other_stores(self, tmp_path):
        cells = {"left": [png(noise(1))], "right": [png(noise(2))], "a": ["x"], "b": ["x"]}
        path = parquet(tmp_path / "x.parquet", cells)
        for column, label in (("left", None), ("right", None), ("right", "a"), ("right", "b")):
            columns = {"image_column": column, "label_column": label}
            data = load_images(train_data_dir=path, cache_dir=tmp_path / "c", **columns)
            store = PixelStore.build(data, (8, 8), cache_dir=tmp_path / "c", progress=False)
            assert np.array_equal(store.gather(np.array([0]))[0], noise(1 + (column == "right")).transpose(2, 0, 1))
        assert len(stores(tmp_path / "c")) == 4

    def test_deduced_channels_serve_who_asks_for_them(self, tmp_path, own_cache):
        data = folder_of(tmp_path, {"1.png": noise(1)})
        for channels, shape, count in ((None, (3, 8, 8), 1), (3, (3, 8, 8), 1), (1, (1, 8, 8), 2)):
            assert PixelStore.build(data, (8, 8), channels, progress=False).shape == shape
            assert len(stores(own_cache)) == count

    def test_square_images_kept_for_random_crops_serve_who_asks_for_the_centre(self, tmp_path, own_cache):
        """As evaluate.py does, right after training."""
        for side, count in ((8, 1), (12, 3)):
            data = folder_of(tmp_path / str(side), {"1.png": noise(1, (8, side))})
            for channels, random_crop in ((None, True), (3, False)):
                store = PixelStore.build(data, (4, 4), channels, random_crop=random_crop, progress=False)
            assert store.is_uniform and len(stores(own_cache)) == count

    def test_a_changed_file_is_decoded_again(self, tmp_path):
        first = PixelStore.build(folder_of(tmp_path, {"1.png": noise(1)}), (8, 8), progress=False)
        second = PixelStore.build(folder_of(tmp_path, {"1.png": noise(2)}), (8, 8), progress=False)
        assert not np.array_equal(first.gather(np.array([0])), second.gather(np.array([0])))

    def test_cache_dir(self, tmp_path, own_cache):
        data = folder_of(tmp_path, {"1.png": noise(1)})
        PixelStore.build(data, (8, 8), cache_dir=tmp_path / "elsewhere", progress=False)
        assert len(stores(tmp_path / "elsewhere")) == 1 and not (own_cache / "ddpm_hf").exists()

    def test_an_interrupted_store_is_cleaned_and_made_anew(self, tmp_path, own_cache):
        data = folder_of(tmp_path, {"1.png": noise(1)})
        PixelStore.build(data, (8, 8), progress=False)
        folder = own_cache / "ddpm_hf" / stores(own_cache)[0]
        folder.rename(partial_path(folder))  # what a killed process leaves: everything, but under another name
        (partial_path(folder) / "pixels.u8").write_bytes(b"half")
        store = PixelStore.build(data, (8, 8), progress=False)
        assert stores(own_cache) == [folder.name]
        assert np.array_equal(store.gather(np.array([0]))[0], noise(1).transpose(2, 0, 1))

    def test_a_failure_leaves_nothing(self, tmp_path, own_cache, monkeypatch):
        data = folder_of(tmp_path, {"1.png": noise(1)})

        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(Decoder, "__call__", interrupt)
        with pytest.raises(KeyboardInterrupt):
            PixelStore.build(data, (8, 8), 3, progress=False)
        assert stores(own_cache) == []

    def test_a_cache_that_cannot_be_written(self, tmp_path):
        data = folder_of(tmp_path, {"1.png": noise(1)})
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(ValueError, match=r"`cache_dir` must be writable, got .*file/ddpm_hf'"):
            PixelStore.build(data, (8, 8), cache_dir=tmp_path / "file", progress=False)

    @pytest.mark.processes
    def test_a_full_disk_is_said_and_leaves_nothing(self, tmp_path, own_cache):
        folder_of(tmp_path, {f"{i}.png": noise(i, (64, 64)) for i in range(8)})
        with multiprocessing.get_context("fork").Pool(1) as pool:
            message = pool.apply(_build_within, (50_000, tmp_path / "images", own_cache))
        assert "`cache_dir` must be writable" in message and "File too large" in message
        assert stores(own_cache) == []

    def test_it_travels_to_other_processes_without_its_pixels(self, tmp_path):
        data = folder_of(tmp_path, {f"{i}.png": noise(i, (64, 64)) for i in range(8)})
        store = PixelStore.build(data, (64, 64), progress=False)
        expected = store.gather(np.arange(8))
        sent = pickle.dumps(store)
        assert len(sent) < 2000
        assert np.array_equal(pickle.loads(sent).gather(np.arange(8)), expected)

    @pytest.mark.processes
    def test_several_processes_at_once(self, tmp_path, own_cache):
        folder_of(tmp_path, {f"{i:03d}.png": noise(i) for i in range(100)})
        with multiprocessing.get_context("fork").Pool(2) as pool:
            sums = pool.starmap(_sum_of_pixels, [(tmp_path / "images", own_cache)] * 4)
        assert len(set(sums)) == 1 and len(stores(own_cache)) == 1


def _sum_of_pixels(folder, cache):
    store = PixelStore.build(load_images(train_data_dir=folder), (8, 8), cache_dir=cache, progress=False)
    return int(store.gather(np.arange(len(store))).sum())


def _build_within(limit, folder, cache):
    """The error of building a store when no file may grow beyond `limit` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with pytest.raises(ValueError) as raised:
        PixelStore.build(load_images(train_data_dir=folder), (64, 64), cache_dir=cache, progress=False)
    return str(raised.value)


class TestUnreadable:
    @pytest.fixture
    def data(self, tmp_path):
        folder_of(tmp_path, {f"{i}.png": noise(i) for i in range(6)})
        (tmp_path / "images" / "2.png").write_text("I am text")
        (tmp_path / "images" / "4.png").write_bytes(b"")
        return load_images(train_data_dir=tmp_path / "images")

    def test_the_first_is_named(self, data, own_cache):
        with pytest.raises(ValueError, match=r"row 2 \(.*2.png\): not an image .*; `skip_unreadable` leaves"):
            PixelStore.build(data, (8, 8), 3, progress=False)
        assert stores(own_cache) == []

    def test_skipped_and_listed(self, data):
        store = PixelStore.build(data, (8, 8), skip_unreadable=True, progress=False)
        assert store.rows.tolist() == [0, 1, 3, 5]
        assert [line.split(" ")[1] for line in store.unreadable] == ["2", "4"]
        assert "4.png" in store.unreadable[1] and "no bytes" in store.unreadable[1]
        with pytest.raises(ValueError, match="row 2 .*; `skip_unreadable` leaves"):
            PixelStore.build(data, (8, 8), progress=False)

    def test_nothing_readable(self, tmp_path):
        path = parquet(tmp_path / "x.parquet", {"image": [b"no", b"image"]})
        data = load_images(train_data_dir=path, image_column="image", cache_dir=tmp_path / "c")
        for channels in (None, 3):
            with pytest.raises(ValueError, match="has no readable image; row [01]: not an image"):
                PixelStore.build(data, (8, 8), channels, skip_unreadable=True, progress=False)

    def test_rows_of_bytes_are_named_by_number_and_kept_path(self, tmp_path):
        features = {"image": datasets.Image(), "n": datasets.Value("int64")}
        cells = [{"bytes": png(noise(0)), "path": "good.png"}, {"bytes": b"bad", "path": "bad.png"}]
        path = parquet(tmp_path / "x.parquet", {"image": cells, "n": [0, 1]}, features)
        data = load_images(train_data_dir=path, cache_dir=tmp_path / "c")
        with pytest.raises(ValueError, match=r"row 1 \(bad.png\): not an image"):
            PixelStore.build(data, (8, 8), 3, progress=False)


def test_what_is_written_is_plain(tmp_path, own_cache):
    PixelStore.build(folder_of(tmp_path, {"1.png": noise(1)}), (8, 8), progress=False)
    folder = own_cache / "ddpm_hf" / stores(own_cache)[0]
    assert sorted(file.name for file in folder.iterdir()) == [
        "hashes.npy",
        "pixels.u8",
        "rows.npy",
        "sides.npy",
        "store.json",
    ]
    assert (folder / "pixels.u8").read_bytes() == noise(1).transpose(2, 0, 1).tobytes()
    assert json.loads((folder / "store.json").read_text())["size"] == [8, 8]
