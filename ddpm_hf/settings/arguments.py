"""Every setting of a training run, as dataclasses that `HfArgumentParser` turns into flags.

A flag left at `None` is filled in by `resolve`: from the preset, else as its help text says.
Names follow diffusers' `train_unconditional.py` where it has the setting.
"""

from dataclasses import dataclass
from typing import Literal

from ..flags import flag, switch
from ..models.presets import PRESETS

BETA_SCHEDULES = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
VARIANCE_TYPES = Literal["fixed_small", "fixed_large", "learned", "learned_range"]
LR_SCHEDULERS = Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]
TRACKERS = Literal["none", "tensorboard", "wandb", "trackio", "all"]


@dataclass(frozen=True, kw_only=True)
class DataArguments:
    """Which images, and how they become pixels in [-1, 1]."""

    _argument_group_name = "data"

    dataset_name: str | None = flag(
        help="A data set on the Hub, or a folder or file that HF datasets can read. Without it and "
        "--train_data_dir, the bundled handwritten digits are used."
    )
    dataset_config_name: str | None = flag(
        help="The configuration of the data set, if it has several; of the captioned digits coloured or placed."
    )
    train_data_dir: str | None = flag(help="A folder of images, with or without sub-folders or metadata.")
    dataset_split: str | None = flag(help="The split to train on; slices such as train[:10%%] work too.")
    image_column: str | None = flag(help="The image column; by default found by its type.")
    label_column: str | None = flag(help="The class label column; by default found by its type.")
    caption_column: str | None = flag(
        help="The column of captions, one or several a row; by default found by its type and name."
    )
    init_caption_from_labels: str | None = flag(
        help='Make captions of class names by this template, e.g. "a photo of a {}". stable-diffusion takes {}, the '
        "names themselves, if the data have classes and no captions; without classes, or with an empty template, it "
        "learns without captions."
    )
    streaming: bool = flag(
        False,
        help="Stream the data set instead of storing it on disk. Every process (and every data worker) reads the "
        "whole stream and decodes its own share; a resumed run first rereads its epoch up to where it stopped.",
    )
    shuffle_buffer: int = flag(1000, help="Rows per shuffled block when streaming.")
    cache_dir: str | None = flag(help="Where to keep downloads and decoded pixels.")
    resolution: str | None = flag(
        help="N or HxW (height x width): images are resized to cover it, then cropped. Of glide and imagen also both "
        "stages' sides, such as 64,256."
    )
    channels: int | None = flag(help="1 (grey), 3 (RGB) or 4 (RGBA); by default deduced from the images.")
    center_crop: bool = flag(False, help="Crop the centre instead of a random region.")
    random_flip: bool | None = switch(help="Randomly flip images left to right.")
    holdout: float | None = flag(
        help="Images held out of training for evaluation: a fraction below 1 or a number; 0 for none. By default the "
        "data set's test or validation split, else 10 %%, at most 5,000."
    )
    skip_unreadable: bool = flag(False, help="Skip unreadable images and list them, instead of stopping.")
    dataloader_num_workers: int = flag(0, help="Processes that prepare batches; 0 to do it in the main process.")

    @property
    def is_bundled(self) -> bool:
        """Whether they are those that come with the package."""
        return self.dataset_name is None and self.train_data_dir is None


@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    """The network."""

    _argument_group_name = "model"

    system: Literal["ddpm", "glide", "imagen", "stable-diffusion", "dalle2"] = flag(
        "ddpm",
        help="ddpm: images, or images of a class. glide: images told a caption, with a text encoder. imagen: the same "
        "with a frozen one, and an upsampler that is told how much noise its small picture has. "
        "stable-diffusion: the same on the latents of an autoencoder, which is trained first. "
        "dalle2: images of what a CLIP sees in them, which a prior guesses from the caption; all three are trained.",
    )
    stage: list[str] | None = flag(
        help="Of glide, one or more of base, upsampler and inpainting, trained in this order; by default the first "
        "two, and with --init_from base. All settings given are for each of them: train one after the other to give "
        "them different ones. The upsampler enlarges pictures of the finished base in --output_dir, whose text "
        "encoder it takes, into --output_dir/upsampler. inpainting fine-tunes that base, or the model of "
        "--init_from, to draw a part of a picture, into --output_dir/inpainting, by default for 500 steps in "
        "glide-digits, 10000 in glide-64 and 100000 in glide-paper. Of imagen, one or both of base and "
        "super-resolution, which is to it what the upsampler is to glide. Of stable-diffusion, one or both of "
        "autoencoder, which is trained into --output_dir/autoencoder, and unet; by default both, and with --vae or "
        "--init_from unet; and inpainting, which gives that network, or the model of --init_from, five channels more, "
        "by default for 1000 steps in stable-diffusion-digits and 20000 in stable-diffusion-256. Of dalle2, one or "
        "more of clip, which is trained into --output_dir/clip, prior, into --output_dir/prior, decoder, and "
        "upsampler, which is like that of glide, but is told no caption; by default the first three, but with "
        "--clip_model no clip, and with --init_from decoder."
    )
    preset: str | None = flag(
        help="A named set of settings for model, process and training. By default digits for the bundled digits, "
        "else small-32 up to 40 pixels and small-64 above, with as many levels as the resolution allows halvings; "
        "glide-digits or glide-64, imagen-digits or imagen-64-256, stable-diffusion-digits or stable-diffusion-256, "
        "and dalle2-digits or dalle2-64-256, for these systems. "
        + " ".join(f"{name}: {preset.description}." for name, preset in PRESETS.items())
    )
    model_config_name_or_path: str | None = flag(
        help="A U-Net configuration: a folder or Hub name with a config.json."
    )
    init_from: str | None = flag(
        help="Fine-tune: start from the weights, architecture and process of a pipeline (folder or Hub name).",
        aliases=("--pretrained_model_name_or_path",),
    )
    vae: str | None = flag(
        help="An autoencoder for stable-diffusion, kept as it is: a folder or Hub name of an AutoencoderKL, or of a "
        "model that has one. By default that in --output_dir/autoencoder."
    )
    clip_model: str | None = flag(
        help="A CLIP for dalle2, kept as it is: a folder or Hub name of a CLIPModel with its tokenizer and image "
        "processor, or of a CLIP trained here. By default that in --output_dir/clip."
    )
    clip_width: int | None = flag(help="Channels of the part of a CLIP that looks at pictures, a multiple of 32.")
    clip_layers: int | None = flag(help="Its layers.")
    patch_size: int | None = flag(help="Height and width of its patches, of which --resolution is a multiple.")
    prior_width: int | None = flag(help="Channels of dalle2's prior, a multiple of 32.")
    prior_layers: int | None = flag(help="Layers of dalle2's prior.")
    embedding_width: int | None = flag(
        help="Numbers in an embedding of a CLIP that is trained. The prior needs as many as --text_width."
    )
    lora_rank: int | None = flag(
        help="Train only adapters of this rank (LoRA); saved alone and in the weights. Needs peft.",
        aliases=("--rank",),
    )
    cache_latents: bool = flag(
        True,
        help="Encode pictures once, and keep what the autoencoder or CLIP makes of them beside their pixels. With "
        "--no_cache_latents, and always for streams and random crops, it is done in each step.",
    )
    base_channels: int | None = flag(help="Channels of the first level.")
    channel_multipliers: list[int] | None = flag(help="Channels of each level as multiples of --base_channels.")
    blocks_per_level: int | None = flag(help="Residual blocks per level.")
    efficient_unet: bool | None = switch(
        help="Of glide and imagen: more of the residual blocks at the lower levels, and scaled sums, as in Imagen's "
        "Efficient U-Net; --blocks_per_level is that of the first level. An upsampler's attention is then to the "
        "caption alone."
    )
    latent_channels: int | None = flag(help="Channels of an autoencoder's latents.")
    attention_resolutions: list[int] | None = flag(help="Feature map sizes with self-attention.")
    dropout: float | None = flag(help="Dropout in the residual blocks, 0 to 1.")
    class_conditional: bool = flag(False, help="Condition on class labels; needs labelled data.")
    condition_dropout: float | None = flag(
        help="Fraction of images trained without their class or caption; 0, for classes only, rules out guidance."
    )
    text_encoder: str | None = flag(
        help="train: a small one, learned with the U-Net. taught: the same, taught the captions' wordings once and "
        "then kept as it is. A folder or Hub name: an encoder of transformers, such as T5, CLIP or BERT, kept as it "
        "is. frozen: that of --init_from or of the base of --stage inpainting, kept as it is. By default train, or "
        "taught in imagen-digits and google/t5-v1_1-base in imagen-64-256, or frozen for an Imagen of --init_from and "
        "for a Stable Diffusion whose encoder was not learned here."
    )
    clip_skip: int | None = flag(help="Last layers to leave out of CLIP's text encoder, in the saved model too.")
    text_width: int | None = flag(help="Channels of a text encoder that is learned, a CLIP's too: a multiple of 32.")
    text_layers: int | None = flag(help="Layers of the text encoder.")
    text_warmup_steps: int | None = flag(
        help="Steps of 64 captions in which a text encoder that is learned or taught is taught the captions' wordings "
        "before the U-Net is trained; 0 for none."
    )
    text_length: int | None = flag(
        help="Tokens of a caption, padding included, for stable-diffusion and a CLIP; longer are cut. glide has 77."
    )
    text_rate: float | None = flag(help="Learning rate of the text encoder, as a multiple of --learning_rate.")
    upsampling: int | None = flag(
        help="Factor by which the upsampler of glide, imagen or dalle2 enlarges. --resolution is that of the small "
        "pictures, or, but for dalle2, of both, such as 64,256. By default 2 in glide-digits, imagen-digits and "
        "dalle2-digits, else 4."
    )
    gradient_checkpointing: bool = flag(
        False, help="Save memory in the U-Net, but not in a text encoder, for about 20 %% more time."
    )
    compile: bool = flag(False, help="torch.compile the network's blocks; the first steps take longer.")


@dataclass(frozen=True, kw_only=True)
class ProcessArguments:
    """The diffusion process."""

    _argument_group_name = "process"

    num_train_timesteps: int | None = flag(help="T, the number of noise levels.", aliases=("--ddpm_num_steps",))
    beta_schedule: BETA_SCHEDULES | None = flag(help="How the noise grows.", aliases=("--ddpm_beta_schedule",))
    beta_start: float | None = flag(help="The first beta, by default scaled by 1000/T. Unused by squaredcos_cap_v2.")
    beta_end: float | None = flag(help="The last beta, by default scaled by 1000/T. Unused by squaredcos_cap_v2.")
    prediction_type: Literal["epsilon", "sample", "v_prediction"] | None = flag(
        help="What the network predicts: the noise (epsilon), the image (sample), or v."
    )
    variance_type: VARIANCE_TYPES | None = flag(help="The variance of the reverse steps.")
    rescale_betas_zero_snr: bool | None = switch(
        help="Rescale to zero terminal SNR: the last timestep is pure noise. Not with epsilon or --loss_weighting."
    )
    thresholding: bool | None = switch(
        help="Dynamic thresholding (Imagen) when sampling: each image's predicted x_0 is clipped to a percentile of "
        "its absolute values, if that is above 1, and divided by it, where guidance would saturate pixels."
    )
    dynamic_thresholding_ratio: float | None = flag(help="That percentile as a fraction.")
    sample_max_value: float | None = flag(help="The largest value that it may be.")


@dataclass(frozen=True, kw_only=True)
class OptimizationArguments:
    """Loss, optimizer and schedules. Everything is counted in optimizer steps."""

    _argument_group_name = "optimization"

    loss: Literal["simple", "vlb", "hybrid"] | None = flag(
        help="simple: squared error; vlb: the variational bound; hybrid: both. By default simple, or hybrid with a "
        "learned variance."
    )
    rec_loss: Literal["l1", "l2"] | None = flag(
        help="Error of an autoencoder's reconstructions: absolute (l1) or squared (l2)."
    )
    kl_weight: float | None = flag(
        help="Weight of an autoencoder's KL divergence, summed over a latent, beside the error summed over a picture.",
        aliases=("--kl_scale",),
    )
    perceptual: Literal["none", "lpips"] | None = flag(
        help="Perceptual distance that is added to the error of an autoencoder's reconstructions: lpips, of VGG16, "
        "which needs pip install lpips torchvision and downloads weights."
    )
    adversarial_start: int | None = flag(
        help="Optimizer step from which an autoencoder's reconstructions also have to look real to a discriminator of "
        "patches, which is trained with it. By default never.",
        aliases=("--disc_start",),
    )
    adversarial_weight: float | None = flag(
        help="What the discriminator's gradient in the last layer is, as a multiple of the error's; 0 for no "
        "discriminator.",
        aliases=("--disc_scale",),
    )
    loss_weighting: Literal["none", "min_snr", "p2"] | None = flag(help="Weighting of the squared error by timestep.")
    snr_gamma: float | None = flag(help="The gamma of --loss_weighting min_snr, which it implies; 5 is usual.")
    noise_offset: float | None = flag(help="Add this times a normal number to the noise of each channel as a whole.")
    timestep_sampling: Literal["uniform", "stratified", "importance"] | None = flag(
        help="uniform: as in the paper; stratified: spread evenly over the batch; importance: more often where the "
        "loss is large."
    )
    max_train_steps: int | None = flag(help="Optimizer steps. Give this or --num_epochs.")
    max_train_time: str | None = flag(
        help="Save and stop after this time: seconds, M:SS or H:MM:SS. The same command continues from there."
    )
    max_bad_steps: int = flag(
        20, help="Stop after this many NaN or infinite gradients in a row; checked every --logging_steps."
    )
    num_epochs: int | None = flag(help="Passes over the training images.", aliases=("--num_train_epochs",))
    train_batch_size: int | None = flag(help="Images per device and micro-step.")
    gradient_accumulation_steps: int = flag(1, help="Micro-steps per optimizer step.")
    learning_rate: float | None = flag(help="Peak learning rate.")
    lr_scheduler: LR_SCHEDULERS | None = flag(help="Learning rate schedule.")
    lr_warmup_steps: int | None = flag(help="Optimizer steps of linear warm-up.")
    lr_num_cycles: int = flag(1, help="Cycles of cosine_with_restarts.")
    lr_power: float = flag(1.0, help="Power of polynomial decay.")
    adam_beta1: float | None = flag(help="Decay of Adam's average of the gradient.")
    adam_beta2: float | None = flag(help="Decay of Adam's average of the squared gradient.")
    adam_weight_decay: float | None = flag(help="Decoupled weight decay.")
    adam_epsilon: float | None = flag(help="Added to Adam's denominator.")
    use_8bit_adam: bool = flag(
        False, help="Keep Adam's averages in 8 bits, in a quarter of the memory. Needs bitsandbytes."
    )
    max_grad_norm: float | None = flag(help="Clip gradients to this global norm.")
    use_ema: bool = flag(True, help="Keep a moving average of the weights; samples and the saved pipeline use it.")
    ema_decay: float | None = flag(help="The highest decay of the average.", aliases=("--ema_max_decay",))
    ema_warmup: bool | None = switch(help="Start with a lower decay: 1 - (1 + n/inv_gamma)^-power after n steps.")
    ema_inv_gamma: float = flag(1.0, help="See --ema_warmup.")
    ema_power: float = flag(0.75, help="See --ema_warmup.")
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = flag(
        "auto", help="auto: that of accelerate launch, else bf16 if native, else no. Noise and weights stay float32."
    )
    seed: int = flag(0, help="Seed of all randomness in the run.")


@dataclass(frozen=True, kw_only=True)
class MachineArguments:
    """Use of the machine; shared with `scripts/sample.py` and `scripts/evaluate.py`."""

    _argument_group_name = "machine"

    num_cpu_threads: int | None = flag(
        help="CPU threads per process. By default OMP_NUM_THREADS if you set it, else the physical cores divided by "
        "the number of processes; one process leaves out cores that other programs keep busy."
    )


@dataclass(frozen=True, kw_only=True)
class RunArguments(MachineArguments):
    """Where results go, and what is saved and measured on the way."""

    _argument_group_name = "run"

    output_dir: str = flag("ddpm-model", help="Folder for the pipeline, its card, curves and checkpoints.")
    overwrite_output_dir: bool = flag(
        False, help="Delete the run in --output_dir, of a base with upsampler/ and inpainting/ in it, and start over."
    )
    resume_from_checkpoint: str | None = flag(help="A checkpoint or 'latest'. The same command resumes by itself.")
    checkpointing_steps: int = flag(500, help="Optimizer steps between checkpoints.")
    checkpoints_total_limit: int | None = flag(2, help="How many checkpoints to keep.")
    preview_steps: int | None = flag(help="Optimizer steps between previews, 0 for none. By default 1/5 of the run.")
    save_images_epochs: int | None = flag(
        help="Epochs between previews, instead of --preview_steps.", aliases=("--validation_epochs",)
    )
    save_model_epochs: int | None = flag(help="Epochs between saves of the pipeline; it is always saved at the end.")
    preview_images: int = flag(16, help="Images in a preview.", aliases=("--eval_batch_size",))
    validation_prompts: list[str] | None = flag(
        help="Captions to draw in previews; by default some of the data set.", aliases=("--validation_prompt",)
    )
    preview_guidance_scale: float | None = flag(help="Guidance of previews and of scored samples.")
    preview_inference_steps: int = flag(
        50, help="Denoising steps of a preview.", aliases=("--ddpm_num_inference_steps",)
    )
    eval_steps: int | None = flag(
        help="Steps between scores on held-out images; by default only bits/dim at the end, or, for an autoencoder "
        "or a CLIP, all of --eval_metrics."
    )
    eval_metrics: list[str] | None = flag(
        help="One or more of nll, frechet, kid, prdc, is, prompt, clip, reconstruction, retrieval, prior (see "
        "scripts/evaluate.py)."
    )
    eval_num_images: int = flag(500, help="Number of samples to score, and at most as many held-out images.")
    eval_inference_steps: int = flag(50, help="Denoising steps per scored sample, or terms of the bound per image.")
    eval_extractor: str | None = flag(
        help="Features for frechet, kid, prdc and is: digits, inception, inception:FILE, transformers:NAME or "
        "efficientnet-lite0. By default digits for the bundled digits."
    )
    eval_clip_model: str | None = flag(help="CLIP for --eval_metrics clip, a folder or Hub name, as for --clip_model.")
    save_best_by: str | None = flag(help="Keep the pipeline that is best by this figure in best/, e.g. bits_per_dim.")
    report_to: TRACKERS = flag("none", help="Experiment tracker, through Accelerate.", aliases=("--logger",))
    logging_dir: str = flag("logs", help="Folder for the tracker's files, inside --output_dir.")
    logging_steps: int = flag(10, help="Optimizer steps between lines of the loss table.")
    dry_run: bool = flag(False, help="Print what the run would do and exit.")
