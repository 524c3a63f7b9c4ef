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


class StrictWeights:
    """Mixin for our subclasses of diffusers' models: a file fits the network entirely, or loading it is an error.

    diffusers fills what a file lacks with random numbers and says so in a warning, so a network half at random looks
    like one that was loaded. It stands before the diffusers class in the list of bases.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in diffusers, which documents the arguments.

        Raises:
            ValueError: if the config is that of another class, or keys or shapes of the weights do not fit, listing
                them. Shapes may differ with `ignore_mismatched_sizes=True`.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        may_differ = kwargs.pop("ignore_mismatched_sizes", False)
        # Tolerant here, so that all that does not fit comes together in one list.
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
        differing = [] if may_differ else info["mismatched_keys"]
        problems = {
            "missing": info["missing_keys"],
            "unknown": info["unexpected_keys"],
            "of another shape": [f"{key} ({list(there)}, not {list(here)})" for key, there, here in differing],
        }
        if any(problems.values()):
            listed = "; ".join(f"{what}: {_first_of(keys)}" for what, keys in problems.items() if keys)
            raise ValueError(
                f"the weights in {pretrained_model_name_or_path} do not fit their config for {cls.__name__}. {listed}"
            )
        return (model, info) if wants_info else model

    @classmethod
    def load_config(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in diffusers. ValueError for the config of a class that is none of this one's bases."""
        config = super().load_config(pretrained_model_name_or_path, *args, **kwargs)
        saved = (config[0] if isinstance(config, tuple) else config).get("_class_name")
        if saved is not None and saved not in {base.__name__ for base in cls.__mro__}:
            raise ValueError(
                f"{pretrained_model_name_or_path} holds the config of a {saved}; {cls.__name__} cannot be made of it"
            )
        return config


def _first_of(keys: list[str], limit: int = 10) -> str:
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(sorted(keys)[:limit]) + more
