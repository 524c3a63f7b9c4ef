"""Train denoising diffusion probabilistic models with Hugging Face diffusers.

Importing this package makes its classes known to diffusers, so that an index which names them can be loaded.
"""

import diffusers

# diffusers looks for these two names in the namespace of a package whose classes it is asked to load.
from diffusers import ModelMixin, SchedulerMixin
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES

from .diffusion.scheduler import LinearDDPMScheduler
from .hub import make_portable
from .models.presets import PRESETS, get_preset
from .models.unet import DDPMUNet2D
from .pipelines.ddpm import DDPMPipeline

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "DDPMPipeline",
    "DDPMUNet2D",
    "LinearDDPMScheduler",
    "ModelMixin",
    "SchedulerMixin",
    "get_preset",
    "make_portable",
    "register",
]


def register() -> None:
    """Make `DDPMUNet2D` and `LinearDDPMScheduler` components that diffusers can save and load by name.

    The table of loadable classes serves `model_index.json`, in a folder and on the Hub; the names in diffusers' own
    namespace serve `AutoModel` and the lists of compatible schedulers. Called on import; calling it again does
    nothing.

    Raises:
        RuntimeError: if diffusers has come to have another class of one of these names.
    """
    methods = ["save_pretrained", "from_pretrained"]
    LOADABLE_CLASSES[__name__] = {"ModelMixin": methods, "SchedulerMixin": methods}
    for component in (DDPMUNet2D, LinearDDPMScheduler):
        present = getattr(diffusers, component.__name__, component)
        if present is not component:
            raise RuntimeError(f"diffusers {diffusers.__version__} has a {component.__name__} of its own: {present}")
        setattr(diffusers, component.__name__, component)


register()
