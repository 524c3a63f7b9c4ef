"""Checkpoints: written beside and renamed when complete, so that whatever is there can be loaded."""

import json
import os
import re
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

_NAME = re.compile(r"checkpoint-(\d+)$")
_PARTIAL_SUFFIX = ".partial"


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [(int(match[1]), path) for path in output_dir.glob("checkpoint-*") if (match := _NAME.match(path.name))]
    return [path for _, path in sorted(found)]


def remove_partial_checkpoints(output_dir: Path) -> None:
    """Clear away what a killed process left half-written."""
    for path in output_dir.glob(f"checkpoint-*{_PARTIAL_SUFFIX}"):
        shutil.rmtree(path)


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
    partial = final.with_name(final.name + _PARTIAL_SUFFIX)
    problem = None
    try:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
    except OSError as error:
        problem = error
    if _all_well(accelerator, problem):
        try:
            accelerator.save_state(str(partial))
            if accelerator.is_main_process:
                for name, state in tensors.items():
                    save_file(state, partial / f"{name}.safetensors")
                progress = {**progress, "tensors": list(tensors)}
                (partial / "progress.json").write_text(json.dumps(progress, indent=2) + "\n")
        # torch reports a failed write as RuntimeError, safetensors with an exception of its own.
        except Exception as error:
            problem = error
    written = _all_well(accelerator, problem)
    if accelerator.is_main_process:
        if written:
            _publish(partial, final)
            _rotate(output_dir, total_limit)
        else:
            shutil.rmtree(partial, ignore_errors=True)
    if problem is not None:
        accelerator.print(f"checkpoint at step {progress['step']} was not saved: {problem}; the run goes on")
    accelerator.wait_for_everyone()
    return written


def load_checkpoint(accelerator: Accelerator, folder: Path) -> tuple[dict, dict[str, dict[str, torch.Tensor]]]:
    """Put the state of a checkpoint into the prepared objects; returns its `progress` and further `tensors`."""
    accelerator.load_state(str(folder))
    progress = json.loads((folder / "progress.json").read_text())
    return progress, {name: load_file(folder / f"{name}.safetensors") for name in progress["tensors"]}


def _all_well(accelerator: Accelerator, problem: Exception | None) -> bool:
    well = torch.tensor([problem is None], dtype=torch.int64, device=accelerator.device)
    return bool(accelerator.gather(well).min())


def _publish(partial: Path, final: Path) -> None:
    """Every byte on the disk first, then the name under which it is found."""
    for path in partial.rglob("*"):
        if path.is_file():
            _sync(path)
    _sync(partial)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rotate(output_dir: Path, total_limit: int | None) -> None:
    if total_limit is not None:
        for old in list_checkpoints(output_dir)[:-total_limit]:
            shutil.rmtree(old)
