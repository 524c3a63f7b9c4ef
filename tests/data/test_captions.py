"""Captions: from every kind of source, several to a row, and the same one for a position, stored or streamed."""

import json

import datasets
import numpy as np
import pytest
from pictures import noise, parquet, png, write_png
from scipy import stats

from ddpm_hf.data.captioned_digits import ATTRIBUTES, HANDWRITING
from ddpm_hf.data.captions import find_caption_column
from ddpm_hf.data.holdout import Holdout
from ddpm_hf.data.sources import load_images
from ddpm_hf.data.store import store_key
from ddpm_hf.data.training import open_training_images
from ddpm_hf.evaluation.image_sets import ImageSet

WORDS = ["a red apple", "ein Käfer 🐞", "赤い りんご 👩🏽‍🚀", "תפוח אדום"]
# Cells of a column of lists -> the captions that they hold.
CELLS = [["one", "zwei 🍎"], [], None, ["  white \n space ", None, ""]]
HELD = ["one\nzwei 🍎", "", "", "white space"]
STRING = datasets.Value("string")


def captions_of(data):
    return [row.extra["captions"] for rows in data.batches(batch_size=3) for row in rows]


def pictures(folder, names):
    for number, name in enumerate(names):
        write_png(folder / name, noise(number))
    return folder


def table(path, captions, **columns):
    return parquet(path, {"image": [png(noise(i)) for i in range(len(captions))], "caption": captions, **columns})


def training_images(folder, seed=0, **settings):
    defaults = {"class_conditional": False, "label_column": None, "captioned": True, "resolution": "8"}
    defaults |= {"channels": None, "center_crop": True, "random_flip": False, "holdout": 0, "shuffle_buffer": 5}
    defaults |= {"skip_unreadable": False, "streaming": False, "cache_dir": None}
    folder = None if folder is None else str(folder)
    return open_training_images(seed, train_data_dir=folder, **defaults | settings)


class TestSources:
    @pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
    def test_metadata(self, tmp_path, kind):
        pictures(tmp_path, ["0.png", "1.png", "2.png", "3.png", "4.png"])
        lines = {"file_name": ["3.png", "2.png", "1.png", "0.png"], "text": WORDS[::-1]}
        if kind == "parquet":
            parquet(tmp_path / "metadata.parquet", lines)
        else:
            rows = datasets.Dataset.from_dict(lines)
            (rows.to_json if kind == "jsonl" else rows.to_csv)(tmp_path / f"metadata.{kind}")
        assert captions_of(load_images(train_data_dir=tmp_path, captioned=True)) == [*WORDS, ""]

    @pytest.mark.parametrize("streaming", [False, True])
    def test_if_there_are_any(self, tmp_path, streaming):
        """Else the names of classes, and without classes nothing, which may also be asked for."""
        asked = {"captioned": "if any", "streaming": streaming}
        named = training_images(pictures(tmp_path / "named", ["a/0.png", "b/1.png"]), **asked)
        assert sorted(named.captions()) == ["a", "b"] and named.facts()["class_names"] == ["a", "b"]
        table(tmp_path / "told" / "0.parquet", ["one", "two"])
        assert sorted(training_images(tmp_path / "told", **asked).captions()) == ["one", "two"]
        flat = training_images(pictures(tmp_path / "flat", ["0.png", "1.png"]), **asked)
        for images in (flat, training_images(tmp_path / "named", init_caption_from_labels="", **asked)):
            assert [*images.captions(), *images.some_captions(2)] == [] and images.uncaptioned() == (0, [])
            assert "caption_column" not in images.facts() and "captions" not in next(images.batches([range(2)]))
        with pytest.raises(ValueError, match="not both, got 'caption' and ''"):
            training_images(tmp_path / "told", init_caption_from_labels="", caption_column="caption", **asked)

    def test_if_there_are_any_beside_classes(self, tmp_path):
        """Text without a usual name is none, and a label column that is named comes first."""
        found = []
        for number, (text, more) in enumerate(
            [
                ("image_id", {}),
                ("title", {}),
                ("title", {"label_column": "kind"}),
                ("image_id", {"caption_column": "image_id"}),
            ]
        ):
            kinds = datasets.ClassLabel(names=["cat", "dog"])
            features = datasets.Features({"image": datasets.Image(), "kind": kinds, text: STRING})
            cells = {"image": [noise(0), noise(1)], "kind": [0, 1], text: ["x1", "x2"]}
            (tmp_path / str(number)).mkdir()
            datasets.Dataset.from_dict(cells, features).to_parquet(tmp_path / str(number) / "0.parquet")
            found.append(sorted(training_images(tmp_path / str(number), captioned="if any", **more).captions()))
        assert found == [["cat", "dog"], ["x1", "x2"], ["cat", "dog"], ["x1", "x2"]]

    def test_lists_in_metadata(self, tmp_path):
        pictures(tmp_path, ["0.png", "1.png", "2.png", "3.png"])
        lines = [json.dumps({"file_name": f"{i}.png", "prompts": cell}) for i, cell in enumerate(CELLS)]
        (tmp_path / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
        assert captions_of(load_images(train_data_dir=tmp_path, captioned=True)) == HELD

    def test_line_breaks_in_a_long_csv(self, tmp_path):
        """Arrow reads a file in blocks of 1 MB, which must not be cut at a quoted line break."""
        pictures(tmp_path, ["39999.png"])
        cells = "".join(f'{i}.png,"two\nlines, {i}"\n' for i in range(40_000))
        (tmp_path / "metadata.csv").write_text("file_name,caption\n" + cells)
        assert captions_of(load_images(train_data_dir=tmp_path, captioned=True)) == ["two lines, 39999"]

    @pytest.mark.parametrize("streaming", [False, True])
    def test_text_files_beside_images(self, tmp_path, streaming):
        pictures(tmp_path, ["a.png", "b.PNG", "c.png", "d.png", "sub/a.png", "sub/ü 1.webp"])
        texts = {"a.txt": "one\n\n  zwei 🍎\r\n", "b.TXT": "\ufeffa mark", "c.txt": " \n", "e.txt": "no image"}
        texts |= {"sub/a.txt": "other", "sub/ü 1.txt": WORDS[2]}
        for name, text in texts.items():
            (tmp_path / name).write_bytes(text.encode())
        data = load_images(train_data_dir=tmp_path, captioned=True, streaming=streaming)
        assert captions_of(data) == ["one\nzwei 🍎", "a mark", "", "", "other", WORDS[2]]

    def test_captions_of_the_metadata_come_first(self, tmp_path):
        pictures(tmp_path, ["0.png", "1.png"])
        (tmp_path / "0.txt").write_text("from a file")
        for name, words in [("caption", ["from metadata", ""]), ("kind", ["from a file", ""])]:
            (tmp_path / "metadata.csv").write_text(f"file_name,{name}\n0.png,from metadata\n")
            assert captions_of(load_images(train_data_dir=tmp_path, captioned=True)) == words

    def test_text_files_mean_nothing_without_captions(self, tmp_path):
        pictures(tmp_path, ["0.png"])
        before = load_images(train_data_dir=tmp_path)
        (tmp_path / "0.txt").write_bytes(b"\xff\xfe\xfd")
        after = load_images(train_data_dir=tmp_path)
        assert after.columns == {} and "caption" not in after.features
        assert store_key(after, (8, 8), 3, False) == store_key(before, (8, 8), 3, False)
        with pytest.raises(ValueError, match=r"^Cannot read .*0\.txt, which must be UTF-8: .*$"):
            load_images(train_data_dir=tmp_path, captioned=True)

    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize(
        "cells, held", [(WORDS, WORDS), (CELLS, HELD), (["a", None, "", "b"], ["a", "", "", "b"])]
    )
    def test_tables(self, tmp_path, cells, held, streaming):
        table(tmp_path / "d" / "0.parquet", cells)
        assert captions_of(load_images(train_data_dir=tmp_path / "d", captioned=True, streaming=streaming)) == held
        saved = datasets.Dataset.from_parquet(str(tmp_path / "d" / "0.parquet"), cache_dir=str(tmp_path / "c"))
        saved.save_to_disk(tmp_path / "saved")
        data = load_images(train_data_dir=tmp_path / "saved", captioned=True, streaming=streaming)
        assert captions_of(data) == held

    def test_both_splits_have_captions(self, tmp_path):
        pictures(tmp_path, ["train/0.png", "test/0.png"])
        for split in ("train", "test"):
            (tmp_path / split / "0.txt").write_text(split)
        data = load_images(train_data_dir=tmp_path, captioned=True)
        assert captions_of(data) == ["train"] and captions_of(data.own_split_data) == ["test"]

    def test_emoji(self, shared_data):
        data = load_images(train_data_dir=shared_data / "emoji-google-64" / "train", captioned=True)
        assert data.columns["captions"].name == "text" and captions_of(data)[0] and data.num_rows == 1906


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("resolution, attributes", [("16", 3), ("32", 5)])
def test_captioned_digits_are_the_default(tmp_path, monkeypatch, resolution, attributes, streaming):
    monkeypatch.setitem(HANDWRITING, "train", range(0, 20))
    arguments = {"resolution": resolution, "holdout": None, "cache_dir": str(tmp_path), "streaming": streaming}
    images = training_images(None, **arguments)
    assert images.source.name == "captioned digits" and images.holdout.split == "test"
    assert images.shape == (3, int(resolution), int(resolution))
    batch = next(images.batches([range(8)]))
    for row, caption in zip(batch["rows"].tolist(), batch["captions"].tolist(), strict=True):
        told = images.source.row(row).extra["captions"].split("\n")
        assert len(told) == 5 and caption in told
        assert [any(word in caption for word in words) for words in ATTRIBUTES.values()].count(True) == attributes


def test_rows_with_the_same_captions_mean_the_same(tmp_path):
    cells = [["a", "b"], ["b", "a", "b"], ["a"], ["b", "c"], None, ["a"]]
    table(tmp_path / "0.parquet", cells)
    for streaming in (False, True):
        batch = next(training_images(tmp_path, streaming=streaming).batches([range(6)]))
        found = dict(zip(batch["rows"].tolist(), batch["meanings"].tolist(), strict=True))
        assert found[0] == found[1] and found[2] == found[5] and len({*found.values()}) == 4


class TestClassNames:
    TEMPLATE = "a photo of a {}, {}"

    def test_folders(self, tmp_path):
        pictures(tmp_path, ["cat/0.png", "schöner Hund/0.png"])
        data = load_images(train_data_dir=tmp_path, captioned=True, init_caption_from_labels=self.TEMPLATE)
        assert captions_of(data) == ["a photo of a cat, cat", "a photo of a schöner Hund, schöner Hund"]
        assert list(data.columns) == ["captions"]

    def test_a_template_of_two_lines_is_one_caption(self, tmp_path):
        pictures(tmp_path, ["cat/0.png"])
        data = load_images(train_data_dir=tmp_path, captioned=True, init_caption_from_labels="a photo\nof a {} ")
        assert captions_of(data) == ["a photo of a cat"]

    def test_a_column_with_classes_missing(self, tmp_path):
        table(tmp_path / "0.parquet", WORDS[:3], kind=["x", None, "y"])
        arguments = {"init_caption_from_labels": self.TEMPLATE, "label_column": "kind"}
        images = training_images(tmp_path, **arguments)
        assert sorted(next(images.batches([range(3)]))["captions"].tolist()) == [
            "",
            "a photo of a x, x",
            "a photo of a y, y",
        ]
        assert images.uncaptioned() == (1, ["row 1"]) and list(images.source.columns) == ["captions"]

    @pytest.mark.parametrize(
        "arguments, problem",
        [
            ({"init_caption_from_labels": "a photo"}, r"`init_caption_from_labels` must have \{\} .*, got 'a photo'"),
            (
                {"init_caption_from_labels": "a {}"},
                "`init_caption_from_labels` needs classes, but `label_column` is no",
            ),
            (
                {"init_caption_from_labels": "a {}", "caption_column": "caption"},
                "Give `caption_column` or `init_caption_from_labels`, not both, got 'caption' and 'a {}'",
            ),
        ],
    )
    def test_errors(self, tmp_path, arguments, problem):
        table(tmp_path / "0.parquet", WORDS)
        with pytest.raises(ValueError, match=problem):
            load_images(train_data_dir=tmp_path, captioned=True, **arguments)


class TestTheColumn:
    FEATURES = {
        "image": STRING,
        "label": datasets.ClassLabel(names=["a"]),
        "score": datasets.Value("float32"),
        "boxes": datasets.List(datasets.Value("int32")),
    }

    @pytest.mark.parametrize(
        "columns, wanted, found",
        [
            ({"words": STRING}, None, "words"),
            ({"words": datasets.List(STRING)}, None, "words"),
            ({"words": datasets.LargeList(datasets.Value("large_string"))}, None, "words"),
            ({"URL": STRING, "TEXT": STRING}, None, "TEXT"),
            ({"text": STRING, "caption": STRING}, None, "caption"),
            ({"text": STRING, "caption": datasets.Value("int32")}, None, "text"),
            ({"text": STRING, "caption": STRING}, "text", "text"),
        ],
    )
    def test_found(self, columns, wanted, found):
        assert find_caption_column(datasets.Features(self.FEATURES | columns), "image", wanted).name == found

    @pytest.mark.parametrize(
        "columns, wanted, problem",
        [
            ({}, None, r"`caption_column` is not given and no column holds text; the columns are .*score \(float32\)"),
            ({"x": STRING, "y": STRING}, None, r"not given and several columns hold text: x, y; .* y \(string\)"),
            ({"x": STRING}, "z", r"`caption_column` must be one of the columns .* x \(string\), got 'z'"),
            ({}, "score", r"`caption_column` must hold strings or lists of strings, got 'score' of .*boxes \(List\)"),
            ({}, "boxes", "`caption_column` must hold strings or lists of strings, got 'boxes'"),
            ({}, "label", "`caption_column` must hold strings or lists of strings, got 'label'"),
            ({"x": datasets.Value("null")}, "x", "`caption_column` must hold strings or lists of strings, got 'x'"),
        ],
    )
    def test_not_found(self, columns, wanted, problem):
        with pytest.raises(ValueError, match=problem):
            find_caption_column(datasets.Features(self.FEATURES | columns), "image", wanted)

    @pytest.mark.parametrize("streaming", [False, True])
    def test_without_any_caption(self, tmp_path, streaming):
        table(tmp_path / "0.parquet", ["", " ", None])
        with pytest.raises(ValueError, match=r"^`caption_column` must hold captions, but 'caption' of .* has none\.$"):
            training_images(tmp_path, streaming=streaming)


class TestBatches:
    ROWS, WORDINGS = 11, 4

    @pytest.fixture
    def folder(self, tmp_path):
        cells = [[f"row {row} wording {k}" for k in range(self.WORDINGS)] for row in range(self.ROWS)]
        table(tmp_path / "0.parquet", cells)
        return tmp_path

    def wordings(self, images, *slices):
        """Which captions were chosen, each checked to be one of its row."""
        chosen = []
        for batch in images.batches(slices):
            for row, caption in zip(batch["rows"].tolist(), batch["captions"].tolist(), strict=True):
                of_row, wording = caption.removeprefix("row ").split(" wording ")
                assert int(of_row) == row
                chosen.append(int(wording))
        return chosen

    def test_the_caption_is_a_function_of_seed_and_position(self, folder):
        stored, streamed = (training_images(folder, streaming=streaming) for streaming in (False, True))
        chosen = self.wordings(stored, range(90))
        assert self.wordings(streamed, range(90)) == chosen
        for images in (stored, streamed):
            assert self.wordings(images, range(37, 40), range(61, 90)) == chosen[37:40] + chosen[61:]
        assert self.wordings(training_images(folder, seed=1), range(90)) != chosen

    def test_captions_are_drawn_equally_often_at_each_visit(self, folder):
        images = training_images(folder)
        epochs = 400
        chosen, rows = self.wordings(images, range(epochs * self.ROWS)), []
        for batch in images.batches([range(epochs * self.ROWS)]):
            rows += batch["rows"].tolist()
        counts = np.zeros((self.ROWS, self.WORDINGS))
        np.add.at(counts, (rows, chosen), 1)
        assert (counts.sum(1) == epochs).all()
        assert stats.chisquare(counts, axis=1).pvalue.min() > 1e-4

    @pytest.mark.parametrize("streaming", [False, True])
    def test_an_evaluation_takes_the_first(self, folder, streaming):
        data = load_images(train_data_dir=folder, captioned=True, streaming=streaming)
        images = ImageSet(data=data, holdout=Holdout(), others="all", size=(8, 8), channels=3)
        for batch in images.batches(4):
            assert batch["captions"].tolist() == [f"row {row} wording 0" for row in batch["rows"].tolist()]


class TestAll:
    CELLS = [["one", "zwei 🍎"], None, ["three"], [], [""], ["four", "five", "six"]]

    @pytest.mark.parametrize("streaming", [False, True])
    def test_for_a_tokenizer_and_a_finding(self, tmp_path, streaming):
        pictures(tmp_path, [f"{i}.png" for i in range(6)])
        lines = [json.dumps({"file_name": f"{i}.png", "captions": cell}) for i, cell in enumerate(self.CELLS)]
        (tmp_path / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
        images = training_images(tmp_path, streaming=streaming)  # five rows of the stream are looked at
        every = ["one", "zwei 🍎", "three", "four", "five", "six"]
        assert list(images.captions()) == every[: 3 if streaming else 6]
        count, named = images.uncaptioned(2)
        assert count == 3 and named == [f"row {i} ({tmp_path}/{i}.png)" for i in (1, 3)]
        assert images.some_captions(6) == ["one", "three", "four"]
        assert images.some_captions(1) == ["one"]
        assert "" in next(images.batches([range(6)]))["captions"].tolist()

    @pytest.mark.parametrize("streaming", [False, True])
    def test_examples_come_from_other_images_if_those_looked_at_have_no_caption(self, tmp_path, streaming):
        table(tmp_path / "0.parquet", [None, "two", None, "four"])
        assert training_images(tmp_path, streaming=streaming).some_captions(1) == ["two"]

    @pytest.mark.parametrize("streaming", [False, True])
    def test_none_of_the_held_out(self, tmp_path, streaming):
        table(tmp_path / "0.parquet", [f"row {i}" for i in range(30)])
        images = training_images(tmp_path, holdout=0.4, streaming=streaming, shuffle_buffer=100)
        (batch,) = images.batches([range(len(list(images.captions())))])
        assert sorted(batch["captions"].tolist()) == sorted(images.captions())
        assert 10 < len(batch["captions"]) < 28

    def test_a_long_caption_makes_no_wide_rows(self, tmp_path):
        words = [*WORDS, "", "🍎" * 500_000]
        table(tmp_path / "0.parquet", words)
        images = training_images(tmp_path)
        batch = next(images.batches([range(6)]))
        assert batch["captions"].tolist() == [words[row] for row in batch["rows"].tolist()]
        written = sum(file.stat().st_size for file in images.store.folder.iterdir())
        assert written < sum(len(word.encode()) for word in words) + 5_000


def test_data_with_and_without_captions_are_told_apart(tmp_path):
    table(tmp_path / "0.parquet", WORDS, other=WORDS)
    kinds = [{"captioned": False}, {}, {"caption_column": "other"}]
    images = [training_images(tmp_path, **kind) for kind in kinds]
    assert len({some.store.folder for some in images}) == 3
    columns = [some.facts().get("caption_column") for some in images]
    assert columns == [None, "caption", "other"]
    assert "captions" not in next(images[0].batches([range(2)]))
