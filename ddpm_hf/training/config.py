"""Every setting of a training run, as documented dataclasses of which `HfArgumentParser` makes the flags.

`None` means that `plan.py` fills the flag in once the data are known: from the preset if presets set it, else as the
help text says. Names are those of diffusers' `train_unconditional.py` wherever it has one.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from ..data.transforms import parse_resolution
from ..evaluation.quality import QUALITY_METRICS
from ..hub.folder import RECORDED as RECORDED
from ..models.presets import PRESETS
from .interruption import parse_duration

BETA_SCHEDULES = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
VARIANCE_TYPES = Literal["fixed_small", "fixed_large", "learned", "learned_range"]
LR_SCHEDULERS = Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]
TRACKERS = Literal["none", "tensorboard", "wandb", "trackio", "all"]


def flag(default: Any = None, help: str = "", aliases: tuple[str, ...] = (), **metadata: Any) -> Any:
    """A dataclass field that becomes a command-line flag with this help text."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help, "aliases": list(aliases)})
    return field(default=default, metadata={"help": help, "aliases": list(aliases), **metadata})


def switch(help: str) -> Any:
    """A flag that is true when given without a value, and that a preset may set when it is not given."""
    return flag(help=help, nargs="?", const=True)


@dataclass(kw_only=True)
class DataArguments:
    """Which images, and how they become pixels in [-1, 1]."""

    _argument_group_name = "data"

    dataset_name: str | None = flag(
        help="A data set on the Hub, or a folder or file that HF datasets can read. Without it and without "
        "--train_data_dir the embedded handwritten digits are used."
    )
    dataset_config_name: str | None = flag(help="The configuration of the data set, if it has several.")
    train_data_dir: str | None = flag(help="A folder of images, with or without sub-folders or metadata.")
    dataset_split: str | None = flag(help="The split to train on, slices such as train[:10%%] included.")
    image_column: str | None = flag(help="The column of images; found by its type when not given.")
    label_column: str | None = flag(help="The column of class labels; found by its type when not given.")
    streaming: bool = flag(
        False,
        help="Read the data set as a stream: nothing is stored on disk. Each process, or each of its data workers, "
        "reads all of it and decodes only its own images; a resumed run first reads its epoch again up to there.",
    )
    shuffle_buffer: int = flag(1000, help="Rows per shuffled block when streaming.")
    cache_dir: str | None = flag(help="Where downloads and decoded pixels are kept.")
    resolution: str | None = flag(help="N or HxW: images are resized to cover it, then cropped.")
    channels: int | None = flag(help="1 (grey), 3 (RGB) or 4 (RGBA); deduced from the images when not given.")
    center_crop: bool = flag(False, help="Crop the centre instead of a random place.")
    random_flip: bool | None = switch(help="Flip images left to right at random.")
    holdout: float | None = flag(
        help="Images kept out of training for evaluation: a share below 1 or a number; 0 for none. By default the "
        "data set's own test or validation split, else 10 %%, at most 5,000."
    )
    skip_unreadable: bool = flag(False, help="Skip unreadable images and name them, instead of stopping.")
    dataloader_num_workers: int = flag(0, help="Processes that prepare batches; 0 for none beside the main process.")


@dataclass(kw_only=True)
class ModelArguments:
    """The network."""

    _argument_group_name = "model"

    preset: str | None = flag(
        help="A named set of settings for model, process and training. Without one: digits for the embedded digits, "
        "else small-32 up to 40 pixels and small-64 above, with as many levels as the resolution can be halved for. "
        + " ".join(f"{name}: {preset.description}." for name, preset in PRESETS.items())
    )
    model_config_name_or_path: str | None = flag(
        help="The configuration of a U-Net: a folder or a Hub name with its config.json."
    )
    init_from: str | None = flag(
        help="Fine-tune: start from the weights, architecture and process of a DDPM pipeline, a folder or a Hub name."
    )
    base_channels: int | None = flag(help="Channels of the first level.")
    channel_multipliers: list[int] | None = flag(help="Channels of each level, in multiples of the first.")
    blocks_per_level: int | None = flag(help="Residual blocks per level.")
    attention_resolutions: list[int] | None = flag(help="Feature map sizes at which there is self-attention.")
    dropout: float | None = flag(help="Dropout in the residual blocks, 0 to 1.")
    class_conditional: bool = flag(False, help="Learn to draw a class asked for; needs labelled data.")
    condition_dropout: float = flag(
        0.1, help="Share of images whose class is hidden in training, which guidance needs. 0 gives no guidance."
    )
    gradient_checkpointing: bool = flag(False, help="Less memory for about a fifth more time.")
    compile: bool = flag(False, help="torch.compile the network's blocks; the first steps wait for it.")


@dataclass(kw_only=True)
class ProcessArguments:
    """The diffusion process."""

    _argument_group_name = "process"

    num_train_timesteps: int | None = flag(help="T, the number of noise levels.", aliases=("--ddpm_num_steps",))
    beta_schedule: BETA_SCHEDULES | None = flag(help="How the noise grows.", aliases=("--ddpm_beta_schedule",))
    beta_start: float | None = flag(help="The first beta. By default times 1000/T; squaredcos_cap_v2 has none.")
    beta_end: float | None = flag(help="The last beta. By default times 1000/T; squaredcos_cap_v2 has none.")
    prediction_type: Literal["epsilon", "sample", "v_prediction"] | None = flag(
        help="What the network predicts: the noise (epsilon), the image (sample), or v."
    )
    variance_type: VARIANCE_TYPES | None = flag(help="The variance of the reverse steps.")
    rescale_betas_zero_snr: bool | None = switch(
        help="The last timestep is pure noise; not with epsilon or a --loss_weighting."
    )


@dataclass(kw_only=True)
class OptimizationArguments:
    """How it learns. Everything is counted in optimizer steps."""

    _argument_group_name = "optimization"

    loss: Literal["simple", "vlb", "hybrid"] | None = flag(
        help="simple: square error; vlb: the bound; hybrid: both. By default simple; hybrid with a learned variance."
    )
    loss_weighting: Literal["none", "min_snr", "p2"] | None = flag(help="Weights of the square error by timestep.")
    timestep_sampling: Literal["uniform", "stratified", "importance"] | None = flag(
        help="uniform as in the paper; stratified: spread evenly over the batch; importance: where the loss is large."
    )
    max_train_steps: int | None = flag(help="Optimizer steps. Give this or --num_epochs.")
    max_train_time: str | None = flag(
        help="Save and stop after this time, in seconds, M:SS or H:MM:SS; the same command goes on from there."
    )
    max_bad_steps: int = flag(
        20, help="So many NaN or infinite gradients in a row end the run, with the next line of the loss table."
    )
    num_epochs: int | None = flag(help="Passes over the training images.", aliases=("--num_train_epochs",))
    train_batch_size: int | None = flag(help="Images per device and micro-step.")
    gradient_accumulation_steps: int = flag(1, help="Micro-steps per optimizer step.")
    learning_rate: float | None = flag(help="Peak learning rate.")
    lr_scheduler: LR_SCHEDULERS | None = flag(help="Course of the learning rate.")
    lr_warmup_steps: int | None = flag(help="Optimizer steps of linear warm-up.")
    lr_num_cycles: int = flag(1, help="Hard restarts of cosine_with_restarts.")
    lr_power: float = flag(1.0, help="Power of polynomial decay.")
    adam_beta1: float | None = flag(help="Decay of Adam's average of the gradient.")
    adam_beta2: float | None = flag(help="Decay of Adam's average of the squared gradient.")
    adam_weight_decay: float | None = flag(help="Decoupled weight decay.")
    adam_epsilon: float | None = flag(help="Added to Adam's denominator.")
    max_grad_norm: float | None = flag(help="Gradients are scaled to this global norm at most.")
    use_ema: bool = flag(True, help="Keep a moving average of the weights; samples and the saved pipeline use it.")
    ema_decay: float | None = flag(help="The highest decay of the average.", aliases=("--ema_max_decay",))
    ema_warmup: bool | None = switch(help="Start with a lower decay, 1 - (1 + n/inv_gamma)^-power after n steps.")
    ema_inv_gamma: float = flag(1.0, help="See --ema_warmup.")
    ema_power: float = flag(0.75, help="See --ema_warmup.")
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = flag(
        "auto", help="auto: bf16 where the device computes it natively, else no. Noise and weights stay float32."
    )
    seed: int = flag(0, help="All randomness of the run follows from it.")


@dataclass(kw_only=True)
class MachineArguments:
    """What a process takes of its machine. `scripts/sample.py` and `scripts/evaluate.py` take the same flag."""

    _argument_group_name = "machine"

    num_cpu_threads: int | None = flag(
        help="Threads of each process on a CPU. By default OMP_NUM_THREADS if you have set it, else the physical "
        "cores divided by the processes."
    )


@dataclass(kw_only=True)
class RunArguments(MachineArguments):
    """Where results go, and what is looked at on the way."""

    _argument_group_name = "run"

    output_dir: str = flag("ddpm-model", help="The pipeline, its card, curves and checkpoints.")
    overwrite_output_dir: bool = flag(False, help="Start anew in a folder that already has a run.")
    resume_from_checkpoint: str | None = flag(
        help="A checkpoint folder or 'latest'. The same command run again resumes by itself."
    )
    checkpointing_steps: int = flag(500, help="Optimizer steps between checkpoints.")
    checkpoints_total_limit: int | None = flag(2, help="How many checkpoints are kept.")
    preview_steps: int | None = flag(help="Optimizer steps between previews, 0 for none. A tenth of the run.")
    save_images_epochs: int | None = flag(help="Epochs between previews, instead of --preview_steps.")
    save_model_epochs: int | None = flag(help="Epochs between pipelines written to --output_dir; at the end anyway.")
    preview_images: int = flag(16, help="Images in a preview.", aliases=("--eval_batch_size",))
    preview_inference_steps: int = flag(
        50, help="Denoising steps of a preview.", aliases=("--ddpm_num_inference_steps",)
    )
    eval_steps: int | None = flag(
        help="Optimizer steps between scores on held-out images. Without it bits/dim are measured once, at the end."
    )
    eval_metrics: list[str] = flag(
        ["nll"], help="What is scored: nll, frechet, kid, prdc or is, as by scripts/evaluate.py; several if you like."
    )
    eval_num_images: int = flag(500, help="Samples that are scored, and at most as many held-out images.")
    eval_inference_steps: int = flag(50, help="Denoising steps of such a sample, or terms of the bound per image.")
    eval_extractor: str | None = flag(
        help="Features for all but nll: digits, inception, inception:FILE, transformers:NAME or efficientnet-lite0. "
        "For the embedded digits, digits."
    )
    save_best_by: str | None = flag(
        help="Keep the pipeline with the best of these figures in best/, such as bits_per_dim or frechet_distance."
    )
    report_to: TRACKERS = flag("none", help="Experiment tracker, through Accelerate.", aliases=("--logger",))
    logging_dir: str = flag("logs", help="Folder of the tracker's files, inside --output_dir.")
    logging_steps: int = flag(10, help="Optimizer steps between lines of the loss table.")
    dry_run: bool = flag(False, help="Print the plan of the run and stop.")


@dataclass(kw_only=True)
class PageArguments:
    """Which page of the Hub a model goes to. `scripts/push.py` takes the same flags."""

    _argument_group_name = "hub"

    hub_model_id: str | None = flag(help="user/name, or a name of your own; by default that of the folder.")
    hub_private_repo: bool = flag(False, help="The page is for your eyes only.")
    hub_license: str | None = flag(help="The licence on the card, as the Hub spells it, e.g. apache-2.0. Left open.")
    hub_token_file: str | None = flag(
        help="A file that holds the token. By default HF_TOKEN or the stored login. There is no --hub_token: other "
        "users of the machine can read a command line."
    )


@dataclass(kw_only=True)
class HubArguments(PageArguments):
    """Whether and when a run's model goes to the Hub."""

    push_to_hub: bool = flag(False, help="Push pipeline, card and pictures to the Hub.")
    hub_strategy: Literal["end", "checkpoint"] = flag(
        "end", help="Push at the end only, or in the background at every checkpoint too."
    )


ARGUMENT_GROUPS = (DataArguments, ModelArguments, ProcessArguments, OptimizationArguments, RunArguments, HubArguments)

# Where a model is published is no property of the run: who repeats it from its settings must not push to that page.
HUB_FLAGS = frozenset(entry.name for entry in dataclasses.fields(HubArguments))

# These change what is stored or shown, never the weights: a run may be continued with other values.
# Batch, accumulation and processes matter only by their product, which a run's summary holds.
NOT_PART_OF_THE_RESULT = frozenset(
    "cache_dir dataloader_num_workers train_batch_size gradient_accumulation_steps output_dir overwrite_output_dir "
    "resume_from_checkpoint checkpointing_steps checkpoints_total_limit preview_steps save_images_epochs "
    "save_model_epochs max_train_time max_bad_steps preview_images preview_inference_steps report_to logging_dir "
    "logging_steps dry_run eval_steps eval_metrics eval_num_images eval_inference_steps eval_extractor save_best_by "
    "num_cpu_threads".split()
).union(HUB_FLAGS)

MAX_SIDE = 8192  # a picture of more is a mistyped number

# (flag, lowest value, whether that value itself is allowed, highest value)
_RANGES = (
    ("shuffle_buffer", 1, True, None),
    ("dataloader_num_workers", 0, True, None),
    ("holdout", 0, True, None),
    ("dropout", 0, True, 1),
    ("condition_dropout", 0, True, 1),
    ("base_channels", 1, True, None),
    ("blocks_per_level", 1, True, 100),
    ("num_train_timesteps", 1, True, 1_000_000),
    ("beta_start", 0, False, 1),
    ("beta_end", 0, False, 1),
    ("max_train_steps", 1, True, None),
    ("max_bad_steps", 1, True, None),
    ("num_epochs", 1, True, None),
    ("train_batch_size", 1, True, 1_000_000),
    ("gradient_accumulation_steps", 1, True, None),
    ("learning_rate", 0, False, None),
    ("lr_warmup_steps", 0, True, None),
    ("lr_num_cycles", 1, True, None),
    ("adam_beta1", 0, True, 1),
    ("adam_beta2", 0, True, 1),
    ("adam_weight_decay", 0, True, None),
    ("adam_epsilon", 0, False, None),
    ("max_grad_norm", 0, False, None),
    ("ema_decay", 0, True, 1),
    ("ema_inv_gamma", 0, False, None),
    ("ema_power", 0, False, 1),
    ("seed", 0, True, None),
    ("checkpointing_steps", 1, True, None),
    ("checkpoints_total_limit", 1, True, None),
    ("preview_steps", 0, True, None),
    ("save_images_epochs", 1, True, None),
    ("save_model_epochs", 1, True, None),
    ("preview_images", 1, True, None),
    ("preview_inference_steps", 1, True, None),
    ("logging_steps", 1, True, None),
    ("eval_steps", 1, True, None),
    ("eval_num_images", 2, True, None),
    ("eval_inference_steps", 1, True, None),
)


@dataclass(kw_only=True)
class Config:
    """All settings of one run; each flag is an attribute of one of the groups and unique among them."""

    data: DataArguments
    model: ModelArguments
    process: ProcessArguments
    optimization: OptimizationArguments
    run: RunArguments
    hub: HubArguments = dataclasses.field(default_factory=HubArguments)

    def flags(self) -> dict[str, Any]:
        """Every flag and its value."""
        return {name: value for group in self._groups() for name, value in dataclasses.asdict(group).items()}

    def fill(self, values: dict[str, Any]) -> None:
        """Give a value to every flag named that has none yet."""
        for group in self._groups():
            for name in values.keys() & dataclasses.asdict(group).keys():
                if getattr(group, name) is None:
                    setattr(group, name, values[name])

    def check(self) -> None:
        """Raises ValueError for a value outside its range or two flags that contradict each other."""
        flags = self.flags()
        for name, low, low_allowed, high in _RANGES:
            value = flags[name]
            if value is None:
                continue
            too_low = value < low or (value == low and not low_allowed)
            # An infinite norm means that gradients are not clipped; nothing else means anything at infinity.
            infinite = value == math.inf and name != "max_grad_norm"
            if too_low or infinite or (high is not None and value > high) or value != value:
                bounds = f"{'at least' if low_allowed else 'more than'} {low}" + (f", at most {high}" if high else "")
                raise ValueError(f"--{name} is {value}; it must be {bounds}")
        for first, second in (
            ("dataset_name", "train_data_dir"),
            ("max_train_steps", "num_epochs"),
            ("preview_steps", "save_images_epochs"),
            ("preset", "init_from"),
            ("preset", "model_config_name_or_path"),
            ("init_from", "model_config_name_or_path"),
        ):
            if flags[first] is not None and flags[second] is not None:
                raise ValueError(
                    f"--{first} {flags[first]} and --{second} {flags[second]} contradict each other: give one of them"
                )
        if flags["max_train_time"] is not None:
            parse_duration(flags["max_train_time"])
        for name in ("hub_model_id", "hub_private_repo", "hub_token_file"):
            if flags[name] and not flags["push_to_hub"]:
                raise ValueError(f"--{name} does nothing without --push_to_hub: add that, or leave it out")
        if flags["save_best_by"] is not None and flags["eval_steps"] is None:
            raise ValueError(f"--save_best_by {flags['save_best_by']} needs --eval_steps")
        unknown = sorted(set(flags["eval_metrics"]) - {"nll", *QUALITY_METRICS})
        if unknown or not flags["eval_metrics"]:
            choices = ", ".join(("nll", *QUALITY_METRICS))
            raise ValueError(f"--eval_metrics has {', '.join(unknown) or 'nothing'}; choose from {choices}")
        if flags["resolution"] is not None and max(parse_resolution(flags["resolution"])) > MAX_SIDE:
            raise ValueError(f"--resolution is {flags['resolution']}; a side has at most {MAX_SIDE} pixels")
        if flags["channels"] not in (None, 1, 3, 4):
            raise ValueError(f"--channels is {flags['channels']}; choose 1 (grey), 3 (RGB) or 4 (RGBA)")

    def _groups(self) -> tuple[Any, ...]:
        return (self.data, self.model, self.process, self.optimization, self.run, self.hub)
