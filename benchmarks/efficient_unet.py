"""The super-resolution of Imagen as an Efficient U-Net, against the plain U-Net of the same settings.

    OMP_NUM_THREADS=1 python benchmarks/efficient_unet.py

Parameters, operations of a training step and what the forward pass keeps for the backward pass, counted for one image;
and, where the network is small, the time of both passes of a batch, in turns.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from measuring import finish, make_parser, paired, start

from ddpm_hf import get_preset
from ddpm_hf.conditions.condition import Told
from ddpm_hf.models.text import CAPTION_LENGTH
from ddpm_hf.models.text_unet import new_text_unet
from ddpm_hf.pipelines.upsampling import UpsamplingDenoiser
from ddpm_hf.settings.resolve import ARCHITECTURE_FLAGS
from ddpm_hf.systems.forecast import count_pass

# size -> (turns, images in a batch)
AMOUNTS = {"quick": (2, 2), "normal": (9, 32), "full": (25, 32)}
# preset -> channels of its text encoder's states, and whether it is for a CPU, where time can be measured
PRESETS = {"imagen-digits": (128, True), "imagen-64-256": (768, False)}


def main(argv: list[str]) -> None:
    options = make_parser(__doc__, "efficient_unet").parse_args(argv)
    facts = start(options)
    finish(options, [row for preset in PRESETS for row in rows(preset, *AMOUNTS[options.size])], facts)


def rows(preset: str, turns: int, batch: int) -> Iterator[dict[str, Any]]:
    """The plain network and the efficient one."""
    (width, is_timed), passes = PRESETS[preset], {}
    model = get_preset(preset).upsampler.model
    side = model["resolution"] * model["upsampling"]
    for kind in ("plain", "efficient"):
        settings = {name: model[name] for name in (*ARCHITECTURE_FLAGS, "dropout")} | {"text_width": width}
        with torch.device("cpu" if is_timed else "meta"):
            unet = new_text_unet(
                model["resolution"], True, resolution=side, channels=3, efficient=kind == "efficient", **settings
            )
        network = UpsamplingDenoiser(unet, None, all_outputs=False)
        kept, flops = count_pass(network, (3, side, side), told(1, side, width, "meta"))
        row = {
            "super-resolution": f"{preset}, {kind}",
            "M parameters": sum(weight.numel() for weight in unet.parameters()) / 1e6,
            "GFLOP an image": flops / 1e9,
            "MB kept an image": kept / 1e6,
            "a batch": "",
            "times faster": "",
            "n": "",
        }
        if is_timed:
            passes[kind] = both_passes(network, torch.randn(batch, 3, side, side), told(batch, side, width, "cpu"))
        if len(passes) == 2:
            found = paired("", *passes.values(), turns, calls=1).row()
            row |= {"a batch": f"{found['ours']}, plain {found['stock']}"}
            row |= {name: found[name] for name in ("times faster", "n")}
        yield row


def told(images: int, side: int, width: int, device: str) -> Told:
    """What the network is told beside x_t and t."""
    return {
        "low_resolution": torch.zeros(images, 3, side, side, device=device),
        "class_labels": torch.zeros(images, dtype=torch.int64, device=device),
        "encoder_hidden_states": torch.zeros(images, CAPTION_LENGTH, width, device=device),
    }


def both_passes(network: UpsamplingDenoiser, x_t: torch.Tensor, about: Told) -> Callable[[], None]:
    """Forwards and backwards, once a call."""
    return lambda: network(x_t, about["class_labels"], **about).square().mean().backward()


if __name__ == "__main__":
    main(sys.argv[1:])
