"""One GPU: training and sampling, ours against stock diffusers, in turns.

    python benchmarks/gpu.py

Training is the trainer of scripts/train.py with all that it does in a step, against the loop of train_unconditional.py
on batches that were decoded beforehand. MFU is the share of the GPU's peak in bf16 that the arithmetic of the network
takes, forwards and backwards, as PyTorch's counter has it. Sampling is one call of either pipeline on untrained
weights. `--size quick --device cpu` shows that the code runs, on toy networks.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import diffusers
import measuring
import torch
from image_files import write_png_folder
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from training_sides import Side, Worker, interleaved_steps

import ddpm_hf
from ddpm_hf.models.unet import paper_config

# TFLOP/s in bf16 without sparsity, as the data sheets of NVIDIA have them.
PEAKS = {
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "H200 NVL": 835,
    "H200": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "A10": 125,
    "RTX 4090": 165,
    "RTX 3090": 71,
}
# size -> what is trained, and the turns of each side. Float32 is PyTorch's default: convolutions in TF32.
CIFAR, LARGE = ("ddpm-cifar10", 128), ("ddpm-256", 8)
TRAINING = {
    "quick": ([(("small-32", 2), "bf16", {"channels_last": True})], 1),
    "normal": (
        [
            (CIFAR, "float32", {}),
            (CIFAR, "bf16", {}),
            (CIFAR, "bf16", {"channels_last": True}),
            (CIFAR, "bf16", {"compile": True}),
            (LARGE, "bf16", {}),
        ],
        5,
    ),
}
TRAINING["full"] = (TRAINING["normal"][0], 15)
STEPS = {"quick": 1, "normal": 20, "full": 20}  # in a turn
# size -> preset, images in a batch, network calls, turns
SAMPLING = {
    "quick": ("digits", 2, (2, 3), 1),
    "normal": ("ddpm-cifar10", 64, (20, 100), 5),
    "full": ("ddpm-cifar10", 64, (20, 100), 15),
}


def main(argv: list[str]) -> None:
    parser = measuring.make_parser(__doc__, "gpu")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu is for a trial of this. cuda.")
    options = parser.parse_args(argv)
    on_gpu = options.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        parser.exit(2, "benchmarks/gpu.py: --device is cuda, and PyTorch finds no CUDA GPU here\n")
    os.environ["ACCELERATE_USE_CPU"] = str(not on_gpu).lower()
    facts = measuring.start(options)
    facts |= {"gpu": torch.cuda.get_device_name() if on_gpu else None, "cuda": torch.version.cuda}
    print(f"{facts['gpu'] or 'no GPU, so these are no results'}, CUDA {facts['cuda']}\n")
    training = list(training_rows(options.size, facts["gpu"]))
    sampling = list(sampling_rows(options.size, options.device))
    for table in (training, sampling):
        measuring.print_table(table)
        print()
    measuring.write_report(options.output, training + sampling, vars(options), facts)
    print(f"written to {options.output}")


def training_rows(size: str, gpu: str | None) -> Iterator[dict[str, Any]]:
    """Images a second, MFU and peak memory of both sides."""
    cases, turns = TRAINING[size]
    for (preset, batch), precision, how in cases:
        ours = Side("ours", precision, batch, preset=preset, **how)
        stock = Side("stock", precision, batch, preset=preset, decoded=True)
        row = {"training": f"{preset}, batch {batch}, {ours}"}
        with tempfile.TemporaryDirectory() as folder:
            side = ddpm_hf.get_preset(preset).model["resolution"]
            images = write_png_folder(Path(folder) / "images", 4 * batch, side)
            try:
                with Worker(stock, images) as one, Worker(ours, images) as other:
                    seconds = interleaved_steps([one, other], turns, STEPS[size])
            except SystemExit as ended:
                if "OutOfMemoryError" not in str(ended):
                    raise
                yield row | {"stock images/s": "out of memory"}
                continue
        found = measuring.compare("", seconds[str(stock)], seconds[str(ours)])
        share = training_flops(preset) * batch / 1e12 / (peak_of(gpu) or float("nan"))
        rates = {"stock": found.stock_seconds, "ours": found.ours_seconds}
        yield (
            row
            | {f"{name} images/s": batch / value for name, value in rates.items()}
            | {name: found.row()[name] for name in ("times faster", "n")}
            | {f"{name} MFU": mfu(share / value, precision) for name, value in rates.items()}
            | {f"{worker.side.name} peak GB": worker.peak / 1e9 for worker in (one, other)}
        )


def training_flops(preset: str) -> int:
    """Floating-point operations of one image, forwards and backwards; with attention as matrix products, which every
    version of the counter knows."""
    config = paper_config(**ddpm_hf.get_preset(preset).model)
    unet = ddpm_hf.DDPMUNet2D(**config)
    images = torch.zeros(1, config["in_channels"], config["sample_size"], config["sample_size"])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        unet(images, torch.zeros(1, dtype=torch.int64)).sample.sum().backward()
    return counter.get_total_flops()


def peak_of(gpu: str | None) -> float | None:
    """TFLOP/s in bf16 of a GPU by the name that CUDA gives it; None if it is not in the table."""
    return next((peak for name, peak in PEAKS.items() if re.search(rf"\b{name}\b", gpu or "")), None)


def mfu(share: float, precision: str) -> str:
    if precision != "bf16":
        return ""
    return "unknown" if share != share else f"{share:.1%}"


def sampling_rows(size: str, device: str) -> Iterator[dict[str, Any]]:
    """One call of either pipeline, to an array of the host."""
    preset, batch, calls, turns = SAMPLING[size]
    config = paper_config(**ddpm_hf.get_preset(preset).model)
    network = ddpm_hf.DDPMUNet2D(**config).to(device)
    stock = diffusers.UNet2DModel(**config).to(device)
    stock.load_state_dict(network.state_dict())
    pipelines = {
        "stock": diffusers.DDPMPipeline(stock, diffusers.DDPMScheduler()),
        "ours": ddpm_hf.DDPMPipeline(network, ddpm_hf.LinearDDPMScheduler()),
    }
    for precision, steps in product(("float32", "bf16"), calls):
        one, other = (partial(draw, pipeline, batch, steps, precision) for pipeline in pipelines.values())
        found = measuring.paired("", one, other, turns, calls=1)
        yield {
            "sampling": f"{preset}, batch {batch}, {precision}, {steps} calls",
            "stock images/s": batch / found.stock_seconds,
            "ours images/s": batch / found.ours_seconds,
            **{name: found.row()[name] for name in ("times faster", "n")},
        }


def draw(pipeline: diffusers.DiffusionPipeline, batch: int, steps: int, precision: str) -> Any:
    """With noise from one generator on the device and ancestral steps; bf16 by autocast, as training draws."""
    device = pipeline.device.type
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator(device).manual_seed(0)
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        return pipeline(batch, generator, num_inference_steps=steps, output_type="np").images


if __name__ == "__main__":
    main(sys.argv[1:])
