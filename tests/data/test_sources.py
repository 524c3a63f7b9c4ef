"""The user's words: every kind of source, found columns, and one line for what is wrong."""

import io
import tarfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import noise, parquet, png, write_png
from PIL import Image

from ddpm_hf.data.sources import DIGITS, load_images
from ddpm_hf.data.transforms import open_image


def images_of(data):
    return [np.asarray(open_image(data.payload(row))) for rows in data.batches(batch_size=3) for row in rows]


def labels_of(data):
    return [row.extra["class_labels"] for rows in data.batches(batch_size=3) for row in rows]


def same(got, expected):
    return len(got) == len(expected) and all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


class TestDigits:
    def test_they_are_the_default(self, tmp_path):
        data = load_images(class_conditional=True, cache_dir=tmp_path)
        assert (data.num_rows, data.image_column, data.columns["class_labels"].name) == (5000, "image", "label")
        assert data.class_names == tuple("0123456789")
        labels = labels_of(data)
        assert np.bincount(labels).tolist() == [500] * 10
        first = images_of(data)[0]
        assert first.shape == (28, 28) and first.dtype == np.uint8

    def test_the_file_is_a_typed_data_set_of_at_most_one_and_a_half_megabytes(self, tmp_path):
        assert DIGITS.stat().st_size <= 1_500_000
        rows = datasets.load_dataset("parquet", data_files=str(DIGITS), split="train", cache_dir=str(tmp_path))
        assert isinstance(rows.features["image"], datasets.Image)
        assert rows.features["label"].names == list("0123456789")
        assert rows[0]["image"].mode == "L" and rows[0]["image"].size == (28, 28)

    def test_each_is_in_mnist_with_its_label(self, shared_data, tmp_path):
        mnist = pq.read_table(shared_data / "mnist" / "train-00000-of-00001.parquet").to_pydict()
        images = (np.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in mnist["image"])
        known = {image.tobytes(): label for image, label in zip(images, mnist["label"], strict=True)}
        digits = load_images(class_conditional=True, cache_dir=tmp_path)
        found = [known.get(image.tobytes()) for image in images_of(digits)]
        assert found == labels_of(digits)


class TestFolder:
    def test_flat(self, tmp_path):
        pixels = [noise(i) for i in range(5)]
        for i, image in enumerate(pixels):
            write_png(tmp_path / f"{i}.png", image)
        data = load_images(train_data_dir=tmp_path)
        assert data.num_rows == 5 and data.class_names is None and same(images_of(data), pixels)

    def test_a_relative_folder_is_read_from_anywhere(self, tmp_path, monkeypatch):
        write_png(tmp_path / "photos" / "a.png", noise(1))
        monkeypatch.chdir(tmp_path)
        data = load_images(train_data_dir="photos")
        monkeypatch.chdir("/")
        assert same(images_of(data), [noise(1)])

    def test_nested_unicode_spaces_brackets_and_capitals(self, tmp_path):
        names = ["a/b/c/1.png", "ü/日本 語.PNG", "with [brackets] & *stars?.jpeg", "Ω.JPG", "two words/x.png"]
        for name in names:
            path = write_png(tmp_path / "my [folder] *" / name, noise(1))
            path.touch()
        write_png(tmp_path / "my [folder] *" / ".hidden" / "x.png", noise(2))
        write_png(tmp_path / "my [folder] *" / "x" / ".DS_Store.png", noise(2))
        (tmp_path / "my [folder] *" / "notes.txt").write_text("no image")
        data = load_images(train_data_dir=tmp_path / "my [folder] *")
        assert data.num_rows == len(names) and same(images_of(data), [noise(1)] * len(names))

    def test_classes_are_the_top_folders(self, tmp_path):
        for name in ("dog/1.png", "cat/deep/er/1.png", "cat/2.png"):
            write_png(tmp_path / name, noise(0))
        data = load_images(train_data_dir=tmp_path, class_conditional=True)
        assert data.class_names == ("cat", "dog") and sorted(labels_of(data)) == [0, 0, 1]

    def test_a_file_name_makes_no_split(self, tmp_path):
        for name in ("my test.png", "train.png", "val-1.png"):
            write_png(tmp_path / name, noise(0))
        data = load_images(train_data_dir=tmp_path)
        assert data.num_rows == 3 and data.own_split is None

    def test_folders_make_splits(self, tmp_path):
        for name in ("train/cat/1.png", "train/dog/1.png", "train/dog/2.png", "validation/dog/1.png"):
            write_png(tmp_path / name, noise(0))
        data = load_images(train_data_dir=tmp_path, class_conditional=True)
        assert data.num_rows == 3 and labels_of(data) == [0, 1, 1]
        assert data.own_split == "validation" and labels_of(data.own_split_data) == [1]  # dog is 1 in both

    def test_a_folder_called_test_alone_is_no_split(self, tmp_path):
        for name in ("test/1.png", "other/1.png"):
            write_png(tmp_path / name, noise(0))
        data = load_images(train_data_dir=tmp_path, class_conditional=True)
        assert data.class_names == ("other", "test") and data.own_split is None

    def test_a_loop_of_links_ends(self, tmp_path):
        write_png(tmp_path / "a" / "1.png", noise(0))
        (tmp_path / "a" / "loop").symlink_to(tmp_path)
        (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
        assert load_images(train_data_dir=tmp_path).num_rows == 1

    def test_linked_folders_are_followed(self, tmp_path):
        write_png(tmp_path / "real" / "1.png", noise(0))
        (tmp_path / "root").mkdir()
        (tmp_path / "root" / "link").symlink_to(tmp_path / "real")
        assert load_images(train_data_dir=tmp_path / "root").num_rows == 1

    @pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
    def test_metadata(self, tmp_path, kind):
        for name in ("1.png", "2.png", "sub/3.png"):
            write_png(tmp_path / name, noise(0))
        lines = {"file_name": ["sub/3.png", "2.png", "1.png"], "kind": ["x", "y", "x"], "weight": [3, 2, 1]}
        if kind == "parquet":
            parquet(tmp_path / "metadata.parquet", lines)
        else:
            rows = datasets.Dataset.from_dict(lines)
            (rows.to_json if kind == "jsonl" else rows.to_csv)(tmp_path / f"metadata.{kind}")
        data = load_images(train_data_dir=tmp_path, label_column="kind")
        assert data.class_names == ("x", "y") and labels_of(data) == [0, 1, 0]
        assert load_images(train_data_dir=tmp_path, label_column="weight").class_names == ("1", "2", "3")

    def test_metadata_without_file_names(self, tmp_path):
        write_png(tmp_path / "1.png", noise(0))
        (tmp_path / "metadata.csv").write_text("name,kind\n1.png,x\n")
        with pytest.raises(ValueError, match="no column file_name; it has name, kind"):
            load_images(train_data_dir=tmp_path)

    def test_emoji(self, shared_data):
        for folder in (shared_data / "emoji-google-64", shared_data / "emoji-google-64" / "train"):
            data = load_images(train_data_dir=folder, label_column="category")
            assert data.num_rows == 1906 and len(data.class_names) == 9


class TestTables:
    @pytest.mark.parametrize("streaming", [False, True])
    def test_typed_parquet_with_another_name_for_the_image(self, tmp_path, streaming):
        pixels = [noise(i) for i in range(4)]
        cells = [{"bytes": png(image), "path": None} for image in pixels]
        features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
        path = parquet(tmp_path / "x.parquet", {"img": cells, "label": [0, 1, 1, 0]}, features)
        data = load_images(train_data_dir=path, class_conditional=True, cache_dir=tmp_path, streaming=streaming)
        assert data.image_column == "img" and data.streaming == streaming
        assert same(images_of(data), pixels) and labels_of(data) == [0, 1, 1, 0]

    @pytest.mark.parametrize("kind", ["bytes", "paths", "relative paths", "dict", "lists", "array"])
    @pytest.mark.parametrize("streaming", [False, True])
    def test_untyped_columns(self, tmp_path, kind, streaming):
        pixels = [noise(i, channels=1) for i in range(3)]
        files = [write_png(tmp_path / "files" / f"{i}.png", image) for i, image in enumerate(pixels)]
        features = None
        cells = {
            "bytes": [png(image) for image in pixels],
            "paths": [str(file) for file in files],
            "relative paths": [f"files/{file.name}" for file in files],
            "dict": [{"bytes": png(image), "path": None} for image in pixels],
            "lists": [image.tolist() for image in pixels],
            "array": pixels,
        }[kind]
        if kind == "array":
            features = {"picture": datasets.Array2D((8, 8), "uint8"), "caption": datasets.Value("string")}
        path = parquet(tmp_path / "t" / "x.parquet", {"picture": cells, "caption": ["a", "b", "c"]}, features)
        if kind == "relative paths":
            path = path.rename(tmp_path / "x.parquet")
        data = load_images(train_data_dir=path, cache_dir=tmp_path / "cache", streaming=streaming)
        assert data.image_column == "picture" and same(images_of(data), pixels)

    @pytest.mark.parametrize("streaming", [False, True])
    def test_shards_in_order_and_an_own_split(self, tmp_path, streaming):
        pixels = [noise(i) for i in range(12)]
        for shard in range(4):
            name = "test-00000-of-00001" if shard == 3 else f"train-{shard:05d}-of-00003"
            parquet(tmp_path / "d [1]" / f"{name}.parquet", {"x": [png(p) for p in pixels[3 * shard : 3 * shard + 3]]})
        data = load_images(train_data_dir=tmp_path / "d [1]", cache_dir=tmp_path / "c", streaming=streaming)
        assert same(images_of(data), pixels[:9])
        assert data.own_split == "test" and same(images_of(data.own_split_data), pixels[9:])

    def test_batches_start_anywhere(self, tmp_path):
        for shard in range(3):
            parquet(tmp_path / "d" / f"{shard}.parquet", {"x": [png(noise(10 * shard + i)) for i in range(10)]})
        parquet(tmp_path / "d" / "1-empty.parquet", {"x": pa.array([], pa.binary())})
        for streaming in (False, True):
            data = load_images(train_data_dir=tmp_path / "d", cache_dir=tmp_path / "c", streaming=streaming)
            for start in (0, 1, 9, 10, 25, 29):
                rows = [row for rows in data.batches(start, 4) for row in rows]
                assert [row.index for row in rows] == list(range(start, 30))
                assert np.array_equal(np.asarray(open_image(data.payload(rows[0]))), noise(start))

    def test_arrow_files_and_saved_data_sets(self, tmp_path):
        cells = [{"bytes": png(noise(i)), "path": None} for i in range(3)]
        rows = datasets.Dataset.from_dict({"image": cells}, features=datasets.Features({"image": datasets.Image()}))
        rows.save_to_disk(tmp_path / "one")
        datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(tmp_path / "dict")
        arrow = next((tmp_path / "one").glob("*.arrow"))
        for path in (tmp_path / "one", tmp_path / "dict", arrow):
            data = load_images(train_data_dir=path, cache_dir=tmp_path / "cache")
            assert same(images_of(data), [noise(i) for i in range(3)])
        assert load_images(train_data_dir=tmp_path / "dict").own_split_data.num_rows == 1

    def test_a_damaged_saved_data_set(self, tmp_path):
        (tmp_path / "state.json").write_text("{}")
        with pytest.raises(ValueError, match="Cannot load `train_data_dir` .*: "):
            load_images(train_data_dir=tmp_path)

    @pytest.mark.parametrize("streaming", [False, True])
    def test_what_datasets_reads_itself(self, tmp_path, streaming):
        """A folder by `dataset_name` goes through `datasets.load_dataset`; tar files are the Hub's WebDatasets."""
        for name in ("train/a/1.png", "train/b/2.png", "test/a/3.png", "test/b/4.png"):
            write_png(tmp_path / "images" / name, noise(int(name[-5])))
        arguments = {"cache_dir": tmp_path / "c", "streaming": streaming}
        data = load_images(str(tmp_path / "images"), class_conditional=True, **arguments)
        assert same(images_of(data), [noise(1), noise(2)]) and labels_of(data) == [0, 1]
        assert same(images_of(data.own_split_data), [noise(3), noise(4)])

        (tmp_path / "tar").mkdir()
        with tarfile.open(tmp_path / "tar" / "train-0.tar", "w") as tar:
            for i in range(3):
                entry = tarfile.TarInfo(f"{i}.png")
                entry.size = len(png(noise(i)))
                tar.addfile(entry, io.BytesIO(png(noise(i))))
        data = load_images(str(tmp_path / "tar"), **arguments)
        assert data.image_column == "png" and same(images_of(data), [noise(0), noise(1), noise(2)])

    def test_the_length_that_a_card_tells(self, tmp_path):
        parquet(tmp_path / "d" / "train-0.parquet", {"image": [png(noise(i)) for i in range(3)]})
        lines = ["---", "dataset_info:", "  splits:", "  - name: train", "    num_examples: 3", "---", ""]
        (tmp_path / "d" / "README.md").write_text("\n".join(lines))
        assert load_images(str(tmp_path / "d"), cache_dir=tmp_path / "c", streaming=True).num_rows == 3

    def test_a_folder_by_dataset_name(self, tmp_path):
        parquet(tmp_path / "d" / "x.parquet", {"x": [png(noise(0))]})
        assert load_images(str(tmp_path / "d"), cache_dir=tmp_path / "c").num_rows == 1


class TestSplits:
    @pytest.fixture
    def splits(self, tmp_path):
        for split, count in {"train": 10, "test": 4, "validation": 2}.items():
            parquet(tmp_path / f"{split}.parquet", {"x": [png(noise(i)) for i in range(count)]})
        return {"train_data_dir": tmp_path, "cache_dir": tmp_path / "cache"}

    @pytest.mark.parametrize(
        "wanted, count, own",
        [
            (None, 10, "test"),
            ("train", 10, "test"),
            ("train[:50%]", 5, "test"),
            ("train[2:4]", 2, "test"),
            ("train+test", 14, "validation"),
            ("test", 4, "validation"),
        ],
    )
    def test_choice(self, splits, wanted, count, own):
        data = load_images(**splits, dataset_split=wanted)
        assert data.num_rows == count and data.own_split == own

    @pytest.mark.parametrize("wanted", ["nope", "train[", "train[:5", "nope[:3]"])
    def test_unknown(self, splits, wanted):
        with pytest.raises(ValueError, match="`dataset_split` must be one .*: test, train, validation.*, got"):
            load_images(**splits, dataset_split=wanted)

    def test_a_stream_has_no_slices(self, splits):
        with pytest.raises(ValueError, match="a stream has no slices"):
            load_images(**splits, dataset_split="train[:3]", streaming=True)


class TestLabels:
    @pytest.mark.parametrize(
        "values, names",
        [(["b", "a", "b"], ("a", "b")), ([7, -1, 7], ("-1", "7")), ([True, False, True], ("False", "True"))],
    )
    def test_classes_of_plain_columns(self, tmp_path, values, names):
        path = parquet(tmp_path / "x.parquet", {"x": [png(noise(0))] * 3, "y": values})
        data = load_images(train_data_dir=path, label_column="y", cache_dir=tmp_path / "c")
        assert data.class_names == names and labels_of(data) == [1, 0, 1]

    def test_of_several_columns_of_classes_the_one_called_label(self, tmp_path):
        label = datasets.ClassLabel(names=["a", "b"])
        for names, found in ((("fine", "label"), "label"), (("fine",), "fine")):
            columns = {"x": [png(noise(0))], **{name: [1] for name in names}}
            features = {"x": datasets.Value("binary"), **dict.fromkeys(names, label)}
            path = parquet(tmp_path / f"{len(names)}.parquet", columns, features)
            data = load_images(train_data_dir=path, class_conditional=True, cache_dir=tmp_path / "c")
            assert data.columns["class_labels"].name == found

    @pytest.mark.parametrize("bad", [-1, 2])
    @pytest.mark.parametrize("streaming", [False, True])
    def test_a_label_that_is_no_class(self, tmp_path, bad, streaming):
        import pyarrow.parquet as pq

        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
        cells = [{"bytes": png(noise(0)), "path": None}] * 3
        table = pa.table({"image": cells, "label": pa.array([0, 1, bad])}, schema=features.arrow_schema)
        pq.write_table(table, tmp_path / "x.parquet")
        arguments = {"class_conditional": True, "cache_dir": tmp_path / "c", "streaming": streaming}
        data = load_images(train_data_dir=tmp_path, **arguments)
        with pytest.raises(ValueError, match=rf"'label' must hold one of a, b, got {bad} in row 2 of"):
            labels_of(data)

    def test_a_missing_label(self, tmp_path):
        path = parquet(tmp_path / "x.parquet", {"x": [png(noise(0))] * 2, "y": ["a", None]})
        data = load_images(train_data_dir=path, label_column="y", cache_dir=tmp_path / "c")
        with pytest.raises(ValueError, match="must hold one of a, got None in row 1 of"):
            labels_of(data)

    def test_streaming_must_know_its_classes(self, tmp_path):
        path = parquet(tmp_path / "x.parquet", {"x": [png(noise(0))], "y": ["a"]})
        with pytest.raises(ValueError, match="`label_column` must be a ClassLabel when streaming; 'y' is string"):
            load_images(train_data_dir=path, label_column="y", streaming=True)

    def test_numbers_with_a_point_are_no_classes(self, tmp_path):
        path = parquet(tmp_path / "x.parquet", {"x": [png(noise(0))], "y": [0.5]})
        with pytest.raises(ValueError, match="`label_column` must be .*ClassLabel, string or integer; 'y' is float64"):
            load_images(train_data_dir=path, label_column="y", cache_dir=tmp_path / "c")


class TestBadInput:
    def test_two_sources(self, tmp_path):
        with pytest.raises(ValueError, match="Give `dataset_name` or `train_data_dir`, not both, got 'a/b' and "):
            load_images("a/b", train_data_dir=tmp_path)

    def test_a_configuration_of_nothing(self):
        with pytest.raises(ValueError, match="`dataset_config_name` needs `dataset_name`, got 'x' alone"):
            load_images(None, "x")
        with pytest.raises(ValueError, match="`dataset_config_name` of captioned digits must be one of coloured, pla"):
            load_images(None, "x", captioned=True)

    def test_absent(self, tmp_path):
        with pytest.raises(ValueError, match="`train_data_dir` .*gone' does not exist"):
            load_images(train_data_dir=tmp_path / "gone")

    def test_empty(self, tmp_path):
        (tmp_path / "notes.txt").write_text("x")
        with pytest.raises(ValueError, match="`train_data_dir` .* has no images and no parquet or arrow files"):
            load_images(train_data_dir=tmp_path)

    def test_a_file_of_another_kind(self, tmp_path):
        path = write_png(tmp_path / "x.png", noise(0))
        with pytest.raises(ValueError, match="must be a folder or a .parquet or .arrow file, got"):
            load_images(train_data_dir=path)

    def test_images_beside_tables(self, tmp_path):
        write_png(tmp_path / "x.png", noise(0))
        parquet(tmp_path / "y.parquet", {"x": [1]})
        with pytest.raises(ValueError, match="has 1 images and 1 tables"):
            load_images(train_data_dir=tmp_path)

    def test_no_rows(self, tmp_path):
        path = parquet(tmp_path / "x.parquet", {"image": pa.array([], pa.binary())})
        for streaming in (False, True):
            with pytest.raises(ValueError, match="has no rows"):
                load_images(train_data_dir=path, cache_dir=tmp_path / "c", streaming=streaming)

    def test_no_rows_in_a_saved_data_set(self, tmp_path):
        datasets.Dataset.from_dict({"image": []}).save_to_disk(tmp_path / "saved")
        with pytest.raises(ValueError, match="Cannot load `train_data_dir` .*saved'"):
            load_images(train_data_dir=tmp_path / "saved")

    @pytest.mark.parametrize("argument", ["image_column", "label_column"])
    def test_unknown_column(self, tmp_path, argument):
        with pytest.raises(
            ValueError,
            match=rf"`{argument}` must be .* image \(Image\), label \(ClassLa.*, got 'nope'",
        ):
            load_images(**{argument: "nope"}, cache_dir=tmp_path)

    def test_no_column_of_images(self, tmp_path):
        path = parquet(tmp_path / "x.parquet", {"a": ["text"], "b": [3], "c": [[0.5, 0.25]]})
        with pytest.raises(
            ValueError, match=r"no column holds images; the columns are a \(string\), b \(int64\), c \(L"
        ):
            load_images(train_data_dir=path, cache_dir=tmp_path / "c")

    def test_several_columns_of_images(self, tmp_path):
        cells = [{"bytes": png(noise(0)), "path": None}]
        features = {"left": datasets.Image(), "right": datasets.Image()}
        path = parquet(tmp_path / "x.parquet", {"left": cells, "right": cells}, features)
        with pytest.raises(ValueError, match="`image_column` is not given and several .*: left, right"):
            load_images(train_data_dir=path, cache_dir=tmp_path / "c")
        assert load_images(train_data_dir=path, cache_dir=tmp_path / "c", image_column="right").image_column == "right"

    def test_no_classes(self, tmp_path):
        write_png(tmp_path / "1.png", noise(0))
        with pytest.raises(ValueError, match=r"`label_column` is not given and no column .*; the columns are image"):
            load_images(train_data_dir=tmp_path, class_conditional=True)

    def test_a_hub_that_cannot_be_reached(self, tmp_path, monkeypatch):
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        with pytest.raises(ValueError, match="Cannot load `dataset_name` 'nobody/nothing' .*: ") as raised:
            load_images("nobody/nothing", cache_dir=tmp_path)
        assert "\n" not in str(raised.value)

    def test_a_damaged_table(self, tmp_path):
        (tmp_path / "x.parquet").write_bytes(b"PAR1 no table")
        with pytest.raises(ValueError, match="Cannot read .*x.parquet' of `train_data_dir`"):
            load_images(train_data_dir=tmp_path, cache_dir=tmp_path / "c")


def test_fingerprint_follows_the_files(tmp_path):
    path = write_png(tmp_path / "f" / "1.png", noise(0))
    first = load_images(train_data_dir=tmp_path / "f").fingerprint
    assert load_images(train_data_dir=tmp_path / "f").fingerprint == first
    Image.fromarray(noise(0)[::2]).save(path)
    assert load_images(train_data_dir=tmp_path / "f").fingerprint != first
