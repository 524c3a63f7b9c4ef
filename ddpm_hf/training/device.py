"""The Accelerator of a run: precision, accumulation, trackers."""

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration

from .config import Config


def native_precision(device: torch.device) -> str:
    """ "bf16" where the device has instructions for it, else "no": emulated, it is slower than float32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    if device.type == "cpu":
        return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "no"
    return "no"


def make_accelerator(config: Config) -> Accelerator:
    """The Accelerator for these settings; fills in what `--mixed_precision auto` means on this device."""
    options = config.optimization
    if options.mixed_precision == "auto":
        options.mixed_precision = native_precision(PartialState().device)
    output_dir, trackers = config.run.output_dir, config.run.report_to
    return Accelerator(
        mixed_precision=options.mixed_precision,
        # The data never end in the middle of an optimizer step, and accelerate sees no loader of ours.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=options.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        log_with=None if trackers == "none" else trackers,
        project_config=ProjectConfiguration(
            project_dir=output_dir, logging_dir=f"{output_dir}/{config.run.logging_dir}"
        ),
    )
