"""Checkpoints: whole under their name at every instant, and removed in an order that loses none."""

import os
from pathlib import Path

import pytest
from test_loop import assert_equal_weights, stop_after

from ddpm_hf.outputs import checkpoint
from ddpm_hf.outputs.checkpoint import list_checkpoints, remove_partial_checkpoints


def names_of(folder: Path) -> list[str]:
    return [path.name for path in list_checkpoints(folder)]


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).mkdir()
        (folder / name / "file").write_text(name)


def test_every_byte_is_flushed_before_the_name_is_given(start, monkeypatch):
    trainer = start()
    events, sync, rename = [], os.fsync, Path.rename

    def record_sync(descriptor: int) -> None:
        events.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))
        sync(descriptor)

    def record_rename(self: Path, target: Path) -> Path:
        if target.name == "checkpoint-6":
            events.append(("name", {path.relative_to(self) for path in self.rglob("*")}))
        return rename(self, target)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("only Linux tells which file a descriptor is of")
    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(Path, "rename", record_rename)
    trainer.train()
    named = next(place for place, (kind, _) in enumerate(events) if kind == "name")
    content = events[named][1]
    partial = trainer.output / "checkpoint-6.partial"
    synced = {path.relative_to(partial) for _, path in events[:named] if path.is_relative_to(partial)}
    assert synced == content | {Path()} and {Path("ema.safetensors"), Path("optimizer.bin")} < content
    assert ("sync", trainer.output.path) in events[named:], "and the name itself afterwards"


@pytest.mark.parametrize(
    ("left", "kept"),
    [
        (["checkpoint-4.partial"], {}),
        (["checkpoint-4", "checkpoint-6.partial"], {"checkpoint-4": "checkpoint-4"}),
        # Between the two renamings: what was there before is given its name again.
        (["checkpoint-4.replaced", "checkpoint-4.partial"], {"checkpoint-4": "checkpoint-4.replaced"}),
        (["checkpoint-4.replaced", "checkpoint-4"], {"checkpoint-4": "checkpoint-4"}),
    ],
)
def test_what_a_kill_leaves_is_cleared_and_what_is_whole_stays(tmp_path, left, kept):
    make(tmp_path, *left)
    remove_partial_checkpoints(tmp_path)
    assert {path.name: (path / "file").read_text() for path in tmp_path.iterdir()} == kept


def test_a_run_that_goes_back_replaces_what_it_does_again_and_keeps_what_it_wrote_last(train, start, tmp_path):
    unbroken = train(output_dir=tmp_path / "unbroken", ending=False)
    broken = start("--checkpointing_steps", "1", "--checkpoints_total_limit", "9")
    stop_after(broken, 4)
    folder = broken.output.path
    assert names_of(folder) == ["checkpoint-1", "checkpoint-2", "checkpoint-3", "checkpoint-4"]
    (folder / "checkpoint-2" / "mark").touch()
    again = start(
        "--resume_from_checkpoint", "checkpoint-1", *"--checkpointing_steps 2 --checkpoints_total_limit 1".split()
    )
    stop_after(again, 3)
    assert names_of(folder) == ["checkpoint-2"] and not (folder / "checkpoint-2" / "mark").exists()
    assert_equal_weights(unbroken, train(ending=False))


def test_what_is_removed_has_no_name_of_a_checkpoint_any_more(tmp_path, monkeypatch):
    """So that a kill amid a removal leaves none that is half there."""
    make(tmp_path, "checkpoint-1", "checkpoint-2", "checkpoint-3")
    removed = []
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda path, **options: removed.append(path.name))
    checkpoint._rotate(tmp_path / "checkpoint-3", 1)
    assert removed == ["checkpoint-1.partial", "checkpoint-2.partial"] and names_of(tmp_path) == ["checkpoint-3"]
