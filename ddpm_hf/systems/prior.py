"""The prior of DALL·E 2 (Ramesh et al. 2022, arXiv 2204.06125, §2.2): CLIP's embedding of a picture, drawn for a
caption.

The embeddings are standardised channel by channel, as stock `KandinskyV22PriorPipeline` expects, of which the paper
says nothing. A caption that is hidden is told as "", as that pipeline does when it guides.
"""

from functools import partial

from diffusers import PriorTransformer, UnCLIPScheduler

from ..codecs.embedding import EmbeddingCodec
from ..conditions.clip_prompt import ClipPrompt
from ..data.examples import TrainingImages
from ..diffusion.scheduler import LinearDDPMScheduler
from ..models.clip import Clip
from ..models.prior import new_prior
from ..pipelines.prior import PriorDenoiser, PriorPipeline
from ..portable import PRIOR_FOLDER
from ..seeds import seeded
from ..settings.config import Config
from ..settings.resolve import filled, with_level
from .autoencoder import first_batches
from .clip import check_in_colour, find_clip, place_of_clip, preset_of_all
from .ddpm import build_loss, build_scheduler, check_size
from .kept_pictures import keep_embeddings
from .system import Stage, System
from .text import build_prompt, on

# What stock's scheduler and pipeline have no choice of.
_FIXED = {
    "prediction_type": "sample",
    "beta_schedule": "squaredcos_cap_v2",
    "variance_type": "fixed_small",
    "rescale_betas_zero_snr": False,
    "loss": "simple",
}
# Standard deviations at which a predicted x_0 is clipped. By the CLIP of dalle2-digits, the embeddings of its 20,000
# training pictures went up to 3.9.
_RANGE = 10.0


def resolve_prior(config: Config, start: None = None) -> Config:
    """The settings with every one filled in, from the preset.

    Raises:
        ValueError: if they contradict each other or the prior, naming the argument.
    """
    preset, given = preset_of_all(config), config.flags()
    if place_of_clip(config) is None:  # it will be trained first
        states, width = (given[name] or preset.clip.model[name] for name in ("text_width", "embedding_width"))
        if states != width:
            raise ValueError(
                "--text_width must be --embedding_width for --stage prior, since a PriorTransformer takes states and "
                f"embeddings of captions in one width, got {states} and {width}"
            )
    config = filled(config.filled({"eval_metrics": ["prior"]}), preset.prior)
    config = with_level(config)
    flags = config.flags()
    for name, fixed in _FIXED.items():
        if flags[name] != fixed:
            raise ValueError(f"--{name} must be {fixed} for --stage prior, got {flags[name]}; leave it out")
    for name in ("num_train_timesteps", "eval_inference_steps"):
        if flags[name] < 2:  # with one step `UnCLIPScheduler` divides by zero
            raise ValueError(f"--{name} must be at least 2 for --stage prior, got {flags[name]}")
    if config.run.eval_metrics != ["prior"]:
        raise ValueError(
            f"--eval_metrics must be prior for --stage prior, which draws no pictures, got "
            f"{' '.join(config.run.eval_metrics)}; leave it out"
        )
    build_loss(config, build_scheduler(config, None))
    return config


def build_prior(config: Config, images: TrainingImages, start: None = None) -> System:
    """Network, process and objective on the embeddings of a CLIP, which is kept as it is.

    Raises:
        ValueError: CLIP, images, network and settings do not fit together, naming the argument.
    """
    check_in_colour("prior", images)
    clip = find_clip(config, images)
    _check_widths(clip)
    vision, text = clip.vision(), clip.text()
    tokenizer, length = clip.tokenizer, clip.length
    tokenizer.model_max_length = length  # by which stock's pipeline pads captions
    check_size(lambda: [_network(config, clip, length)])
    with seeded(config.optimization.seed, "initial weights"):
        prior = _network(config, clip, length)
    scheduler = build_scheduler(config, None)
    kept, source = keep_embeddings(config, images, vision, clip.processor)
    prompt, _ = build_prompt(config, images, (tokenizer, text), ClipPrompt, length=length)
    codec = EmbeddingCodec(
        shape=(clip.dimension,),
        mean=prior.clip_mean.data,  # filled in place
        std=prior.clip_std.data,
        encoder=vision,
        look=clip.look,
        kept=kept,
        source=source,
        training=partial(first_batches, images, config.optimization.train_batch_size),
    )

    def pipeline(network: PriorDenoiser) -> PriorPipeline:
        device = network.prior.device
        sampler = _stock_scheduler(scheduler)
        return PriorPipeline(network.prior, on(device, vision), on(device, text), tokenizer, sampler, clip.processor)

    return System(
        codec=codec,
        conditions=[prompt],
        network=PriorDenoiser(prior),
        scheduler=scheduler,
        loss=build_loss(config, scheduler),
        pipeline=pipeline,
        facts={"clip": f"one with the hash {clip.fingerprint}"},
    )


def _network(config: Config, clip: Clip, length: int) -> PriorTransformer:
    model = config.model
    shape = {"width": model.prior_width, "layers": model.prior_layers, "dropout": model.dropout}
    return new_prior(clip.dimension, length, **shape)


def _stock_scheduler(process: LinearDDPMScheduler) -> UnCLIPScheduler:
    """What stock's pipeline samples this process of a prior with."""
    return UnCLIPScheduler(
        num_train_timesteps=process.config.num_train_timesteps,
        prediction_type=process.config.prediction_type,
        clip_sample_range=_RANGE,
    )


def _check_widths(clip: Clip) -> None:
    """Raises ValueError for a CLIP whose states and embeddings of captions are not equally wide."""
    states = clip.model.config.text_config.hidden_size
    if states != clip.dimension:
        raise ValueError(
            "--clip_model must have states of captions as wide as its embeddings, for a PriorTransformer takes both "
            f"in one width, got {states} and {clip.dimension}"
        )


PRIOR_STAGE = Stage(
    name="prior",
    folder=PRIOR_FOLDER,
    by_default=lambda config: config.model.init_from is None,
    captioned=lambda config: True,
    start=lambda config: None,
    resolve=resolve_prior,
    build=build_prior,
)
