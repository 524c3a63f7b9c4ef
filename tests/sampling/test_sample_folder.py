"""The folder of a sampling command: what counts as drawn, whom it lets in, and what images are handed over as."""

import csv
import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from ddpm_hf.sampling.sample_folder import SampleFolder
from ddpm_hf.sampling.sample_formats import read_pixels, write_dataset, write_npz

SETTINGS = {"seed": 0, "scheduler": {"class": "DDIMScheduler", "clip_sample": True}}
NAMES = {0: "cat", 1: "dog", 2: "eel"}


def named(labels: list[int]) -> dict[str, list]:
    return {"label": labels, "class_name": [NAMES[label] for label in labels]}


def some_images(count: int, channels: int = 3, size: tuple[int, int] = (6, 5)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *size, channels), dtype=np.uint8)


def folder_at(path, output_format="png", num_images=5, **more) -> SampleFolder:
    return SampleFolder(path=path, output_format=output_format, num_images=num_images, **more)


def filled(path, images, **more) -> SampleFolder:
    folder = folder_at(path, num_images=len(images), **more)
    folder.open(SETTINGS)
    folder.write(range(len(images)), images)
    folder.finish()
    folder.close()
    return folder


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_format_holds_the_same_pixels(tmp_path, channels):
    import datasets

    images = some_images(5, channels)
    labels = [0, 1, 2, 0, 1]
    more = {"table": named(labels), "class_names": NAMES}
    png = filled(tmp_path / "png", images, **more)
    assert all(np.array_equal(read_pixels(file), image) for file, image in zip(png.files, images, strict=True))
    with (tmp_path / "png" / "metadata.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert rows[3] == {"file_name": "00003.png", "label": "0", "class_name": "cat"} and len(rows) == 5

    npz = filled(tmp_path / "npz", images, output_format="npz", **more)
    with np.load(npz.product, allow_pickle=False) as arrays:
        assert arrays.files == ["arr_0", "arr_1"]
        assert arrays["arr_0"].dtype == np.uint8 and np.array_equal(arrays["arr_0"], images)
        assert arrays["arr_1"].dtype == np.int64 and arrays["arr_1"].tolist() == labels

    parquet = filled(tmp_path / "dataset", images, output_format="dataset", **more)
    data = datasets.load_dataset(str(parquet.path), split="train")
    assert data.features["label"].names == ["cat", "dog", "eel"] and data["label"] == labels
    assert all(np.array_equal(np.atleast_3d(row["image"]), image) for row, image in zip(data, images, strict=True))
    for folder in (npz, parquet):
        assert not (folder.path / "drawn").exists() and (folder.path / "overview" / "grid.png").is_file()


def test_the_folder_of_png_files_is_an_image_folder_without_its_overview(tmp_path):
    import datasets

    folder = filled(tmp_path / "png", some_images(5), table=named([2, 1, 0, 2, 1]), class_names=NAMES)
    data = datasets.load_dataset("imagefolder", data_dir=str(folder.path), split="train")
    assert len(data) == 5 and data["label"] == [2, 1, 0, 2, 1]
    pairs = zip(data["image"], some_images(5), strict=True)
    assert all(np.array_equal(np.asarray(found), image) for found, image in pairs)
    unlabelled = filled(tmp_path / "plain", some_images(3))
    data = datasets.load_dataset("imagefolder", data_dir=str(unlabelled.path), split="train")
    assert len(data) == 3 and data.column_names == ["image"]


def test_classes_without_names_of_their_own_are_numbers(tmp_path):
    import datasets

    for names in (None, {0: "cat", 1: "cat", 2: "eel"}):
        path = tmp_path / str(names is None)
        filled(path, some_images(3), output_format="dataset", table={"label": [2, 0, 1]}, class_names=names)
        data = datasets.load_dataset(str(path), split="train")
        assert data.features["label"] == datasets.Value("int64") and data["label"] == [2, 0, 1]


def test_a_large_npz_takes_little_memory(tmp_path):
    file, image = tmp_path / "one.png", some_images(1, size=(96, 80))[0]
    Image.fromarray(image).save(file)
    tracemalloc.start()
    try:
        write_npz(tmp_path / "many.npz", [file] * 500, list(range(500)))
        assert tracemalloc.get_traced_memory()[1] < 1e6, "11.5 MB went through"
    finally:
        tracemalloc.stop()
    with np.load(tmp_path / "many.npz", allow_pickle=False) as arrays:
        assert arrays["arr_0"].shape == (500, 96, 80, 3) and (arrays["arr_0"][[0, 270, -1]] == image).all()
        assert arrays["arr_1"].tolist() == list(range(500))


def test_a_large_data_set_has_several_files(tmp_path):
    import datasets

    file, labels = tmp_path / "one.png", list(range(10_050))
    Image.fromarray(some_images(1)[0]).save(file)
    (tmp_path / "set").mkdir()
    write_dataset(tmp_path / "set" / "data", [file] * len(labels), {"label": labels}, None)
    names = sorted(path.name for path in (tmp_path / "set" / "data").iterdir())
    assert names == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    assert list(datasets.load_dataset(str(tmp_path / "set"), split="train")["label"]) == labels


def test_only_whole_images_count_as_drawn(tmp_path):
    folder = folder_at(tmp_path / "out", output_format="npz")
    assert folder.open(SETTINGS) == [0, 1, 2, 3, 4]
    folder.write([3, 1], some_images(2))
    half = folder.files[2].with_name(".00002.png.123.partial")
    half.write_bytes(folder.files[1].read_bytes()[:40])
    folder.close()
    again = folder_at(tmp_path / "out", output_format="npz")
    assert again.open(SETTINGS) == [0, 2, 4] and not half.exists()
    again.write([0, 2, 4], some_images(3))
    leftover = tmp_path / "out" / ".samples.npz.123.partial"  # of a command that was killed while it wrote the .npz
    leftover.write_bytes(b"PK")
    again.close()
    assert again.open(SETTINGS) == [] and not leftover.exists() and not again.product.exists()
    again.finish()
    again.close()
    finished = folder_at(tmp_path / "out", output_format="npz")
    assert finished.open(SETTINGS) == [] and finished.finish().is_file()
    finished.close()


def test_more_images_of_the_same_settings_join_those_that_are_there(tmp_path):
    filled(tmp_path / "png", some_images(3))
    more = folder_at(tmp_path / "png", num_images=5)
    assert more.open(SETTINGS) == [3, 4]
    more.write([3, 4], some_images(2))
    more.finish()
    more.close()
    assert (tmp_path / "png" / "metadata.csv").read_text().splitlines()[1:] == [f"0000{k}.png" for k in range(5)]
    with pytest.raises(ValueError, match="num_images was 5, is 4"):
        folder_at(tmp_path / "png", num_images=4).check(SETTINGS)
    filled(tmp_path / "npz", some_images(3), output_format="npz")
    with pytest.raises(ValueError, match="num_images was 3, is 5"):
        folder_at(tmp_path / "npz", output_format="npz").check(SETTINGS)


def test_numbers_beyond_five_digits_are_whole(tmp_path):
    folder = folder_at(tmp_path, num_images=2)
    folder.open(SETTINGS)
    folder.write([99_999, 100_001], some_images(2))
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["100001.png", "99999.png"]
    folder.close()


def test_another_configuration_is_refused_with_its_differences(tmp_path):
    filled(tmp_path / "out", some_images(5))
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    other = {"seed": 1, "scheduler": {"class": "DDIMScheduler", "clip_sample": False, "order": 2}}
    differences = "clip_sample was True, is False; order was None, is 2; seed was 0, is 1"
    with pytest.raises(ValueError, match=f"images drawn with other settings .{differences}.; choose another folder"):
        folder_at(tmp_path / "out").check(other)
    with pytest.raises(ValueError, match="output_format was png, is npz"):
        folder_at(tmp_path / "out", output_format="npz").open(SETTINGS)
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def test_other_peoples_folders_are_refused(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("all of it")
    with pytest.raises(ValueError, match="work must be new, empty or a folder of sample.py, but has thesis.tex"):
        folder_at(tmp_path / "work").open(SETTINGS)
    with pytest.raises(ValueError, match="thesis.tex must be a folder, but is a file"):
        folder_at(tmp_path / "work" / "thesis.tex").open(SETTINGS)
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["thesis.tex"]
    (tmp_path / "pictures" / "overview").mkdir(parents=True)  # where an interpolation was drawn
    assert folder_at(tmp_path / "pictures").open(SETTINGS) == [0, 1, 2, 3, 4]


def test_one_command_at_a_time(tmp_path):
    (tmp_path / "out").mkdir()
    code = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('has it'); input()"
    command = [sys.executable, "-c", code, str(tmp_path / "out" / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "has it\n"
        with pytest.raises(ValueError, match="out is in use by another command; wait for it"):
            folder_at(tmp_path / "out").open(SETTINGS)
        other.communicate("\n")
    folder = folder_at(tmp_path / "out")
    assert folder.open(SETTINGS) == [0, 1, 2, 3, 4]
    folder.close()
    FileLock(tmp_path / "out" / ".lock", timeout=0).acquire().lock.release()


def test_the_record_says_how_the_images_came_about(tmp_path):
    folder = folder_at(tmp_path / "out", num_images=2)
    folder.open(SETTINGS, pipeline="user/model")
    folder.close()
    record = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert record == {
        "pipeline": "user/model",
        "num_images": 2,
        "settings": {"output_format": "png", **SETTINGS},
    }
