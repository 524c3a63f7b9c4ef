"""A run that goes on is the same run to its experiment tracker."""

import json
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_loop import rows_of, stop_after


@pytest.fixture
def resumed(start, train):
    """The output folder of a run that was killed after step 3 and went on from step 2."""

    def run(tracker: str):
        broken = start("--report_to", tracker, "--checkpointing_steps", "2")
        stop_after(broken, 3)
        broken.accelerator.end_training()
        time.sleep(1)  # TensorBoard reads files by name, and those of one second and process in no good order
        return train("--report_to", tracker).output.path

    return run


def test_tensorboard_has_every_step_once(resumed):
    folder = resumed("tensorboard")
    events = EventAccumulator(str(folder / "logs" / "ddpm_hf"))
    events.Reload()
    told = [(event.step, event.value) for event in events.Scalars("loss")]
    assert told == [(row["step"], pytest.approx(row["loss"], rel=1e-5)) for row in rows_of(folder)]
    assert len(list((folder / "logs" / "ddpm_hf").glob("events*"))) == 2, "two sessions"


def test_wandb_goes_on_with_the_same_run(resumed, monkeypatch):
    pytest.importorskip("wandb", reason="this tracker needs an extra: pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = resumed("wandb")
    runs = {path.name.rpartition("-")[2] for path in (folder / "logs" / "wandb").glob("offline-run-*")}
    assert runs == {json.loads((folder / "training_summary.json").read_text())["tracker_run"]}


def test_trackio_goes_on_with_the_same_run(resumed, monkeypatch, tmp_path):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    storage = pytest.importorskip("trackio.sqlite_storage", reason="this tracker needs an extra: pip install trackio")
    summary = json.loads((resumed("trackio") / "training_summary.json").read_text())
    assert storage.SQLiteStorage.get_runs("ddpm_hf") == [summary["tracker_run"]]
