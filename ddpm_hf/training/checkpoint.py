"""Checkpoints: written beside and renamed when complete, so that whatever is there can be loaded."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

_NAME = re.compile(r"checkpoint-(\d+)$")
_PARTIAL, _REPLACED = ".partial", ".replaced"


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [(int(match[1]), path) for path in output_dir.glob("checkpoint-*") if (match := _NAME.match(path.name))]
    return [path for _, path in sorted(found)]


def remove_partial_checkpoints(output_dir: Path) -> None:
    """Clear away what a killed process left half-written or half-removed."""
    for path in output_dir.glob(f"checkpoint-*{_REPLACED}"):
        final = path.with_suffix("")
        if not final.exists():  # killed between the two renamings of `_publish`
            path.rename(final)
    for suffix in (_PARTIAL, _REPLACED):
        for path in output_dir.glob(f"checkpoint-*{suffix}"):
            shutil.rmtree(path, ignore_errors=True)


def find_checkpoint(output_dir: Path, wanted: str) -> Path:
    """The checkpoint that `--resume_from_checkpoint` names: "latest", a folder, or the name of one in `output_dir`.

    Raises:
        ValueError: if there is none, naming those that exist.
    """
    present = list_checkpoints(output_dir)
    if wanted == "latest" and present:
        return present[-1]
    for path in (Path(wanted), output_dir / wanted):
        if wanted != "latest" and (path / "progress.json").is_file():
            return path
    names = ", ".join(path.name for path in present) or "none"
    raise ValueError(f"--resume_from_checkpoint {wanted}: no such checkpoint; in {output_dir} there are: {names}")


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: Path,
    progress: dict,
    tensors: dict[str, dict[str, torch.Tensor]],
    total_limit: int | None,
) -> bool:
    """Write `checkpoint-<step>` with all that cannot be computed from (seed, step). Called by every process.

    Args:
        accelerator: holds model, optimizer and gradient scaler.
        output_dir: where checkpoints lie.
        progress: JSON-able state of the run; `progress["step"]` counts finished optimizer steps.
        tensors: further state by name, each kept in a file of that name.
        total_limit: how many checkpoints are kept; None for all.

    Returns:
        Whether it was written. A full disk costs this checkpoint, not the run: the reason is printed and the older
        checkpoints stay.
    """
    final = output_dir / f"checkpoint-{progress['step']}"
    partial = final.with_name(final.name + _PARTIAL)

    def begin() -> None:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()

    def write() -> None:
        for name, state in tensors.items():
            save_file(state, partial / f"{name}.safetensors")
        content = {**progress, "tensors": list(tensors)}
        (partial / "progress.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    written = (
        _well_done(accelerator, begin, everywhere=False)
        and _well_done(accelerator, lambda: accelerator.save_state(str(partial)))
        and _well_done(accelerator, write, everywhere=False)
        and _well_done(accelerator, lambda: _publish(partial, final), everywhere=False)
    )
    if accelerator.is_main_process:
        if written:
            _rotate(final, total_limit)
        else:
            shutil.rmtree(partial, ignore_errors=True)
            free = shutil.disk_usage(output_dir).free
            tqdm.write(
                f"checkpoint at step {progress['step']} was not saved; the older ones stay, and the run goes on "
                f"({free / 1e6:,.1f} MB are free in {output_dir})"
            )
    accelerator.wait_for_everyone()
    return written


def load_checkpoint(accelerator: Accelerator, folder: Path) -> tuple[dict, dict[str, dict[str, torch.Tensor]]]:
    """Put the state of a checkpoint into the prepared objects; returns its `progress` and further `tensors`."""
    accelerator.load_state(str(folder))
    # It counts micro-steps, of which another number may make up a step now, and a process that was not there when the
    # checkpoint was written has none: they would disagree on where a step ends, and wait for each other for ever.
    accelerator.step = 0
    progress = json.loads((folder / "progress.json").read_text())
    return progress, {name: load_file(folder / f"{name}.safetensors") for name in progress["tensors"]}


def _well_done(accelerator: Accelerator, action: Callable[[], object], everywhere: bool = True) -> bool:
    """Do it, in every process or in the main one alone, and whether it went well in all of them; says what went wrong.

    torch reports a failed write as RuntimeError, safetensors with an exception of its own.
    """
    well = True
    if everywhere or accelerator.is_main_process:
        try:
            action()
        except Exception as error:
            well = False
            tqdm.write(f"a checkpoint cannot be written: {type(error).__name__}: {' '.join(str(error).split())[:500]}")
    return bool(accelerator.gather(torch.tensor([well], dtype=torch.int64, device=accelerator.device)).min())


def _publish(partial: Path, final: Path) -> None:
    """Every byte on the disk first, then the name under which it is found; at any instant one is whole."""
    for path in partial.rglob("*"):
        if path.is_file():
            _sync(path)
    _sync(partial)
    replaced = final.with_name(final.name + _REPLACED)
    if final.exists():  # of a run that went back to an earlier checkpoint
        final.rename(replaced)
    partial.rename(final)
    _sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rotate(newest: Path, total_limit: int | None) -> None:
    """Remove the oldest. The one just written stays even if a run that went back has some of higher numbers."""
    if total_limit is None:
        return
    others = [path for path in list_checkpoints(newest.parent) if path != newest]
    for old in others[: max(0, len(others) - total_limit + 1)]:
        # Under its own name it is whole or not there, wherever this process is killed.
        shutil.rmtree(old.rename(old.with_name(old.name + _PARTIAL)), ignore_errors=True)
