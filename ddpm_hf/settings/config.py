"""All settings of a run."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from .arguments import DataArguments, ModelArguments, OptimizationArguments, ProcessArguments, RunArguments
from .hub_arguments import HubArguments

ARGUMENT_GROUPS = (DataArguments, ModelArguments, ProcessArguments, OptimizationArguments, RunArguments, HubArguments)

DEFAULTS = {entry.name: entry.default for group in ARGUMENT_GROUPS for entry in dataclasses.fields(group)}

# Not recorded: whoever repeats a run from its settings must not push to the same page.
HUB_FLAGS = frozenset(entry.name for entry in dataclasses.fields(HubArguments))

# These never change the weights, so a run may continue with other values. Of batch size, accumulation and number of
# processes only the product matters, and the summary records it, as it does the size of the images, on which
# `--upsampling` bears. Latents that are kept differ from others by the rounding to half precision alone.
NOT_PART_OF_THE_RESULT = frozenset(
    "cache_dir dataloader_num_workers train_batch_size gradient_accumulation_steps output_dir overwrite_output_dir "
    "resume_from_checkpoint checkpointing_steps checkpoints_total_limit preview_steps save_images_epochs "
    "save_model_epochs max_train_time max_bad_steps preview_images preview_inference_steps preview_guidance_scale "
    "validation_prompts report_to logging_dir "
    "logging_steps dry_run eval_steps eval_metrics eval_num_images eval_inference_steps eval_extractor save_best_by "
    "eval_clip_model num_cpu_threads stage upsampling cache_latents".split()
).union(HUB_FLAGS)


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of one run; the flags are the attributes of its groups, with unique names."""

    data: DataArguments
    model: ModelArguments
    process: ProcessArguments
    optimization: OptimizationArguments
    run: RunArguments
    hub: HubArguments = dataclasses.field(default_factory=HubArguments)

    @property
    def start(self) -> str:
        """What a model to start from is called in messages."""
        return "--init_from" if self.model.init_from is not None else "the model in --output_dir"

    def flags(self) -> dict[str, Any]:
        """Every flag and its value."""
        return {name: value for group in self._groups() for name, value in dataclasses.asdict(group).items()}

    def with_values(self, values: dict[str, Any]) -> "Config":
        """These settings with other values; a name that is no flag is ignored."""
        groups = {}
        for entry in dataclasses.fields(self):
            group = getattr(self, entry.name)
            changes = {flag.name: values[flag.name] for flag in dataclasses.fields(group) if flag.name in values}
            groups[entry.name] = dataclasses.replace(group, **changes)
        return Config(**groups)

    def filled(self, values: dict[str, Any]) -> "Config":
        """These settings, with values for those that are still None."""
        flags = self.flags()
        return self.with_values({name: value for name, value in values.items() if flags.get(name) is None})

    def _groups(self) -> tuple[Any, ...]:
        return (self.data, self.model, self.process, self.optimization, self.run, self.hub)
