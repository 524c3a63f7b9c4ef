"""The way to the first step: everything that can be known to be wrong is found here, before anything is written."""

from accelerate import Accelerator

from .config import Config
from .device import make_accelerator
from .images import TrainingImages
from .loop import Trainer
from .output import OutputFolder
from .plan import Plan, make_plan
from .publish import Publisher, page_for


def prepare(config: Config) -> Trainer | None:
    """A trainer at its first or next step; None if there is nothing to do (the run is finished, or `--dry_run`).

    Raises:
        ValueError: for settings, data or an output folder that do not go together, naming the argument.
    """
    output = OutputFolder(config.run.output_dir)
    output.check_is_ours(config.run.overwrite_output_dir)
    accelerator = make_accelerator(config)
    page = None
    if config.hub.push_to_hub and accelerator.is_main_process and not config.run.dry_run:
        page = page_for(config.hub, output.path)
    plan = make_plan(config, accelerator)
    accelerator.print(describe(plan, accelerator))
    if config.run.dry_run:
        return None
    # One process looks at the folder and changes it; the others read what it left.
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            output.lock()
        else:
            config.run.overwrite_output_dir = False
        summary = output.open(config, plan.facts)
    if summary["status"] == "finished":
        accelerator.print(f"this run is finished: {summary['steps']} steps; its results are in {output.path}")
        if page is not None:
            Publisher(config, output, page, print).finish()
        output.unlock()
        return None
    if config.run.report_to != "none":
        settings = {name: str(value) for name, value in config.flags().items()}
        accelerator.init_trackers("ddpm_hf", settings)
    return Trainer(plan, accelerator, output, summary, page)


def describe(plan: Plan, accelerator: Accelerator) -> str:
    """The run in a few lines, before its first step."""
    options, images, process = plan.config.optimization, plan.images, plan.scheduler.config
    channels, height, width = images.shape
    batch = plan.facts["global_batch_size"]
    classes = f", {len(plan.id2label)} classes" if plan.id2label is not None else ""
    epochs = "" if images.count is None else f" ({plan.steps * batch / images.count:.1f} epochs)"
    lines = {
        "data": f"{images.source.name}, {images.count or 'a stream of'} images of {width}x{height}, "
        f"{channels} channel{'s' * (channels > 1)}{classes}; {_held_out(images)}",
        "model": f"{plan.facts['parameters']:,} parameters, channels {tuple(plan.unet.config.block_out_channels)}",
        "process": f"T = {process.num_train_timesteps}, {process.beta_schedule}, predicts {process.prediction_type}",
        "training": f"{plan.steps} steps of {batch} images{epochs}, "
        f"learning rate {options.learning_rate:g} {options.lr_scheduler}",
        "machine": f"{accelerator.num_processes} process(es) on {accelerator.device.type}, "
        f"precision {options.mixed_precision}",
        "output": plan.config.run.output_dir,
    }
    return "\n".join(f"{name:>9}: {text}" for name, text in lines.items())


def _held_out(images: TrainingImages) -> str:
    holdout = images.holdout
    if holdout.split is not None:
        return f"its {holdout.split} split is held out"
    if holdout.threshold == 0:
        return "nothing held out"
    return f"{holdout.threshold / 2**64:.1%} held out"
