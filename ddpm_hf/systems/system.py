"""A system: all that training, sampling and evaluation need to know of what is trained."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from ..codecs.pixels import PixelCodec
from ..conditions.condition import Condition
from ..data.examples import TrainingImages
from ..diffusion.contrastive import ContrastiveLoss
from ..diffusion.losses import DiffusionLoss
from ..diffusion.reconstruction import ReconstructionLoss
from ..diffusion.scheduler import LinearDDPMScheduler
from ..pipelines.ddpm import DDPMPipeline
from ..pipelines.loading import load_pipeline
from ..settings.config import Config


@dataclass(frozen=True, kw_only=True)
class System:
    """What x_0 is, what the network is told beside it, the network, its process, its objective, and what is saved.

    Attributes:
        codec: batch -> x_0, and back to pictures.
        conditions: what the network is told, in the order in which it is hidden.
        network: (x_t, t, **told) -> output. Its children are the parts of the pipeline that are trained and averaged,
            by their names there; one without gradients is frozen.
        trained: the network as it is trained, if that needs more: after the parts of `network` it has parts that are
            neither averaged nor saved in the pipeline.
        scheduler: the process; None for an autoencoder or a CLIP, which have none.
        loss: (network, x_0, noise, t, **told) -> one loss per image.
        told_from: (step, what the loss is told beside the conditions from this optimizer step on). Parts that nothing
            needs before are first trained then.
        pipeline: makes the pipeline of such a network.
        rates: the learning rate of a part, as a multiple of that of the others.
        begin: changes the new network, in place, before its first step; not when a run goes on from a checkpoint.
        finish: makes of the network, which stays as it is, the one that is saved; by default that is the same.
        shown: what the finished model is asked for in its pictures; by default the conditions.
        facts: entries of `plan.Facts` that only it knows.
    """

    codec: PixelCodec
    conditions: Sequence[Condition]
    network: nn.Module
    trained: nn.Module | None = None
    scheduler: LinearDDPMScheduler | None
    loss: DiffusionLoss | ReconstructionLoss | ContrastiveLoss
    told_from: tuple[int, Mapping[str, bool]] = (0, {})
    pipeline: Callable[[nn.Module], DDPMPipeline]
    rates: Mapping[str, float] = field(default_factory=dict)
    begin: Callable[[], None] | None = None
    finish: Callable[[nn.Module], nn.Module] | None = None
    shown: Sequence[Condition] | None = None
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_timesteps(self) -> int:
        """T; 1 without a process, where the network is called once."""
        return 1 if self.scheduler is None else self.scheduler.config.num_train_timesteps

    @property
    def draws_pictures(self) -> bool:
        """Whether its pipeline does; else there are no previews."""
        return self.pipeline(self.network).draws_pictures


def init_from(config: Config) -> DDPMPipeline | None:
    """The pipeline that `--init_from` names, if it is given; ValueError if it does not denoise."""
    if config.model.init_from is None:
        return None
    pipeline = load_pipeline(config.model.init_from)
    if pipeline.scheduler is None:
        raise ValueError(f"--init_from must be a diffusion model, got {pipeline.kind}: {config.model.init_from}")
    return pipeline


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One of the trainings of a system, which are run one after the other.

    Attributes:
        name: for `--stage`, if the system has several.
        folder: where its results and checkpoints go, below `--output_dir`.
        by_default: settings -> whether it is trained without being asked for.
        captioned: settings -> whether captions of its images are read, as `load_images` takes it.
        start: (settings, with its own folder as `--output_dir`) -> the pipeline to start from, if there is one.
        resolve: (settings, pipeline to start from) -> settings with every one filled in. Also called without a
            pipeline before earlier stages train, so that a setting that cannot be used is found then.
        resolution: (those settings) -> of its training images, as `--resolution` is given.
        build: (those settings, training images, pipeline to start from) -> what is trained.
    """

    name: str | None = None
    folder: str = "."
    by_default: Callable[[Config], bool] = lambda config: True
    captioned: Callable[[Config], bool | str] = lambda config: False
    start: Callable[[Config], DDPMPipeline | None] = init_from
    resolve: Callable[[Config, DDPMPipeline | None], Config]
    resolution: Callable[[Config], str] = lambda config: config.data.resolution
    build: Callable[[Config, TrainingImages, DDPMPipeline | None], System]
