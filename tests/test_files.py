"""Replacing files and folders: at any instant the old one or the new one, and nothing is left beside it."""

import pytest

from ddpm_hf.files import partial_path, replacing, write_text


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_in_one_stroke(tmp_path):
    file = tmp_path / "a.json"
    write_text(file, "one")
    with replacing(file) as beside:
        beside.write_text("two")
        assert file.read_text() == "one" and beside == partial_path(file)
    assert file.read_text() == "two" and names_in(tmp_path) == ["a.json"]


def test_a_folder_is_replaced_and_what_a_killed_process_left_is_not_mixed_in(tmp_path):
    folder = tmp_path / "best"
    for place in (folder, partial_path(folder)):
        place.mkdir()
        (place / "old").touch()
    with replacing(folder) as beside:
        beside.mkdir()
        (beside / "new").touch()
        assert names_in(folder) == ["old"]
    assert names_in(folder) == ["new"] and names_in(tmp_path) == ["best"]
    link = tmp_path / "link"
    link.symlink_to(folder, target_is_directory=True)
    with replacing(link) as beside:
        beside.mkdir()
    assert not link.is_symlink() and names_in(link) == [] and names_in(folder) == ["new"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_after_an_error_the_old_one_is_there_alone(tmp_path, error):
    file = tmp_path / "a.json"
    write_text(file, "one")
    with pytest.raises(error), replacing(file) as beside:
        beside.write_text("tw")
        raise error
    assert file.read_text() == "one" and names_in(tmp_path) == ["a.json"]


def test_a_shared_file_survives_two_writers_at_once(tmp_path, monkeypatch):
    file = tmp_path / "features.npy"
    with replacing(file, shared=True) as mine:
        mine.write_text("mine")
        monkeypatch.setattr("os.getpid", lambda: 1)
        with replacing(file, shared=True) as other:
            other.write_text("other")
        assert file.read_text() == "other"
    assert file.read_text() == "mine" and names_in(tmp_path) == ["features.npy"]
