"""What a card says of each kind of pipeline; its sentences are in `model_card.md`, under the name of the class."""

from typing import Any

from ..sampling.samplers import FAST_CALLS
from .folder import ModelFolder
from .stock import DDPM, betas_argument, fast_samplers, network_lines, obstacles


def _ddpm_values(folder: ModelFolder) -> dict[str, Any]:
    model = DDPM(folder.index, **folder.configs)
    height, width = model.size
    kinds = {1: "grey", 3: "RGB", 4: "RGBA"}
    names, blocked, variance_type = model.class_names, obstacles(model), model.scheduler.get("variance_type")
    # As Python source: names, or numbers if the classes have no names.
    labels = [repr(name) if model.index.get("id2label") else name for name in names]
    several = f"class_labels=[{', '.join(labels[:4])}]" if names else "batch_size=4"
    fewer_steps = FAST_CALLS if model.timesteps > 2 * FAST_CALLS and fast_samplers(model) else None
    return {
        "tags": ["ddpm", "diffusion-models", "ddpm_hf"] + ["class-conditional-image-generation"] * bool(names),
        "kind": kinds.get(model.channels, f"{model.channels}-channel"),
        "height": height,
        "width": width,
        "timesteps": model.timesteps,
        "class_count": len(names),
        "obstacles": blocked,
        "network_lines": network_lines(model),
        "channels": model.channels,
        "labels": list(range(min(4, len(names)))),
        "label_names": ", ".join(" ".join(name.split()) for name in names[:4]),
        # The same variance, of which diffusers takes the root as it should.
        "scheduler_change": ', variance_type="fixed_large"' if variance_type == "fixed_large_log" else "",
        # Stock `DDPMPipeline` assumes 1000.
        "call": f"num_inference_steps={model.timesteps}" if model.timesteps != 1000 else "",
        "own_call": several,
        "classes": ", ".join(names[:100]) + ", …" * (len(names) > 100),
        "guided": model.is_guided,
        "fewer_steps": fewer_steps,
        "betas_argument": betas_argument(model),
        "learned_variance": model.learns_variance,
        "stock_samplers": ["DDPMScheduler", *fast_samplers(model)] if not blocked else [],
    }


# For each of `pipelines.loading.PIPELINES` its task on the Hub, and what gives a model's tags and the card's values.
TASKS = {"DDPMPipeline": ("unconditional-image-generation", _ddpm_values)}
