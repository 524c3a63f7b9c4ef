"""Checkpoints: written to a partial folder and renamed when complete, so that every one present can be loaded."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from ..files import sync

# A weight that a network uses twice is saved once, which Accelerate would warn about.
logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)

_NAME = re.compile(r"checkpoint-(\d+)$")
_PARTIAL, _REPLACED = ".partial", ".replaced"


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [(int(match[1]), path) for path in output_dir.glob("checkpoint-*") if (match := _NAME.match(path.name))]
    return [path for _, path in sorted(found)]


def remove_partial_checkpoints(output_dir: Path) -> None:
    """Remove what a killed process left half-written or half-removed."""
    for path in output_dir.glob(f"checkpoint-*{_REPLACED}"):
        final = path.with_suffix("")
        if not final.exists():  # killed between the two renames of `_publish`
            path.rename(final)
    for suffix in (_PARTIAL, _REPLACED):
        for path in output_dir.glob(f"checkpoint-*{suffix}"):
            shutil.rmtree(path, ignore_errors=True)


def find_checkpoint(output_dir: Path, wanted: str | None) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` names: "latest", a folder, or the name of one in `output_dir`.

    If it names none, the newest, or None if there is none.

    Raises:
        ValueError: if there is no such checkpoint, naming those that exist.
    """
    present = list_checkpoints(output_dir)
    if wanted in (None, "latest") and present:
        return present[-1]
    if wanted is None:
        return None
    for path in (Path(wanted), output_dir / wanted):
        if wanted != "latest" and (path / "progress.json").is_file():
            return path
    names = ", ".join(path.name for path in present) or "none"
    raise ValueError(f"--resume_from_checkpoint must name a checkpoint, got {wanted}; {output_dir} has: {names}")


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: Path,
    progress: dict,
    tensors: dict[str, dict[str, torch.Tensor]],
    total_limit: int | None,
) -> bool:
    """Write `checkpoint-<step>`: everything that does not follow from (seed, step). Called by every process.

    Args:
        accelerator: holds model, optimizer and gradient scaler.
        output_dir: the folder of checkpoints.
        progress: JSON-able state of the run; `progress["step"]` counts finished optimizer steps.
        tensors: further state, one file per name.
        total_limit: how many checkpoints to keep; None for all.

    Returns:
        Whether it was written. If not (the disk is full, say), the reason is printed and the older checkpoints stay.
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
                f"the checkpoint at step {progress['step']} was not saved; older ones stay, and the run continues "
                f"({free / 1e6:,.1f} MB free in {output_dir})"
            )
    accelerator.wait_for_everyone()
    return written


def load_checkpoint(accelerator: Accelerator, folder: Path) -> tuple[dict, dict[str, dict[str, torch.Tensor]]]:
    """Load a checkpoint into the prepared objects; returns its `progress` and further `tensors`."""
    accelerator.load_state(str(folder))
    # The count of micro-steps: a step may have another number of them now, and a process that did not exist at the
    # last save has none. They would disagree on where a step ends and wait for each other for ever.
    accelerator.step = 0
    progress = json.loads((folder / "progress.json").read_text())
    return progress, {name: load_file(folder / f"{name}.safetensors") for name in progress["tensors"]}


def _well_done(accelerator: Accelerator, action: Callable[[], object], everywhere: bool = True) -> bool:
    """Run `action` in every process or the main one alone, and return whether all succeeded; failures are printed.

    torch reports a failed write as RuntimeError, safetensors with an exception of its own.
    """
    well = True
    if everywhere or accelerator.is_main_process:
        try:
            action()
        except Exception as error:
            well = False
            tqdm.write(f"cannot write a checkpoint: {type(error).__name__}: {' '.join(str(error).split())[:500]}")
    return bool(accelerator.gather(torch.tensor([well], dtype=torch.int64, device=accelerator.device)).min())


def _publish(partial: Path, final: Path) -> None:
    """Sync every file to disk, then rename; at any instant a complete checkpoint exists."""
    sync(*partial.rglob("*"), partial)
    replaced = final.with_name(final.name + _REPLACED)
    if final.exists():  # the run went back to an earlier checkpoint
        final.rename(replaced)
    partial.rename(final)
    sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _rotate(newest: Path, total_limit: int | None) -> None:
    """Remove the oldest. The newest stays, even if the run went back and others have higher numbers."""
    if total_limit is None:
        return
    others = [path for path in list_checkpoints(newest.parent) if path != newest]
    for old in others[: max(0, len(others) - total_limit + 1)]:
        # Renamed first, so that a kill leaves no incomplete folder under a checkpoint's name.
        shutil.rmtree(old.rename(old.with_name(old.name + _PARTIAL)), ignore_errors=True)
