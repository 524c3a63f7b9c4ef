"""What saved configs and indexes say, so that stock diffusers can read them.

A saved pipeline names diffusers' own classes everywhere: `model_index.json`, `unet/config.json` and
`scheduler/scheduler_config.json`. Whoever has diffusers alone loads it; `ddpm_hf.DDPMPipeline.from_pretrained` reads
the same files and gives our classes.
"""

import json

PACKAGE = __name__.partition(".")[0]

# Our class -> the class of diffusers that has the same configuration and the same weights.
STOCK_CLASS_NAMES = {"DDPMUNet2D": "UNet2DModel", "LinearDDPMScheduler": "DDPMScheduler"}


class PortableConfig:
    """Mixin for our subclasses of diffusers' models and schedulers: their saved config names the stock class.

    It stands before the diffusers class in the list of bases. `save_pretrained` and `push_to_hub` both end in
    `to_json_string`, so no path forgets. A user's subclass of one of our classes keeps its own name: what it adds, the
    stock class may not have.
    """

    def to_json_string(self) -> str:
        """The configuration as JSON text, with `_class_name` as stock diffusers knows it."""
        config = json.loads(super().to_json_string())
        if type(self).__module__.partition(".")[0] == PACKAGE:
            config["_class_name"] = STOCK_CLASS_NAMES[type(self).__name__]
        return json.dumps(config, indent=2, sort_keys=True) + "\n"


def stock_component(library: str | None, class_name: str | None) -> list[str | None]:
    """The `[library, class]` pair of an index entry, with a class of ours replaced by diffusers' own.

    Both spellings that diffusers writes for our classes are known: `ddpm_hf` (this package imported and registered)
    and the full module path (not registered).
    """
    if library is not None and library.partition(".")[0] == PACKAGE and class_name in STOCK_CLASS_NAMES:
        return ["diffusers", STOCK_CLASS_NAMES[class_name]]
    return [library, class_name]


def own_component(library: str | None, class_name: str | None) -> list[str | None]:
    """The reverse of `stock_component`: diffusers' class of an index entry replaced by ours, if we have one."""
    for own_name, stock_name in STOCK_CLASS_NAMES.items():
        if (library, class_name) == ("diffusers", stock_name):
            return [PACKAGE, own_name]
    return [library, class_name]
