"""The output folder: whose it is, and what a killed process leaves."""

import json
import re

import pytest
from test_loop import stop_after

from ddpm_hf.cli.parser import parse_training_arguments
from ddpm_hf.outputs.folder import LOSS_COLUMNS, OutputFolder, StepTable

FACTS = {"steps": 10, "image_shape": (1, 8, 8)}


def config_of(path, *flags):
    return parse_training_arguments(["--output_dir", str(path), *flags])


def test_a_run_is_recognised_and_another_one_refused_with_the_differences(tmp_path):
    folder = OutputFolder(tmp_path / "out")
    assert folder.open(config_of(folder.path, "--seed", "1"), FACTS, overwrite=False)["status"] == "running"
    # The same settings, and others that do not change the result.
    assert (
        folder.open(config_of(folder.path, "--seed", "1", "--preview_images", "4"), FACTS, overwrite=False)["steps"]
        == 10
    )
    with pytest.raises(
        ValueError, match=r"seed: 1 there, 2 now; dropout: None there, 0.5 now|dropout.*seed: 1 there, 2"
    ):
        folder.open(config_of(folder.path, "--seed", "2", "--dropout", "0.5"), FACTS, overwrite=False)
    with pytest.raises(ValueError, match="steps: 10 there, 12 now"):
        folder.open(config_of(folder.path, "--seed", "1"), {**FACTS, "steps": 12}, overwrite=False)
    # A run that an older version began, which had a flag less, had what is its default now.
    settings = folder / "training_config.yaml"
    settings.write_text(settings.read_text().replace("use_8bit_adam: false\n", ""))
    folder.open(config_of(folder.path, "--seed", "1"), FACTS, overwrite=False)
    with pytest.raises(ValueError, match="use_8bit_adam: False there, True now"):
        folder.open(config_of(folder.path, "--seed", "1", "--use_8bit_adam"), FACTS, overwrite=False)


def test_overwriting_removes_what_a_run_wrote_and_nothing_else(train, start, tmp_path, capsys):
    """A real run with all that makes it write, so that whoever adds a file must add it to the table. It says so."""
    folder, kept = tmp_path / "out", {"holiday/a.png", "checkpoint-notes/a", "logbook/mine", ".loss.csv", "unet.txt"}
    for name in kept:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    flags = "--holdout 8 --num_train_timesteps 60 --preview_steps 3 --eval_steps 3 --eval_num_images 3".split()
    flags += "--eval_inference_steps 2 --save_best_by bits_per_dim --report_to tensorboard --class_conditional".split()
    stop_after(start("--overwrite_output_dir", *flags, "--logging_dir", "logbook", "--checkpointing_steps", "3"), 4)
    train(*flags, "--logging_dir", "more/logs")
    # Of older versions, and of kills.
    remains = ["hub-upload.partial/README.md", ".best.partial/best.json", "checkpoint-9.partial/a", "sampling.json"]
    remains += ["best.partial/best.json", "pipeline.py"]
    for name in (*remains, ".loss.csv.partial", ".evaluation.json.123.partial"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    (folder / "training_config.yaml").write_text(": : [")  # which is why one starts over
    assert len(list((folder / "logbook").rglob("events*"))) >= 1 and (folder / "more" / "logs").is_dir()

    before, _ = {path.name for path in folder.iterdir()}, capsys.readouterr()
    start("--overwrite_output_dir", "--seed", "2")
    (told,) = re.findall(r"^  deletes: (.*)$", capsys.readouterr().out, re.MULTILINE)
    gone = before - {path.name for path in folder.iterdir()} | {"training_config.yaml", "training_summary.json"}
    assert {name.partition("/")[0] for name in told.split(", ")} == gone | {"logbook"}
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert left == kept | {"training_config.yaml", "training_summary.json", ".lock", ".owner.json"}
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"holiday", "checkpoint-notes", "logbook"}


def test_overwriting_a_base_while_its_upsampler_trains_is_refused(tmp_path):
    base, upsampler = OutputFolder(tmp_path), OutputFolder(tmp_path / "upsampler", "upsampler")
    for folder in (base, upsampler):
        folder.open(config_of(folder.path), FACTS, overwrite=False)
    other = OutputFolder(upsampler.path)
    other.lock()
    with pytest.raises(ValueError, match=f"--output_dir {upsampler.path} is in use by process"):
        base.open(config_of(base.path), FACTS, overwrite=True)
    assert (upsampler / "training_config.yaml").is_file() and base.read_summary() is not None
    other.unlock()
    assert upsampler.path in base.left_by_run()
    base.open(config_of(base.path), FACTS, overwrite=True)
    assert not upsampler.path.exists()


def test_overwriting_takes_nothing_from_people(tmp_path):
    """Not their files where there was no run, nor the card of a run once its author has removed the mark."""
    folder = OutputFolder(tmp_path)
    mine = {"README.md": "my thesis", "samples.png": "mine", "evaluation/notes.txt": "mine"}
    for name, text in mine.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    folder.open(config_of(tmp_path, "--overwrite_output_dir"), FACTS, overwrite=True)
    assert {name: (tmp_path / name).read_text() for name in mine} == mine
    folder.open(config_of(tmp_path, "--overwrite_output_dir"), FACTS, overwrite=True)
    assert (tmp_path / "README.md").read_text() == "my thesis" and not (tmp_path / "samples.png").exists()


def test_overwriting_removes_the_components_that_the_index_names(tmp_path):
    """Whatever pipeline it was; a run that was killed before it wrote an index may have left those of any."""
    index = {"_class_name": "Other", "vqvae": ["diffusers", "VQModel"], "unet": ["diffusers", "UNet2DModel"]}
    for content, kept in ((json.dumps(index), {"scheduler"}), (None, {"vqvae"})):
        for name in ("vqvae", "unet", "scheduler"):
            (tmp_path / name).mkdir(exist_ok=True)
        if content is not None:
            (tmp_path / "model_index.json").write_text(content)
        OutputFolder(tmp_path).open(config_of(tmp_path, "--overwrite_output_dir"), FACTS, overwrite=True)
        OutputFolder(tmp_path).open(config_of(tmp_path, "--overwrite_output_dir"), FACTS, overwrite=True)
        assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == kept


def test_a_folder_of_trackers_outside_of_the_run_is_left_alone(tmp_path):
    """Other runs may share it."""
    (tmp_path / "shared" / "ddpm_hf").mkdir(parents=True)
    folder = OutputFolder(tmp_path / "out")
    for seed in "12":
        flags = ["--logging_dir", "../shared", "--overwrite_output_dir", "--seed", seed]
        config = config_of(folder.path, *flags)
        folder.open(config, FACTS, config.run.overwrite_output_dir)
    assert (tmp_path / "shared" / "ddpm_hf").is_dir()


def test_other_peoples_folders_and_files_are_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="thesis.tex"):
        OutputFolder(tmp_path).check_is_ours(overwrite=False)
    OutputFolder(tmp_path).check_is_ours(overwrite=True)
    with pytest.raises(ValueError, match="is a file"):
        OutputFolder(tmp_path / "thesis.tex").check_is_ours(overwrite=True)
    OutputFolder(tmp_path / "new").check_is_ours(overwrite=False)


def test_going_on_drops_the_lines_after_the_checkpoint(tmp_path):
    file = tmp_path / "loss.csv"
    row = dict.fromkeys(("epoch", "loss", "learning_rate", "grad_norm", "images_per_second", "seconds"), 0.5)
    table = StepTable(file, 0, LOSS_COLUMNS)
    for step in (1, 2, 3):
        table.append(step=step, **row)
    again = StepTable(file, 2, LOSS_COLUMNS)
    again.append(step=3, **row | {"loss": 0.25})
    lines = file.read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "1", "2", "3"]
    assert lines[-1].split(",")[2] == "0.25"
    again.plot(tmp_path / "loss.png", ["loss"])
    assert (tmp_path / "loss.png").stat().st_size > 5000


def test_a_line_that_could_not_be_written_comes_with_the_next(tmp_path):
    file = tmp_path / "loss.csv"
    row = dict.fromkeys(LOSS_COLUMNS, 0.5)
    table = StepTable(file, 0, LOSS_COLUMNS)
    table.append(**row | {"step": 1})
    file.rename(tmp_path / "aside")
    file.mkdir()
    with pytest.raises(OSError):
        table.append(**row | {"step": 2})
    file.rmdir()
    (tmp_path / "aside").rename(file)
    file.write_text(file.read_text() + "2,0.")  # as far as the disk had room
    table.append(**row | {"step": 3})
    assert [line.split(",")[0] for line in file.read_text().splitlines()] == ["step", "1", "2", "3"]
    assert file.read_text().splitlines()[2] == "2,0.5,0.5,0.5,0.5,0.5,0.5"


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    file = tmp_path / "loss.csv"
    StepTable(file, 0, LOSS_COLUMNS).append(**dict.fromkeys(LOSS_COLUMNS, 0.5) | {"step": 1})
    file.write_text(file.read_text() + "2,0.5,0.1")
    assert [row["step"] for row in StepTable(file, 5, LOSS_COLUMNS).rows] == [1]


def test_what_cannot_be_written_is_told_once_until_it_works_again(tmp_path, capsys):
    folder = OutputFolder(tmp_path)
    for trouble in (True, True, False, True):
        with folder.sparing_the_run("loss.csv"):
            if trouble:
                raise OSError(28, "No space left on device")
    assert capsys.readouterr().out.count("cannot write loss.csv: [Errno 28] No space left on device;") == 2
